"""Ask an address whether an MQTT broker answers there: one CONNECT and its CONNACK, with a deadline."""

from __future__ import annotations

import secrets
import socket
import time
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from coordinator.broker.packets import Connack, Connect, Disconnect, MalformedPacket, Packet, Publish, Subscribe, encode
from coordinator.broker.parser import Parser

__all__ = ["VERSION_TOPIC", "Address", "ProbeError", "parse_url", "probe", "reported_version", "without_password"]

DEFAULT_PORT = 1883
MAX_ANSWER_BYTES = 64 * 1024
VERSION_TOPIC = "$SYS/broker/version"
VERSION_DEADLINE_S = 1.0  # many brokers do not tell; the wait is at the start of a coordinator

_REFUSALS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it does not accept our client id",
    3: "it is not available now",
    4: "the user name or the password is wrong; write mqtt://USER:PASSWORD@HOST:PORT",
    5: "it wants a login, or a client certificate; write mqtt://USER:PASSWORD@HOST:PORT",
}


class ProbeError(ConnectionError):
    """No MQTT broker that takes us answers at the address; the message says what to check."""


class Address(NamedTuple):
    """Where a broker listens, and the login for it."""

    host: str
    port: int
    username: str | None
    password: str | None


def parse_url(url: str) -> Address:
    """Take a broker URL apart.

    Args:
        url: ``mqtt://[USER[:PASSWORD]@]HOST[:PORT]``; the port is 1883 when left out.

    Raises:
        ValueError: It is not such a URL.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"broker URL {without_password(url)!r}: {error}") from None
    if parts.scheme != "mqtt" or not parts.hostname or parts.path not in {"", "/"}:
        raise ValueError(
            f"broker URL {without_password(url)!r}: write mqtt://HOST:PORT or mqtt://USER:PASSWORD@HOST:PORT"
        )
    return Address(
        parts.hostname,
        port,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
    )


def without_password(url: str) -> str:
    """A broker URL as logs and messages may show it; user and password become ``***``."""
    login, at, place = url.rpartition("@")
    return f"{login.partition('://')[0]}://***@{place}" if at else url


def probe(address: Address, deadline_s: float) -> None:
    """Log in once and say goodbye.

    Args:
        address: The broker.
        deadline_s: For all of it.

    Raises:
        ProbeError: Nothing listens, it is silent, it does not speak MQTT, or it refuses us.
    """
    with _log_in(address, deadline_s) as sock:
        sock.sendall(encode(Disconnect()))


def reported_version(address: Address, deadline_s: float) -> str | None:
    """Ask a broker for its retained version text; None when it does not tell within a second after the login.

    Args:
        address: The broker.
        deadline_s: For the login.

    Raises:
        ProbeError: As :func:`probe`.
    """
    with _log_in(address, deadline_s) as sock:
        sock.sendall(encode(Subscribe(1, ((VERSION_TOPIC, 0),))))
        parser = Parser(MAX_ANSWER_BYTES)
        until_s = time.monotonic() + VERSION_DEADLINE_S
        try:
            while (left_s := until_s - time.monotonic()) > 0:
                for packet in _receive(sock, parser, left_s):
                    if isinstance(packet, Publish) and packet.topic == VERSION_TOPIC:
                        sock.sendall(encode(Disconnect()))
                        return bytes(packet.payload[:200]).decode(errors="replace")
        except (OSError, MalformedPacket):
            return None
    return None


def _log_in(address: Address, deadline_s: float) -> socket.socket:
    where = f"{address.host}:{address.port}"
    try:
        sock = socket.create_connection((address.host, address.port), deadline_s)
    except OSError as error:
        raise ProbeError(
            f"no MQTT broker at {where}: {error.strerror or error}; check that it runs there, that it listens on "
            "this address and not only on loopback, and that no firewall is in between"
        ) from None
    try:
        _check_answer(where, _handshake(sock, address, deadline_s))
    except (OSError, MalformedPacket) as error:
        sock.close()
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(
            f"{where} accepts connections but does not answer MQTT within {deadline_s:g} s ({error}); check the port "
            "(1883 is usual; 8883 is TLS, 9001 is for web sockets)"
        ) from None
    return sock


def _handshake(sock: socket.socket, address: Address, deadline_s: float) -> Packet:
    password = None if address.password is None else address.password.encode()
    # 23 characters: what every 3.1.1 broker must accept (MQTT-3.1.3-5).
    sock.sendall(encode(Connect(f"probe{secrets.token_hex(8)}", username=address.username, password=password)))
    parser = Parser(MAX_ANSWER_BYTES)
    until_s = time.monotonic() + deadline_s
    while (left_s := until_s - time.monotonic()) > 0:
        for packet in _receive(sock, parser, left_s):
            return packet
    raise TimeoutError("timed out")


def _receive(sock: socket.socket, parser: Parser, timeout_s: float) -> list[Packet]:
    sock.settimeout(timeout_s)
    data = sock.recv(4096)
    if not data:
        raise ConnectionError("closed by the peer")
    return list(parser.feed(data))


def _check_answer(where: str, packet: Packet) -> None:
    if not isinstance(packet, Connack):
        raise ProbeError(f"{where} answered CONNECT with {type(packet).__name__}: it is not an MQTT broker")
    if packet.code:
        raise ProbeError(f"the MQTT broker at {where} refused us: {_REFUSALS[packet.code]}")
