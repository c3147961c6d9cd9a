"""Choosing, starting, killing and restarting brokers; the command line; logins."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from broker.conftest import KINDS, port_of
from broker.raw_client import RawClient

from coordinator.broker import BrokerError, RunningBroker, find_mosquitto, start_broker
from coordinator.broker.cli import main
from coordinator.broker.packets import Connack
from coordinator.broker.passwords import hash_password, read_passwords, verify
from coordinator.broker.probe import Address, ProbeError, parse_url, probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.conftest import Embedded


def exchange(broker: RunningBroker) -> None:
    with RawClient(port_of(broker.url)) as one:
        assert one.log_in("one").code == 0
        one.subscribe(("t", 1))
        one.publish("t", b"x", 1)
        assert bytes(one.next_message().payload) == b"x"


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_broker_restarts_on_its_port(kind: str, tmp_path: Path) -> None:
    with start_broker(None, tmp_path, kind=kind) as broker:
        assert broker.kind == kind
        assert broker.version.startswith(f"{kind} ")
        exchange(broker)
        url, process = broker.url, broker.process
        assert process is not None
        with RawClient(port_of(url)) as lost:
            lost.log_in("lost")
            broker.kill()
            assert process.returncode == -signal.SIGKILL
            lost.expect_close()
        with pytest.raises(ProbeError):
            probe(parse_url(url), 1.0)
        broker.restart()
        assert broker.url == url
        assert broker.process is not process
        exchange(broker)
        broker.restart()  # of one that runs
        exchange(broker)
        last = broker.process
    assert last is not None
    assert last.returncode is not None


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")
def test_mosquitto_is_taken_where_it_is_installed(tmp_path: Path) -> None:
    with start_broker(None, tmp_path) as broker:
        assert broker.kind == "mosquitto"


def test_the_embedded_broker_is_taken_where_mosquitto_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.broker.mosquitto.EXTRA_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with start_broker(None, tmp_path) as broker:
        assert broker.kind == "embedded"
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        start_broker(None, tmp_path, kind="mosquitto")


@pytest.mark.parametrize("kind", KINDS)
def test_a_url_is_used_as_it_is_and_its_broker_left_alone(kind: str, tmp_path: Path) -> None:
    with start_broker(None, tmp_path, kind=kind) as ours:
        outside = start_broker(ours.url, tmp_path)
        assert (outside.kind, outside.process, outside.url) == ("external", None, ours.url)
        assert kind in outside.version
        for action in (outside.kill, outside.restart):
            with pytest.raises(BrokerError, match="was not started here"):
                action()
        outside.stop()
        exchange(ours)


def test_a_url_where_nothing_listens_says_what_to_check(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BrokerError, match=r"Connection refused; check that it runs there.*firewall"):
            start_broker(url, tmp_path)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xd0\x00"])
def test_a_url_that_does_not_answer_mqtt_says_so(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1], None, None)
        answering = threading.Thread(target=answer_once, args=(server, answer))
        answering.start()
        with pytest.raises(ProbeError, match="MQTT"):
            probe(address, 1.0)
        answering.join()


def answer_once(server: socket.socket, answer: bytes) -> None:
    peer, _ = server.accept()
    with peer:
        peer.sendall(answer)
        while peer.recv(4096):  # until the probe gives up
            pass


@pytest.mark.parametrize(
    "url", ["localhost:1883", "http://host", "mqtt://", "mqtt://host:99999", "mqtts://host", "mqtt://host/path"]
)
def test_a_bad_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broker URL"):
        start_broker(url, tmp_path)


def test_urls_carry_host_port_and_login() -> None:
    assert parse_url("mqtt://host") == Address("host", 1883, None, None)
    assert parse_url("mqtt://a%40b:p%3Aw@[::1]:99") == Address("::1", 99, "a@b", "p:w")


def test_a_port_in_use_is_reported_with_the_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "coordinator.broker.cli", "--port", str(port)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 2
        assert "in use" in run.stderr
        with start_broker(None, tmp_path, kind="embedded") as broker:
            broker.stop()
            broker.url = f"mqtt://127.0.0.1:{port}"
            with pytest.raises(BrokerError, match=r"(?s)ended with status 2; its log .* in use"):
                broker.restart()


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")
def test_mosquittos_log_is_shown_when_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(directory: Path, host: str, port: int) -> Path:
        path = directory / "mosquitto.conf"
        path.write_text(f"listener {port} {host}\nno_such_option 1\n")
        return path

    monkeypatch.setattr("coordinator.broker.mosquitto.write_config", broken)
    with pytest.raises(BrokerError, match=r"(?s)ended with status .*no_such_option"):
        start_broker(None, tmp_path, kind="mosquitto")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")
def test_mosquitto_keeps_retained_messages_over_a_clean_stop(tmp_path: Path) -> None:
    with start_broker(None, tmp_path, kind="mosquitto") as broker:
        with RawClient(port_of(broker.url)) as one:
            one.log_in("one")
            one.publish("kept", b"x" * 65_540, 1, retain=True)
        broker.restart()
        with RawClient(port_of(broker.url)) as one:
            one.log_in("one")
            one.subscribe(("kept", 1))
            assert len(one.next_message().payload) == 65_540


def test_the_embedded_broker_stops_on_sigterm_and_with_its_parent(embedded: Callable[..., Embedded]) -> None:
    broker = embedded()
    one = broker.client("one")
    broker.process.send_signal(signal.SIGTERM)
    assert broker.process.wait(20) == 0
    one.expect_close()
    with subprocess.Popen(
        [sys.executable, "-m", "coordinator.broker.cli", "--port", "0", "--stop-on-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdin is not None
        assert orphan.stdout.readline().startswith(b"listening")
        orphan.stdin.close()
        assert orphan.wait(20) == 0


# Command line and logins


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bind", "0.0.0.0"], "give --password-file"),  # noqa: S104 - that it is refused is the point
        (["--bind", "192.0.2.1", "--allow-anonymous"], "assign"),
        (["--port", "70000"], "port 70000"),
        (["--stall-s", "0"], "stall_s is 0"),
        (["--max-in-flight", "70000"], "65535"),
        (["--deny-subscribe", "a#"], "stand alone"),
        (["--password-file", "/nonexistent"], "nonexistent"),
    ],
)
def test_bad_settings_are_refused_with_what_to_do(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--port", "0", *options]) == 2
    assert message in capsys.readouterr().err


def test_logins_are_checked_against_the_password_file(embedded: Callable[..., Embedded], tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"# devices\n{hash_password('dev', 'secret')}\n\n{hash_password('other', '')}\n")
    broker = embedded("--password-file", str(path))
    good = broker.client()
    assert good.log_in("a", username="dev", password=b"secret").code == 0
    good.settle()
    for username, password in (("dev", b"wrong"), ("nobody", b"secret"), ("dev", None), (None, None), ("other", b"x")):
        bad = broker.client()
        assert bad.log_in("b", username=username, password=password) == Connack(session_present=False, code=4)
        bad.expect_close()
    broker_url = f"mqtt://dev:secret@127.0.0.1:{broker.port}"
    assert start_broker(broker_url, tmp_path).kind == "external"
    with pytest.raises(BrokerError, match="user name or the password is wrong"):
        start_broker(broker_url.replace("secret", "no"), tmp_path)


def test_what_follows_a_connect_waits_for_the_login(embedded: Callable[..., Embedded], tmp_path: Path) -> None:
    from coordinator.broker.packets import Connect, Puback, Publish, encode  # noqa: PLC0415 - used here only

    path = tmp_path / "passwords"
    path.write_text(hash_password("dev", "secret"))
    broker = embedded("--password-file", str(path))
    for password, code in ((b"secret", 0), (b"wrong", 4)):
        one = broker.client()
        one.send(encode(Connect("a", username="dev", password=password)) + encode(Publish("t", b"x", 1, packet_id=3)))
        assert one.expect(Connack).code == code
        if code == 0:
            assert one.expect(Puback).packet_id == 3
        else:
            one.expect_close()
            assert one.inbox == []


def test_hash_password_prints_a_line_that_the_file_takes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coordinator.broker.cli", "--hash-password", "dev"]
    shown = subprocess.run(command, input="se cret\n", capture_output=True, text=True, check=True).stdout
    (tmp_path / "passwords").write_text(shown)
    passwords = read_passwords(tmp_path / "passwords")
    assert verify(passwords, "dev", b"se cret")
    assert not verify(passwords, "dev", b"secret")
    assert not verify(passwords, "other", b"se cret")


@pytest.mark.parametrize("line", ["dev", "dev:00:00", ":" + "0" * 32 + ":" + "0" * 64, "dev:xy:zz", "a:b:c:d"])
def test_a_bad_line_of_the_password_file_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"{hash_password('good', 'x')}\n{line}\n")
    with pytest.raises(ValueError, match="line 2: not 'user:salt:hash'"):
        read_passwords(path)


@pytest.mark.parametrize("user", ["", "a:b", "a\nb"])
def test_user_names_the_file_cannot_hold_are_refused(user: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        hash_password(user, "x")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")
def test_the_printed_settings_with_their_closed_network_listener_ask_for_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--mosquitto-conf"]) == 0
    settings = capsys.readouterr().out
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    tool = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin")
    assert tool is not None
    subprocess.run([tool, "-b", str(passwords), "edge", "secret"], check=True)
    listener = settings[settings.index("#listener 1883") : settings.index("# Any other network")].replace("#", "")

    def closed(directory: Path, host: str, port: int) -> Path:
        path = directory / "mosquitto.conf"
        here = listener.replace("1883", f"{port} {host}").replace("/etc/mosquitto/passwords", str(passwords))
        path.write_text(settings + here + ("user root\n" if os.geteuid() == 0 else ""))
        return path

    monkeypatch.setattr("coordinator.broker.mosquitto.write_config", closed)
    # Our own probe logs in without a password: that it is refused is what shows that mosquitto runs and asks.
    with pytest.raises(BrokerError, match=r"not authori[sz]ed|CONNACK|refus"):
        start_broker(None, tmp_path, kind="mosquitto")
