"""Control messages, topics, tasks and chunks: round trips, every rule, caps, golden bytes, and garbage."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import RemoteError
from edge_runtime.wire import (
    Delta,
    DeviceSession,
    Outbox,
    Phase,
    Warned,
    format_task,
    messages,
    parse_task,
    topics,
)
from edge_runtime.wire import chunks as ck
from edge_runtime.wire import fields as fd
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.tasks import BlobNotListed, UnknownForm
from support.joined import SITE, blob, make_task, sha256

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
TASK = make_task("digits.3.dev-1", "dev-1", blob("plan", 4711), blob("weights", 815), round_=3)
WITH_DELTAS = replace(
    TASK,
    deltas=(
        Delta("ab" * 32, "cd" * 32, 300, ("topk 0.05", "fp16", "rice")),
        Delta("12" * 32, "34" * 32, 400, ("changed",)),
    ),
)
DIGEST = "ab" * 32

GOLDEN_MESSAGES = {
    "gateway": messages.format_gateway(messages.GatewayState(17, "b00f", "up")),
    "status": messages.format_status(messages.Status("b00f", 3, "online", 599, {"isa": "avx2", "cores": 4})),
    "task": format_task(TASK),
    "task_deltas": format_task(WITH_DELTAS),
    "begin": messages.format_begin(messages.Begin("digits.3.dev-1", DIGEST, 55_560)),
    "gateway_whole": messages.format_gateway(messages.GatewayState(17, "b00f", "up", whole_bytes=16_384)),
    "whole": messages.format_whole(messages.Begin("digits.3.dev-1", DIGEST, 256), ck.cut_chunk(bytes(range(256)), 0)),
    "have": messages.format_down(messages.Have(DIGEST[:16], "07", 4)),
    "done": messages.format_down(messages.Done(DIGEST[:16], DIGEST)),
    "refuse": messages.format_down(messages.Refuse(DIGEST[:16], "GatewayBusy", "later", 5.0)),
    "refuse_for_good": messages.format_down(messages.Refuse(DIGEST[:16], "LateUpdate", "too late", None)),
    "fail": messages.format_fail(messages.Fail("digits.3.dev-1", "BlobMissing", "publish it")),
    "tel": messages.format_telemetry({"rss_peak_kb": 43_000, "import_s": 0.17, "task": "digits.3.dev-1"}),
    "chunk": ck.cut_chunk(bytes(range(256)), 0),
}


@pytest.mark.parametrize("name", sorted(GOLDEN_MESSAGES))
def test_the_bytes_on_the_wire_are_those_of_version_1(name: str) -> None:
    assert GOLDEN_MESSAGES[name] == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "parse", "record"),
    [
        ("gateway", messages.parse_gateway, messages.GatewayState(17, "b00f", "up")),
        (
            "status",
            messages.parse_status,
            messages.Status("b00f", 3, "online", 599, {"isa": "avx2", "cores": 4}),
        ),
        ("task", parse_task, TASK),
        ("task_deltas", parse_task, WITH_DELTAS),
        ("begin", messages.parse_begin, messages.Begin("digits.3.dev-1", DIGEST, 55_560)),
        ("have", messages.parse_down, messages.Have(DIGEST[:16], "07", 4)),
        ("done", messages.parse_down, messages.Done(DIGEST[:16], DIGEST)),
        ("refuse", messages.parse_down, messages.Refuse(DIGEST[:16], "GatewayBusy", "later", 5.0)),
        (
            "refuse_for_good",
            messages.parse_down,
            messages.Refuse(DIGEST[:16], "LateUpdate", "too late", None),
        ),
        ("fail", messages.parse_fail, messages.Fail("digits.3.dev-1", "BlobMissing", "publish it")),
        (
            "tel",
            messages.parse_telemetry,
            {"rss_peak_kb": 43_000, "import_s": 0.17, "task": "digits.3.dev-1"},
        ),
    ],
)
def test_golden_messages_read_as_what_they_say_with_unknown_fields_ignored(
    name: str, parse: Callable[[bytes], object], record: object
) -> None:
    message = json.loads((GOLDEN / name).read_bytes())
    assert parse(json.dumps(message).encode()) == record
    if name != "tel":
        assert parse(json.dumps({**message, "later": [1, {}]}).encode()) == record


def test_a_gateway_says_how_large_an_update_may_come_with_its_offer_and_an_older_one_takes_none() -> None:
    read = messages.parse_gateway((GOLDEN / "gateway_whole").read_bytes())
    assert read.whole_bytes == 16_384
    assert messages.parse_gateway((GOLDEN / "gateway").read_bytes()).whole_bytes == 0


def test_an_offer_and_its_chunk_are_read_apart() -> None:
    begin, chunk = messages.parse_whole((GOLDEN / "whole").read_bytes())
    assert begin == messages.Begin("digits.3.dev-1", DIGEST, 256)
    assert chunk == (GOLDEN / "chunk").read_bytes()


def changed(**fields: object) -> bytes:
    message = json.loads(format_task(TASK))
    for key, value in fields.items():
        if value is ...:
            del message[key]
        else:
            message[key] = value
    return json.dumps(message).encode()


def phase(**fields: object) -> list[object]:
    return [{**asdict(TASK.phases[0]), **fields}]


def delta(**fields: object) -> dict[str, object]:
    return {**asdict(WITH_DELTAS.deltas[0]), **fields}


@pytest.mark.parametrize(
    ("payload", "rule", "said"),
    [
        (b"\xff", fd.BadMessage, "JSON"),
        (b"[]", fd.BadMessage, "object"),
        (b'{"v":1,"v":1}', fd.BadMessage, "twice"),
        (b'{"v":1,"a":"\\ud800"}', fd.BadMessage, "surrogates"),
        (b"{}", fd.MissingField, "v"),
        (b'{"v":0}', fd.BadField, "v"),
        (b'{"v":true}', fd.BadField, "v"),
        (b'{"v":2}', fd.FutureVersion, "2"),
        (b" " * (fd.MAX_MESSAGE_BYTES + 1), fd.MessageTooLarge, "65537"),
        (changed(task=...), fd.MissingField, "task"),
        (changed(upload={"form": "delta", "codec": ["int8"], "exact": []}), fd.BadField, "exact"),
        (changed(upload={"form": "delta", "codec": ["int8"], "exact": [1, 1]}), fd.BadField, "must ascend"),
        (changed(upload={"form": "delta", "codec": ["int8"], "exact": [True]}), fd.BadField, "exact"),
        (changed(upload={"form": "delta", "codec": ["int8"], "exact": [4096]}), fd.BadField, "exact"),
        (changed(task="a/b"), fd.BadField, "a/b"),
        (changed(task="a" * 201), fd.BadField, "task"),
        (changed(job=""), fd.BadField, "job"),
        (changed(round=-1), fd.BadField, "round"),
        (changed(version=1.0), fd.BadField, "version"),
        (changed(device="Dev"), fd.BadField, "device"),
        (changed(weights="ab"), fd.BadField, "weights"),
        (changed(weights=DIGEST), BlobNotListed, DIGEST),
        (changed(blobs={"x": 1}), fd.BadField, "blob"),
        (changed(blobs={DIGEST: (256 << 20) + 1}), fd.BadField, "268435457"),
        (changed(blobs=[]), fd.BadField, "blobs"),
        (changed(classes=0), fd.BadField, "classes"),
        (changed(seed=1 << 64), fd.BadField, "seed"),
        (changed(deadline_s=-1), fd.BadField, "deadline_s"),
        (changed(deadline_s="1"), fd.BadField, "deadline_s"),
        (changed(phases=[]), fd.BadField, "phases"),
        (changed(phases=[1]), fd.BadField, "phase"),
        (changed(phases=phase(epochs=0)), fd.BadField, "epochs"),
        (changed(phases=phase(plan=DIGEST)), BlobNotListed, DIGEST),
        (changed(phases=phase(scalars={"lr": True})), fd.BadField, "lr"),
        (changed(phases=phase(scalars={"lr": 1e39})), fd.BadField, "lr"),
        (changed(phases=phase() * 65), fd.BadField, "phases"),
        (changed(upload={"form": "weights", "codec": ["dense"]}), UnknownForm, "weights"),
        (changed(upload={"form": "delta", "codec": []}), fd.BadField, "codec"),
        (changed(upload={"form": "delta", "codec": [1]}), fd.BadField, "codec"),
        (changed(carry={"run": "0123456789abcdeg"}), fd.BadField, "16 hexadecimal digits"),
        (changed(carry={"counted": "t"}), fd.MissingField, "run"),
        (changed(carry={"run": "0" * 16, "counted": "a b"}), fd.BadField, "counted"),
        (changed(carry={"run": "0" * 16, "counted": "t", "sha256": "0" * 63}), fd.BadField, "sha256"),
        (changed(deltas=[]), fd.BadField, "deltas"),
        (changed(deltas=[delta()] * 17), fd.BadField, "deltas"),
        (changed(deltas=["delta"]), fd.BadField, "every delta must be an object"),
        (changed(deltas=[delta(base="0")]), fd.BadField, "base"),
        (changed(deltas=[delta(blob=None)]), fd.BadField, "blob"),
        (changed(deltas=[delta(bytes=0)]), fd.BadField, "bytes"),
        (changed(deltas=[delta(bytes=1 << 29)]), fd.BadField, "bytes"),
        (changed(deltas=[delta(codec=[])]), fd.BadField, "codec"),
        (changed(deltas=[delta(codec=["x" * 65])]), fd.BadField, "codec"),
        (changed(control={"momentum": 0.9}), fd.BadField, "need `carry`"),
        (changed(control={}, carry={"run": "0" * 16}), fd.MissingField, "momentum"),
        (changed(control={"momentum": 1.0}, carry={"run": "0" * 16}), fd.BadField, "must be below"),
        (changed(control={"momentum": -0.1}, carry={"run": "0" * 16}), fd.BadField, "momentum"),
    ],
)
def test_a_broken_task_is_refused_by_the_rule_it_breaks(payload: bytes, rule: type[RemoteError], said: str) -> None:
    with pytest.raises(rule, match=said):
        parse_task(payload)


def test_the_message_cap_holds_at_the_cap() -> None:
    payload = GOLDEN_MESSAGES["gateway"]
    padded = payload + b" " * (fd.MAX_MESSAGE_BYTES - len(payload))
    assert messages.parse_gateway(padded).epoch == 17
    with pytest.raises(fd.MessageTooLarge):
        messages.parse_gateway(padded + b" ")


def test_a_task_that_would_be_refused_is_not_written() -> None:
    with pytest.raises(fd.BadField, match="device"):
        format_task(replace(TASK, device="No Id"))
    many = tuple(Phase(TASK.phases[0].plan, 1, {f"s{i}-{'x' * 60}": 1.0 for i in range(64)}) for _ in range(32))
    with pytest.raises(fd.MessageTooLarge):
        format_task(replace(TASK, phases=many))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edge/v1/lab",
        "edge/v2/lab/gateway",
        "edge/v1/other/gateway",
        "edge/v1/lab/d/Dev/status",
        "edge/v1/lab/d/a/other",
        "edge/v1/lab/d/a/up/zz/1",
        f"edge/v1/lab/d/a/up/{DIGEST[:16]}/01",
        f"edge/v1/lab/d/a/up/{DIGEST[:16]}/-1",
        f"edge/v1/lab/d/a/up/{DIGEST[:16]}/99999999",
        f"edge/v1/lab/b/{DIGEST}/x",
        "edge/v1/lab/d/a/status/",
        "edge/v1/lab/d/\u0661/status",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(topics.BadTopic):
        topics.parse_topic(SITE, topic)


@pytest.mark.parametrize("name", ["", "A", "a/b", "+", "#", "a" * 65, "-a", "a b", "a\n"])
def test_an_id_that_could_bend_a_topic_is_refused(name: str) -> None:
    with pytest.raises(topics.BadId):
        topics.check_id(name, "device")


def test_long_or_unprintable_texts_are_made_to_fit() -> None:
    fail = messages.parse_fail(messages.format_fail(messages.Fail("t", "Rule", "a\nb" + "x" * 2000)))
    assert fail.message.startswith("a bx")
    assert len(fail.message) == 1000
    assert messages.parse_fail(messages.format_fail(messages.Fail("t", "Rule", "\n"))).message == "?"


@given(st.integers(1, 3 * ck.CHUNK_BYTES), st.randoms())
def test_chunks_in_any_order_give_the_whole(size: int, random: Random) -> None:
    data = blob("data", size)
    assembler = ck.Assembler(sha256(data), size, size)
    order = list(range(ck.chunk_count(size)))
    random.shuffle(order)
    for index in order:
        assert not assembler.complete
        assert assembler.add(index, ck.cut_chunk(data, index))
        assert not assembler.add(index, ck.cut_chunk(data, index))
        have = ck.parse_bitmap(assembler.have().hex(), assembler.chunks)
        assert ck.missing_chunks(have, assembler.chunks, 99) == assembler.missing(99)
    assert assembler.take() == data


def test_an_assembler_takes_no_memory_above_its_cap() -> None:
    ck.Assembler(DIGEST, 10, 10)
    with pytest.raises(ck.BlobTooLarge):
        ck.Assembler(DIGEST, 1 << 60, 1 << 20)


@pytest.mark.parametrize(
    ("index", "payload", "rule"),
    [
        (2, ck.cut_chunk(blob("d", 70_000), 1), ck.BadChunkIndex),
        (-1, b"", ck.BadChunkIndex),
        (1, b"", ck.BadChunk),
        (1, b"\0\0\0", ck.BadChunk),
        (1, ck.cut_chunk(blob("d", 70_000), 0), ck.BadChunk),
        (1, b"\0" + ck.cut_chunk(blob("d", 70_000), 1)[1:], ck.BadChunk),
        (1, ck.cut_chunk(blob("d", 70_000), 1)[:-1], ck.BadChunk),
    ],
)
def test_a_wrong_chunk_is_refused_and_leaves_no_trace(index: int, payload: bytes, rule: type[RemoteError]) -> None:
    assembler = ck.Assembler(sha256(blob("d", 70_000)), 70_000, 70_000)
    with pytest.raises(rule):
        assembler.add(index, payload)
    assert assembler.missing(9) == [0, 1]


def test_a_whole_of_other_bytes_is_not_handed_over() -> None:
    data = blob("d", 70_000)
    assembler = ck.Assembler(DIGEST, 70_000, 70_000)
    for index in (0, 1):
        assembler.add(index, ck.cut_chunk(data, index))
    assert assembler.take() is None
    assert assembler.missing(9) == [0, 1]


@pytest.mark.parametrize("text", ["", "0", "000", "zz", "00 "])
def test_a_bitmap_of_the_wrong_size_or_alphabet_is_refused(text: str) -> None:
    with pytest.raises(ck.BadBitmap):
        ck.parse_bitmap(text, 8)


# Garbage in both sessions, in every state they can be in.

KINDS = ["gateway", "d/a/status", "d/a/task", "d/a/down", "d/a/tel", "d/b/status"]
UPLOADS = [f"d/a/up/{DIGEST[:16]}/{part}" for part in ("begin", "fail", "0", "1", "77")]
TOPICS = st.sampled_from([f"edge/v1/lab/{kind}" for kind in KINDS + UPLOADS] + [f"edge/v1/lab/b/{DIGEST}/0"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["v", "task", "uid", "have", "window", "done", "refuse", "message", "retry_s", "boot", "gen", "state"]
NAMES += ["epoch", "examples", "info", "sha256", "bytes", "chunk_bytes", "rule", "phases", "blobs", "device"]
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=12).map(lambda d: {"v": 1, **d})
PAYLOADS = st.one_of(
    st.binary(max_size=100),
    OBJECTS.map(lambda d: json.dumps(d).encode()),
    st.sampled_from(sorted(GOLDEN_MESSAGES.values())),
    st.tuples(st.sampled_from(sorted(GOLDEN_MESSAGES.values())), st.integers(0, 200), st.integers(0, 255)).map(
        lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :]
    ),
)
Arrived = list[tuple[str, bytes, bool]]
ARRIVED = st.lists(st.tuples(TOPICS | st.text(), PAYLOADS, st.booleans()), max_size=8)


@settings(max_examples=600)
@given(ARRIVED)
def test_garbage_gives_the_gateway_commands_or_warnings_and_nothing_else(
    arrived: Arrived,
) -> None:
    session = GatewaySession(SITE, 1, "boot", judge=lambda *_: None)
    session.connected(0.0)
    for topic, payload, retain in arrived:
        outcomes = session.received(1.0, topic, payload, retain=retain)
        assert all(w.rule and w.message for w in outcomes if isinstance(w, Warned))


@settings(max_examples=600)
@given(arrived=ARRIVED, offering=st.booleans())
def test_garbage_gives_a_device_commands_or_warnings_and_nothing_else(*, arrived: Arrived, offering: bool) -> None:
    key = sha256(format_task(replace(TASK, device="a")))
    session = DeviceSession(SITE, "a", boot="b", outbox=Outbox(key, TASK.task, b"update") if offering else None)
    session.connected(0.0)
    session.subscribed(0.0, (topics.status(SITE, "a"),))
    session.tick(1.0)
    if offering:
        session.received(1.0, topics.task(SITE, "a"), format_task(replace(TASK, device="a")))
    for topic, payload, retain in arrived:
        session.received(1.0, topic, payload, retain=retain)
        session.tick(4.0)


@given(PAYLOADS)
def test_every_parser_raises_remote_errors_only(payload: bytes) -> None:
    for parse in (
        messages.parse_gateway,
        messages.parse_status,
        messages.parse_begin,
        messages.parse_down,
        messages.parse_fail,
        messages.parse_telemetry,
        parse_task,
    ):
        try:
            parse(payload)
        except RemoteError as error:
            str(error).encode("utf-8")


def test_a_message_of_a_later_version_is_ignored_with_a_warning() -> None:
    session = DeviceSession(SITE, "a", boot="b")
    session.connected(0.0)
    session.subscribed(0.0, (topics.status(SITE, "a"),))
    session.tick(1.0)
    later = changed(v=2, device="a")
    (warning,) = session.received(1.0, topics.task(SITE, "a"), later)
    assert isinstance(warning, Warned)
    assert warning.rule == "FutureVersion"
    assert not session.busy


def test_a_task_that_breaks_a_rule_is_answered_with_it() -> None:
    session = DeviceSession(SITE, "a", boot="b")
    session.connected(0.0)
    session.subscribed(0.0, (topics.status(SITE, "a"),))
    session.tick(1.0)
    warning, publish = session.received(1.0, topics.task(SITE, "a"), changed(device="a", classes=0))
    assert warning.rule == "BadField"
    fail = messages.parse_fail(publish.payload)
    assert (fail.task, fail.rule) == (TASK.task, "BadField")
