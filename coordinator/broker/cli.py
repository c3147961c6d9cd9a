"""``edge-runtime broker``: the embedded MQTT 3.1.1 broker as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import ipaddress
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coordinator.broker.access import AccessList, read_access_list
from coordinator.broker.limits import Limits
from coordinator.broker.mosquitto import shipped_config
from coordinator.broker.passwords import Passwords, hash_password, read_passwords
from coordinator.broker.server import Server, listen
from coordinator.broker.topics import check_filter

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

__all__ = ["main"]

log = logging.getLogger("edge_runtime.broker")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the broker until SIGTERM or SIGINT.

    Prints ``listening mqtt://HOST:PORT`` on standard output when clients can connect; the log goes to standard error.

    Returns:
        0 after a clean stop, 2 when the settings or the address are no good.
    """
    options = _parser().parse_args(argv)
    if options.mosquitto_conf:
        print(shipped_config(), end="")
        return 0
    if options.hash_password is not None:
        return _print_hash(options.hash_password)
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        limits = _limits(options)
        logins = _read_logins(options)
        _check_exposure(options.bind, open_to_all=logins.passwords is None and not options.allow_anonymous)
        sock = listen(options.bind, options.port)
    except (OSError, ValueError) as error:
        print(f"edge-runtime broker: {error}", file=sys.stderr)
        return 2
    asyncio.run(_serve(sock, limits, logins, stop_on_eof=options.stop_on_eof))
    return 0


class Logins(NamedTuple):
    """Who may log in, and what each may do; None: everybody, everything."""

    passwords: Passwords | None
    access: AccessList | None


def _read_logins(options: argparse.Namespace) -> Logins:
    if options.access_list is not None and options.password_file is None:
        raise ValueError("--access-list tells users apart by their logins; give --password-file too")
    return Logins(
        None if options.password_file is None else read_passwords(options.password_file),
        None if options.access_list is None else read_access_list(options.access_list),
    )


async def _serve(sock: socket.socket, limits: Limits, logins: Logins, *, stop_on_eof: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if stop_on_eof:
        loop.add_reader(sys.stdin, _read_or_stop, stop)
    _raise_open_files(limits.max_connections + 64)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = Server(sock, limits, logins.passwords, logins.access)
    print(f"listening mqtt://{shown}:{port}", flush=True)
    await server.run(stop)
    log.info("stopped")


def _read_or_stop(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()


def _parser() -> argparse.ArgumentParser:
    default = Limits()
    parser = argparse.ArgumentParser("edge-runtime broker", description="An MQTT 3.1.1 broker, QoS 0 to 2.")
    add = parser.add_argument
    add("--bind", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (%(default)s)")
    add("--port", type=int, default=1883, help="port, 0 = any free one (%(default)s)")
    add("--password-file", type=Path, metavar="FILE", help="logins, one user:salt:hash a line")
    add("--access-list", type=Path, metavar="FILE", help="who may say and hear what, in mosquitto's format")
    add("--hash-password", metavar="USER", help="ask for a password, print its line for the file, and exit")
    add("--mosquitto-conf", action="store_true", help="print our settings for a production mosquitto, and exit")
    add("--allow-anonymous", action="store_true", help="listen beyond this machine without logins")
    add("--max-packet-kb", type=float, default=default.max_packet_bytes / 1024, help="(%(default)g)")
    add("--max-connect-kb", type=float, default=default.max_connect_bytes / 1024, help="(%(default)g)")
    add("--max-connections", type=int, default=default.max_connections, help="(%(default)s)")
    add("--max-sessions", type=int, default=default.sessions, help="on line and stored (%(default)s)")
    add("--max-subscriptions", type=int, default=default.subscriptions, help="of one client (%(default)s)")
    add("--max-in-flight", type=int, default=default.in_flight, help="unacknowledged, per client (%(default)s)")
    add("--queue-mb-per-client", type=float, default=default.queue_bytes / 2**20, help="(%(default)g)")
    add("--queue-messages-per-client", type=int, default=default.queue_messages, help="(%(default)s)")
    add("--retained-mb", type=float, default=default.retained_bytes / 2**20, help="all together (%(default)g)")
    add("--connect-timeout-s", type=float, default=default.connect_timeout_s, help="(%(default)g)")
    add("--stall-s", type=float, default=default.stall_s, help="patience with a full queue (%(default)g)")
    add("--session-expiry-s", type=float, default=default.session_expiry_s, help="(%(default)g)")
    add("--deny-subscribe", action="append", default=[], metavar="FILTER", help="topics nobody may subscribe to")
    add("--stop-on-eof", action="store_true", help="stop when standard input ends, as it does with the parent")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"), help="(%(default)s)")
    return parser


def _limits(options: argparse.Namespace) -> Limits:
    """Turn options into limits; all must be positive."""
    limits = Limits(
        max_packet_bytes=int(options.max_packet_kb * 1024),
        max_connect_bytes=int(options.max_connect_kb * 1024),
        max_connections=options.max_connections,
        connect_timeout_s=options.connect_timeout_s,
        stall_s=options.stall_s,
        in_flight=options.max_in_flight,
        queue_bytes=int(options.queue_mb_per_client * 2**20),
        queue_messages=options.queue_messages_per_client,
        subscriptions=options.max_subscriptions,
        sessions=options.max_sessions,
        session_expiry_s=options.session_expiry_s,
        retained_bytes=int(options.retained_mb * 2**20),
        denied=tuple(options.deny_subscribe),
    )
    for name in limits.denied:
        check_filter(name)
    for name in Limits.__slots__:
        value = getattr(limits, name)
        if name != "denied" and not value > 0:
            raise ValueError(f"{name} is {value}; it must be greater than 0")
    if limits.in_flight > 65_535:
        raise ValueError(f"in_flight is {limits.in_flight}; MQTT has 65535 packet identifiers")
    if not 0 <= options.port <= 65_535:
        raise ValueError(f"port {options.port} is not within 0 and 65535")
    return limits


def _check_exposure(host: str, *, open_to_all: bool) -> None:
    """Refuse to listen beyond this machine without logins, unless that is asked for."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if open_to_all and not local:
        raise ValueError(
            f"{host} can be reached from other machines, and anyone could publish; give --password-file "
            "(see --hash-password), or say --allow-anonymous on a network you trust"
        )


def _raise_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, top), hard))
        if top < wanted:
            log.warning("only %d open files are allowed: fewer connections than --max-connections", top)


def _print_hash(user: str) -> int:
    password = getpass.getpass("password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    try:
        print(hash_password(user, password))
    except ValueError as error:
        print(f"edge-runtime broker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
