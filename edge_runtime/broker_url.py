"""The broker's URL: mqtt://[user[:password]@]host[:port]."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edge_runtime.errors import LocalError

__all__ = ["BadUrl", "BrokerUrl", "TlsNotSupported", "parse_url"]

DEFAULT_PORT = 1883


class BadUrl(LocalError):
    """The broker's URL cannot be understood."""


class TlsNotSupported(LocalError):
    """The URL asks for TLS."""


@dataclass(frozen=True)
class BrokerUrl:
    """Where the broker is and who we are to it."""

    host: str
    port: int
    user: str | None
    password: str | None


def parse_url(url: str) -> BrokerUrl:
    """Take apart mqtt://[user[:password]@]host[:port]; user and password may be percent-encoded.

    Raises:
        TlsNotSupported: The scheme is mqtts.
        BadUrl: Anything else is wrong.
    """
    expected = "expected mqtt://[user:password@]host[:port]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # urllib's words quote what it took for the port, which is the password where that holds a slash.
        raise BadUrl(
            f"broker URL {_without_password(url)!r}: the host or the port cannot be read; {expected}, the port at most "
            "65535, special characters of a password percent-encoded"
        ) from None
    if parts.scheme in {"mqtts", "ssl", "wss"}:
        raise TlsNotSupported(
            f"broker URL {_without_password(url)!r}: TLS is not in this version; use mqtt:// on a trusted network or "
            "through a tunnel"
        )
    odd = parts.path.strip("/") or parts.query or parts.fragment or any(map(str.isspace, url))
    if parts.scheme != "mqtt" or not parts.hostname or odd:
        raise BadUrl(f"broker URL {_without_password(url)!r}: {expected}")
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return BrokerUrl(parts.hostname, DEFAULT_PORT if port is None else port, user, password)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url
