"""Signed, expiring links: whoever has one can see a run's status, or deliver one event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, ClassVar
from uuid import UUID

from django.core.signing import BadSignature, Signer
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from .exceptions import SequenceError

DAY = timedelta(days=1)
WEEK = timedelta(days=7)
#: Servers reject request lines longer than 4,096 or 8,192 characters.
MAX_TOKEN_LENGTH = 3_500
#: What `DeliveryLink.mark` looks like.
MARK = r"^Signed link [0-9a-f]{12}$"


class InvalidLink(Exception):
    """The token was not signed by this site."""


class LinkExpired(Exception):
    """The token was signed by this site, but has expired."""


@dataclass(frozen=True)
class Link:
    """The run that is shown, until when, and with which texts."""

    salt: ClassVar[str] = "sequences.links"
    run: UUID
    expires: datetime
    shows: Mapping[str, Any] = field(default_factory=dict)

    def sign(self) -> str:
        """Return a token for a URL. Everyone can read the texts, but nobody can change them."""
        return _sign(self, *([dict(self.shows)] if self.shows else []))

    @classmethod
    def read(cls, token: str) -> Link:
        """Read a token made by `sign`. Raises `InvalidLink` or `LinkExpired`."""
        return cls(*_read(cls, token))


@dataclass(frozen=True)
class DeliveryLink:
    """What this link delivers to which event of a run, in whose name, and until when."""

    #: A link to the status must not be accepted as a link that delivers.
    salt: ClassVar[str] = "sequences.deliveries"
    run: UUID
    expires: datetime
    event: str
    by: str
    payload: Any
    #: The token that it was read from.
    token: str = field(default="", compare=False)

    def sign(self) -> str:
        """Return a token for a URL. Everyone can read the payload, but nobody can change it."""
        return _sign(self, self.event, self.by, self.payload)

    @classmethod
    def read(cls, token: str) -> DeliveryLink:
        """Read a token made by `sign`. Raises `InvalidLink` or `LinkExpired`."""
        return replace(cls(*_read(cls, token)), token=token)

    @property
    def mark(self) -> str:
        """Identifies the operation that this link's delivery leaves."""
        # Signed again, it would be another token once SECRET_KEY has been rotated.
        return f"Signed link {sha256((self.token or self.sign()).encode()).hexdigest()[:12]}"


def _sign(link: Link | DeliveryLink, *content: Any) -> str:
    until = int(link.expires.timestamp() * 1000)
    return _signer(link.salt).sign_object([link.run.hex, until, *content], compress=True)


def _read(kind: type[Link | DeliveryLink], token: str) -> tuple[Any, ...]:
    try:
        run, until, *content = _signer(kind.salt).unsign_object(token)
    except BadSignature:
        raise InvalidLink from None
    expires = datetime.fromtimestamp(until / 1000, UTC)
    if expires <= timezone.now():
        raise LinkExpired
    return UUID(hex=run), expires, *content


def _signer(salt: str) -> Signer:
    # Created on each call, to use SECRET_KEY and SECRET_KEY_FALLBACKS as they are at that time.
    return Signer(salt=salt)


def signed_url(view: str, run: UUID, expires: timedelta, **shows: Any) -> str:
    """Return the path of a view of this run that whoever has it can open, until it expires."""
    if expires <= timedelta(0):
        raise SequenceError(f"The link to a run cannot expire in the past: expires is {expires!r}.")
    token = Link(run, timezone.now() + expires, shows).sign()
    if len(token) > MAX_TOKEN_LENGTH:
        raise SequenceError(
            f"The texts shown with run {run} make its link {len(token)} characters long, "
            "more than servers accept. Shorten them so that the link stays under "
            f"{MAX_TOKEN_LENGTH} characters."
        )
    return _path(view, token)


def delivery_url(run: UUID, event: str, payload: Any, by: str, max_age: timedelta) -> str:
    """Return the path of a page on which whoever has it can deliver this payload."""
    if max_age <= timedelta(0):
        raise SequenceError(f"The link to an event cannot expire in the past: max_age={max_age!r}.")
    token = DeliveryLink(run, timezone.now() + max_age, event, by, payload).sign()
    if len(token) > MAX_TOKEN_LENGTH:
        raise SequenceError(
            f"The payload makes the link to event {event!r} of run {run} {len(token)} characters "
            f"long, more than servers accept. Shorten it so that the link stays under "
            f"{MAX_TOKEN_LENGTH} characters."
        )
    return _path("deliver", token)


def _path(view: str, token: str) -> str:
    try:
        return reverse(f"sequences:{view}", args=[token])
    except NoReverseMatch:
        raise SequenceError(
            "The project's URLs do not include sequences.urls. Add path('sequences/', "
            "include('sequences.urls'))."
        ) from None
