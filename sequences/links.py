"""Signed, expiring addresses of a run: whoever has one may see how far that run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.core.signing import BadSignature, Signer
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from .exceptions import SequenceError

if TYPE_CHECKING:
    pass

DAY = timedelta(days=1)
#: Servers refuse a request line of more than 4,096 characters, or of 8,192.
MAX_TOKEN_LENGTH = 3_500


class InvalidLink(Exception):
    """It is not what was signed here."""


class LinkExpired(Exception):
    """It was signed here, and its time is over."""


@dataclass(frozen=True)
class Link:
    """Which run is shown, until when, and with which texts."""

    run: UUID
    expires: datetime
    shows: Mapping[str, Any] = field(default_factory=dict)

    def sign(self) -> str:
        """As a part of a URL. The text can be read by all, and changed by nobody."""
        until = int(self.expires.timestamp() * 1000)
        content = [self.run.hex, until, *([dict(self.shows)] if self.shows else [])]
        return _signer().sign_object(content, compress=True)

    @classmethod
    def read(cls, token: str) -> Link:
        """What `sign` has written. Raises `InvalidLink` or `LinkExpired`."""
        try:
            run, until, *shows = _signer().unsign_object(token)
        except BadSignature:
            raise InvalidLink from None
        expires = datetime.fromtimestamp(until / 1000, UTC)
        if expires <= timezone.now():
            raise LinkExpired
        return cls(UUID(hex=run), expires, *shows)


def _signer() -> Signer:
    # Made anew each time: it takes SECRET_KEY and SECRET_KEY_FALLBACKS as they are then.
    return Signer(salt="sequences.links")


def address(view: str, run: UUID, expires: timedelta, **shows: Any) -> str:
    """The path of a view of this run that is open to whoever has it, until it expires."""
    if expires <= timedelta(0):
        raise SequenceError(f"The link to a run cannot expire in the past: expires is {expires!r}.")
    token = Link(run, timezone.now() + expires, shows).sign()
    if len(token) > MAX_TOKEN_LENGTH:
        raise SequenceError(
            f"The texts shown with run {run} make its link {len(token)} characters long, "
            "more than servers accept. Shorten them so that the link stays under "
            f"{MAX_TOKEN_LENGTH} characters."
        )
    try:
        return reverse(f"sequences:{view}", args=[token])
    except NoReverseMatch:
        raise SequenceError(
            "The URLs of sequences are not installed. Add path('sequences/', "
            "include('sequences.urls')) to the project's URLs."
        ) from None
