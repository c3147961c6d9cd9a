"""Access lists: what a file says, what a user may do by it, and that both brokers hold to it."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from broker.conftest import KINDS, Embedded, port_of
from broker.raw_client import RawClient
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.broker.access import _covers, read_access_list
from coordinator.broker.cli import main
from coordinator.broker.packets import ACCEPTED, NOT_AUTHORISED, SUBSCRIBE_FAILED, Will
from coordinator.broker.passwords import hash_password
from coordinator.broker.probe import parse_url
from coordinator.broker.topics import matches
from support.guarded_broker import COORDINATOR, documented_access_list, guarded_broker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIST = """
# devices
pattern read a/%u/in
pattern write a/%u/out/#

user chief
topic a/#
topic read b
"""
# One level more than any filter has, and one name that none has.
TOPICS = ["/".join(levels) for size in (1, 2, 3, 4) for levels in product(("a", "b", "$c", "z"), repeat=size)]


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from(["a", "b", "$c", "+"]), min_size=0, max_size=3))
    return "/".join([*levels, "#"] if draw(st.booleans()) or not levels else levels)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "access").write_text(text)
    return tmp_path / "access"


def test_a_user_may_do_what_a_line_allows_and_nothing_else(tmp_path: Path) -> None:
    access = read_access_list(written(tmp_path, LIST))
    device, chief, nobody = access.of("dev"), access.of("chief"), access.of(None)
    assert device.may_publish("a/dev/out/1")
    assert device.may_subscribe("a/dev/in")
    assert not any(device.may_publish(topic) for topic in ("a/dev/in", "a/other/out/1", "b"))
    assert not any(device.may_subscribe(name) for name in ("a/+/in", "a/#", "#", "a/dev/out/#"))
    assert chief.may_publish("a/dev/in")
    assert chief.may_subscribe("a/+/out/#")
    assert chief.may_subscribe("b")
    assert not chief.may_publish("b")
    assert not nobody.may_publish("a//out/1")


@pytest.mark.parametrize("name", ["+", "#", "a/b", "+/+"])
def test_a_users_name_cannot_widen_a_pattern(tmp_path: Path, name: str) -> None:
    access = read_access_list(written(tmp_path, LIST)).of(name)
    assert (access.reads, access.writes) == ((), ())


@example(wide="+/#", narrow="#")
@given(wide=filters(), narrow=filters())
def test_a_filter_is_covered_exactly_when_no_topic_of_it_is_outside(wide: str, narrow: str) -> None:
    assert _covers(wide, narrow) == all(matches(wide, topic) for topic in TOPICS if matches(narrow, topic))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topic a\n", "user NAME"),
        ("user x\ntopic deny a\n", "line 2"),
        ("pattern read a/%c\n", "%u"),
        ("pattern a/b#\n", "stand alone"),
        ("allow a\n", "'allow'"),
        ("user x\ntopic\n", "line 2"),
    ],
)
def test_a_line_that_means_nothing_here_is_refused_with_its_number(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_access_list(written(tmp_path, text))


def test_an_access_list_without_logins_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", "--access-list", str(written(tmp_path, LIST))]) == 2
    assert "--password-file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_speaks_and_hears_for_itself_only(kind: str, tmp_path: Path) -> None:
    with guarded_broker(tmp_path / kind, ["dev-1", "dev-2"], kind) as urls:
        port = port_of(urls("dev-1"))

        def client(user: str) -> RawClient:
            login = parse_url(urls(user))
            one = RawClient(port)
            assert one.log_in(user, username=login.username, password=(login.password or "").encode()).code == ACCEPTED
            return one

        with client(COORDINATOR) as chief, client("dev-1") as own, client("dev-2") as other:
            chief.subscribe(("edge/v1/lab/d/+/up/+/+", 1))
            own.subscribe(("edge/v1/lab/d/dev-1/down", 1))
            other.publish("edge/v1/lab/d/dev-1/up/u/begin", b"forged", 1)
            other.publish("edge/v1/lab/d/dev-1/down", b"forged", 1)
            own.publish("edge/v1/lab/d/dev-1/down", b"forged", 1)
            own.publish("edge/v1/lab/d/dev-1/up/u/begin", b"true", 1)
            chief.publish("edge/v1/lab/d/dev-1/down", b"true", 1)
            assert bytes(chief.next_message().payload) == b"true"
            assert bytes(own.next_message().payload) == b"true"


@pytest.fixture
def guarded(tmp_path: Path, embedded: Callable[..., Embedded]) -> Embedded:
    lines = [hash_password(user, "pw") for user in ("dev-1", "dev-2")]
    (tmp_path / "passwords").write_text("\n".join(lines))
    access = written(tmp_path, documented_access_list())
    return embedded("--password-file", str(tmp_path / "passwords"), "--access-list", str(access))


def test_wills_subscriptions_and_client_ids_of_others_are_refused(guarded: Embedded) -> None:
    def log_in(one: RawClient, client_id: str, user: str, will: str) -> int:
        fields = {"will": Will(will, b"gone", 1, retain=True), "username": user, "password": b"pw"}
        return one.log_in(client_id, **fields).code

    with RawClient(guarded.port) as one, RawClient(guarded.port) as other, RawClient(guarded.port) as third:
        assert log_in(one, "one", "dev-1", "edge/v1/lab/d/dev-1/status") == ACCEPTED
        assert one.subscribe(("edge/v1/lab/d/dev-2/down", 1)) == (SUBSCRIBE_FAILED,)
        assert log_in(other, "two", "dev-2", "edge/v1/lab/d/dev-1/status") == NOT_AUTHORISED
        assert log_in(third, "one", "dev-2", "edge/v1/lab/d/dev-2/status") == NOT_AUTHORISED
        one.settle()
