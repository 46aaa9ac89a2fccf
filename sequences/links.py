"""Signed, expiring addresses of a run: whoever has one may see how far that run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
#: Servers refuse a request line of more than 4,096 characters, or of 8,192.
MAX_TOKEN_LENGTH = 3_500


class InvalidLink(Exception):
    """It is not what was signed here."""


class LinkExpired(Exception):
    """It was signed here, and its time is over."""


@dataclass(frozen=True)
class Link:
    """Which run is shown, until when, and with which texts."""

    salt: ClassVar[str] = "sequences.links"
    run: UUID
    expires: datetime
    shows: Mapping[str, Any] = field(default_factory=dict)

    def sign(self) -> str:
        """As a part of a URL. The text can be read by all, and changed by nobody."""
        return _sign(self, *([dict(self.shows)] if self.shows else []))

    @classmethod
    def read(cls, token: str) -> Link:
        """What `sign` has written. Raises `InvalidLink` or `LinkExpired`."""
        return cls(*_read(cls, token))


@dataclass(frozen=True)
class DeliveryLink:
    """What an event of a run gets by this address, by whom, and until when."""

    #: Whoever may see a run's status may deliver nothing.
    salt: ClassVar[str] = "sequences.deliveries"
    run: UUID
    expires: datetime
    event: str
    by: str
    payload: Any

    def sign(self) -> str:
        """As a part of a URL. The payload can be read by all, and changed by nobody."""
        return _sign(self, self.event, self.by, self.payload)

    @classmethod
    def read(cls, token: str) -> DeliveryLink:
        """What `sign` has written. Raises `InvalidLink` or `LinkExpired`."""
        return cls(*_read(cls, token))

    @property
    def mark(self) -> str:
        """What the operation of its delivery is known by."""
        return f"Signed link {sha256(self.sign().encode()).hexdigest()[:12]}"


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
    # Made anew each time: it takes SECRET_KEY and SECRET_KEY_FALLBACKS as they are then.
    return Signer(salt=salt)


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
    return _path(view, token)


def delivery_address(run: UUID, event: str, payload: Any, by: str, max_age: timedelta) -> str:
    """The path of the page on which whoever has it delivers this payload, until it expires."""
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
            "The URLs of sequences are not installed. Add path('sequences/', "
            "include('sequences.urls')) to the project's URLs."
        ) from None
