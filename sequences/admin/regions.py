"""Regions of a page that refresh themselves: only those that have changed are sent again.

A page has the digest of each region. Its script sends the digests with each poll, and an unchanged
region comes back as an empty, marked element.
"""

from __future__ import annotations

import re
from hashlib import blake2s
from typing import Any

from django.utils.safestring import SafeString, mark_safe

#: As sent by the script: ``head=0f3a,steps=77b1``.
HEADER = "X-Sequences-Regions"
#: Anything longer is not a list of digests.
MAX_HEADER_LENGTH = 4_000

_TOKEN = re.compile(r'(name="csrfmiddlewaretoken" value=")[^"]*')
_OPENING = re.compile(r"\s*<(?P<tag>\w+)[^>]*?\sid=\"(?P<id>[\w-]+)\"[^>]*>")
_MARK = "data-seq-region"


def digests_from(request: Any) -> dict[str, str]:
    """What the requesting page already has, by the ids of its regions."""
    header = request.headers.get(HEADER, "") if request is not None else ""
    if len(header) > MAX_HEADER_LENGTH:
        return {}
    pairs = (part.partition("=") for part in header.split(",") if part)
    return {name: digest for name, _equals, digest in pairs}


def region(html: str, digests: dict[str, str]) -> SafeString:
    """The region with its digest; if the page already has it, only its empty element."""
    opening = _OPENING.match(html)
    if opening is None:
        return mark_safe(html)  # noqa: S308 - it was rendered by a template
    # The token of a form differs in every response.
    digest = blake2s(_TOKEN.sub(r"\1", html).encode(), digest_size=6).hexdigest()
    tag = opening[0].replace(_MARK, f'{_MARK}="{digest}"', 1)
    if digests.get(opening["id"]) == digest:
        same = tag.replace(_MARK, f"data-seq-same {_MARK}", 1)
        return mark_safe(f"{same}</{opening['tag']}>")  # noqa: S308 - the same
    return mark_safe(tag + html[opening.end() :])  # noqa: S308 - the same
