"""Converts database URLs to Django's settings and back, and adds timeouts to Redis URLs."""

from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

ENGINES = {
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
    "sqlite": "django.db.backends.sqlite3",
}
SCHEMES = {
    "django.db.backends.postgresql": "postgresql",
    "django.db.backends.mysql": "mysql",
    "django.db.backends.sqlite3": "sqlite",
}
# SQLite allows one writer at a time: a transaction that reads first and then writes must hold the
# lock from its beginning, or SQLite rejects it without waiting.
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
}


def from_url(url: str) -> dict[str, Any]:
    """The entry of DATABASES for `postgresql://user:password@host:port/name?host=/socket/directory`,
    `mysql://…` or `sqlite:///relative.db` (`sqlite:////absolute.db`)."""
    parts = urlsplit(url)
    if parts.scheme not in ENGINES:
        raise ValueError(f"A database URL starts with one of {', '.join(ENGINES)}: {url!r}")
    name = unquote(parts.path.removeprefix("/"))
    settings: dict[str, Any] = {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": name,
        "CONN_MAX_AGE": None,
        "OPTIONS": {},
    }
    if parts.scheme == "sqlite":
        return settings | {"OPTIONS": SQLITE_OPTIONS}
    query = dict(parse_qsl(parts.query))
    return settings | {
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": query.get("host") or parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def to_url(settings: dict[str, Any]) -> str:
    """The reverse, for processes that are to use this process's database."""
    scheme, name = SCHEMES[settings["ENGINE"]], quote(str(settings["NAME"]))
    if scheme == "sqlite":
        return f"sqlite:///{name}"
    login = quote(settings["USER"], safe="") + ":" + quote(settings["PASSWORD"], safe="")
    port = f":{settings['PORT']}" if settings["PORT"] else ""
    if settings["HOST"].startswith("/"):
        # Not a plus for a space: PostgreSQL's own URL parser does not decode it.
        return f"{scheme}://{login}@{port}/{name}?host={quote(settings['HOST'], safe='')}"
    return f"{scheme}://{login}@{settings['HOST']}{port}/{name}"


def with_timeouts(url: str) -> str:
    """A Redis URL with timeouts for a server that does not answer, unless it has its own."""
    parts = urlsplit(url)
    limits = {"socket_timeout": "5", "socket_connect_timeout": "5"}
    return parts._replace(query=urlencode(limits | dict(parse_qsl(parts.query)))).geturl()
