"""What all peers share: a sequence has five steps, each adds one to a number, the last one reports.

It reports by one datagram to the process that has started it, which costs all peers the same.
"""

import os
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

STEPS = 5
NAMESPACE = os.environ.get("PEERS_NAMESPACE", "peers")
DATABASE_URL = os.environ.get("DATABASE_URL", "")
REDIS_URL = os.environ.get("REDIS_URL", "")
PORT = int(os.environ.get("PEERS_PORT", "0"))

_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def add_one(state: dict[str, Any]) -> dict[str, Any]:
    """What a step does."""
    state["n"] += 1
    return state


def report(state: dict[str, Any]) -> None:
    """What the last step does: nothing may be lost on the way."""
    if state["n"] != STEPS:
        raise RuntimeError(f"{state['n']} of {STEPS} steps have run.")
    _socket.sendto(str(state["token"]).encode(), ("127.0.0.1", PORT))


def new_state(token: str) -> dict[str, Any]:
    """What a sequence begins with."""
    return {"token": token, "n": 0}


def databases(**options: Any) -> dict[str, Any]:
    """Django's setting: connections stay open, as in every worker that is set up well."""
    from testproject.databases import from_url

    return {"default": {**from_url(DATABASE_URL), "CONN_MAX_AGE": None, **options}}


def conninfo() -> str:
    """The database for libpq."""
    return DATABASE_URL


def sqlalchemy_url() -> str:
    """The database for SQLAlchemy with psycopg."""
    parts = urlsplit(DATABASE_URL)
    query = f"?{parts.query}" if parts.query else ""
    name = unquote(parts.path)
    return f"postgresql+psycopg://{parts.netloc}{name}{query}"
