"""Hostile devices against a running job: all they do is refused by a named rule and counted, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.broker import find_mosquitto
from coordinator.demo import fleet
from edge_runtime import kernels
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire import messages, topics
from edge_runtime.wire.chunks import cut_chunk
from support.fleet import SITE, Federation, digits_federation, write_job
from support.guarded_broker import COORDINATOR, guarded_broker
from support.hostile import EXAMPLES, Hostile, encoded, metadata_of
from support.joined import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.wire import Task

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HONEST = ["dev-0", "dev-1", "dev-2"]
ROUNDS = 6
DEADLINE_S = 90.0
CODED = ["topk 0.1 ef", "fp16", "rice"]

Tensors = dict[str, Any]


# What a device can do to an update. Each is the work of one device, which is asked nothing more after it.


def saying(**changes: str) -> Callable[[Task, Tensors], bytes]:
    return lambda task, tensors: encoded(task, tensors, metadata_of(task, **changes))


def with_value(value: float) -> Callable[[Task, Tensors], bytes]:
    def poison(task: Task, tensors: Tensors) -> bytes:
        first = min(tensors)
        tensors[first].reshape(-1)[0] = value
        return encode_tensors(tensors, metadata_of(task))

    return poison


def reshaped(task: Task, tensors: Tensors) -> bytes:
    first = min(tensors)
    return encode_tensors({**tensors, first: tensors[first].reshape(-1, 1)}, metadata_of(task))


def without_one(task: Task, tensors: Tensors) -> bytes:
    del tensors[min(tensors)]
    return encode_tensors(tensors, metadata_of(task))


def with_one_more(task: Task, tensors: Tensors) -> bytes:
    return encode_tensors({**tensors, "more": np.zeros(3, np.float32)}, metadata_of(task))


def in_float64(task: Task, tensors: Tensors) -> bytes:
    return encode_tensors({name: array.astype(np.float64) for name, array in tensors.items()}, metadata_of(task))


def claiming(header: dict[str, Any], data: bytes = b"") -> Callable[[Task, Tensors], bytes]:
    """A tensor file of a few bytes whose header tells of many."""
    text = json.dumps(header).encode()
    return lambda *_: len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"value": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


def bytes_of(data: bytes) -> Callable[[Task, Tensors], bytes]:
    return lambda *_: data


def changed_entries(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Task, Tensors], bytes]:
    """An honest compressed update with its entries changed."""

    def poison(task: Task, tensors: Tensors) -> bytes:
        entries, metadata = decode_tensors(encoded(task, tensors, metadata_of(task)))
        return encode_tensors(change(entries), metadata)

    return poison


def all_places(entries: dict[str, Any]) -> dict[str, Any]:
    """A stream of a few bytes that stands for every place there is: a bomb, with the honest number of values."""
    stream = np.frombuffer(kernels.encode_indices(np.arange(5000, dtype=np.int32), 1 << 20), np.uint8)
    return {**entries, "place": stream}


def noise_places(entries: dict[str, Any]) -> dict[str, Any]:
    return {**entries, "place": np.random.default_rng(2).integers(0, 256, entries["place"].size).astype(np.uint8)}


def nan_values(entries: dict[str, Any]) -> dict[str, Any]:
    value = entries["value"].copy()
    value[0] = np.nan
    return {**entries, "value": value}


ANY_CODEC: dict[str, tuple[Callable[[Task, Tensors], bytes], str]] = {
    "other-job": (saying(job="other"), "WrongTask"),
    "forged-device": (saying(device="dev-0"), "WrongTask"),
    "older-version": (saying(version="0"), "WrongTask"),
    "many-examples": (saying(examples=str(EXAMPLES + 1)), "TooManyExamples"),
    "no-examples": (saying(examples="0"), "BadCount"),
    "nan-loss": (saying(loss="nan"), "BadCount"),
    "huge-shape": (claiming(entry([1 << 40, 1 << 40], [0, 4])), "BadShape"),
    "big-claim": (claiming(entry([1 << 40], [0, 4]), b"1234"), "SizeMismatch"),
    "no-data": (claiming(entry([1 << 40], [0, 1 << 42])), "BadOffsets"),
    "long-header": (bytes_of((1 << 62).to_bytes(8, "little") + b"{}"), "HeaderTooLarge"),
    "cut-header": (bytes_of((1 << 19).to_bytes(8, "little") + b"{}"), "Truncated"),
    "no-json": (bytes_of((4).to_bytes(8, "little") + b"{[}]"), "BadHeader"),
}
DENSE = {
    "nan": (with_value(np.nan), "NonFinite"),
    "infinity": (with_value(-np.inf), "NonFinite"),
    "reshaped": (reshaped, "WrongTensors"),
    "one-less": (without_one, "WrongTensors"),
    "one-more": (with_one_more, "WrongTensors"),
    "float64": (in_float64, "WrongTensors"),
}
COMPRESSED = {
    "place-bomb": (changed_entries(all_places), "BadUpdate"),
    "place-noise": (changed_entries(noise_places), "BadUpdate"),
    "nan": (changed_entries(nan_values), "NonFinite"),
    "no-place": (changed_entries(lambda entries: {"value": entries["value"]}), "BadUpdate"),
    "fewer-values": (changed_entries(lambda entries: {**entries, "value": entries["value"][:-1]}), "BadUpdate"),
}


class Site(Federation):
    """A federation on a broker with logins, its coordinator with metrics."""

    urls: Callable[[str], str]

    def start_coordinator(self) -> None:
        command = [sys.executable, "-m", "edge_runtime", "coordinator", "--events", "--metrics", "127.0.0.1:0"]
        command += ["--job", str(self.root / "job.toml"), "--state", str(self.root / "coordinator")]
        command += ["--broker", self.urls(COORDINATOR), "--site", SITE]
        with (self.root / "coordinator.log").open("ab") as log:
            self.coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        self.reader = fleet.EventReader(self.coordinator)

    def start_device(self, name: str) -> None:
        self.devices[name] = fleet.start_device(name, self.root, self.urls(name), SITE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes federations of the honest devices and so many others, each on a broker of its own."""
    with ExitStack() as stack:

        def make(name: str, kind: str, hostile: list[str], codec: list[str]) -> Site:
            root = tmp_path / name
            urls = stack.enter_context(guarded_broker(root / "guarded", [*HONEST, *hostile], kind))
            made = digits_federation(root, kind="embedded", devices=len(HONEST), rounds=ROUNDS, codec=codec)
            made.broker.stop()
            asked = len(HONEST) + len([name for name in hostile if name != "late"])
            write_job(root, devices=asked, min_updates=len(HONEST), rounds=ROUNDS, codec=codec)
            federation = Site(root, made.broker, made.names)
            federation.urls = urls
            stack.callback(federation.stop)
            return federation

        yield make


def counters(url: str) -> dict[str, dict[str, float]]:
    """Every counter that has a rule, by its name: {rule: count}."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()  # noqa: S310  http, on this machine
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "rule" in sample.labels and sample.name.endswith("_total"):
                found.setdefault(family.name, {})[sample.labels["rule"]] = sample.value
    return found


def pump(devices: list[Hostile], until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < end, f"no {what} in {DEADLINE_S} s"
        for each in devices:
            each.turn()


def pump_until_counted(devices: list[Hostile], url: str, expected: dict[str, dict[str, float]]) -> None:
    end = time.monotonic() + DEADLINE_S
    while (found := counters(url)) != expected:
        assert time.monotonic() < end, f"counted {found}, not {expected}"
        for each in devices:
            each.turn()


def spam(mallory: Hostile) -> dict[str, int]:
    """Messages that break a rule each, from a device that may publish under its own name; how often each rule."""
    uid = "0" * 16

    def to(part: str | int, of: str = uid) -> str:
        return topics.upload(SITE, mallory.name, of, part)

    begin = json.loads(messages.format_begin(messages.Begin("t", "0" * 64, 10)))
    tel = topics.telemetry(SITE, mallory.name)
    shots = [
        ("BadTopic", to("begin", "XYZ"), b"{}"),
        ("BadTopic", to("-1"), b"x"),
        ("BadTopic", to("99999999"), b"x"),
        ("BadTopic", to("nonsense"), b"x"),
        ("BadMessage", to("begin"), b"\xff\xfe"),
        ("BadMessage", to("begin"), b"[1]"),
        ("BadMessage", to("begin"), b"[" * 60_000),
        ("BadMessage", to("begin"), b'{"v":1,"v":1}'),
        ("BadMessage", to("fail"), b'{"v":1,"task":NaN}'),
        ("MissingField", to("begin"), b'{"v":1}'),
        ("MissingField", to("begin"), b"{}"),
        ("BadField", to("begin"), json.dumps({**begin, "bytes": 1 << 62}).encode()),
        ("BadField", to("begin"), json.dumps({**begin, "bytes": -1}).encode()),
        ("BadField", to("begin"), json.dumps({**begin, "sha256": "xyz"}).encode()),
        ("BadField", to("begin"), json.dumps({**begin, "chunk_bytes": 1}).encode()),
        ("BadUid", to("begin"), json.dumps({**begin, "sha256": "1" * 64}).encode()),
        ("FutureVersion", to("begin"), json.dumps({**begin, "v": 2}).encode()),
        ("MessageTooLarge", to("begin"), b" " * 65_537),
        ("BadMessage", tel, b'{"v":1,"rss_peak_kb":Infinity}'),
        ("BadField", tel, json.dumps({"v": 1, **{f"m{i}": i for i in range(1000)}}).encode()),
        ("BadField", topics.status(SITE, mallory.name), b'{"v":1,"boot":"b","gen":-1,"state":"online"}'),
    ]
    expected: dict[str, int] = {}
    for rule, topic, payload in shots:
        mallory.publish(topic, payload)
        expected[rule] = expected.get(rule, 0) + 1
    # A chunk of an upload that nobody has begun is a stray, not a broken rule.
    mallory.publish(to(0), b"stray")
    return expected


def forge(mallory: Hostile) -> None:
    """What the broker's access list keeps from others: none of it may have any effect."""
    uid, begin = "0" * 16, messages.format_begin(messages.Begin("digits.1.dev-0", "0" * 64, 10))
    for topic, payload in [
        (topics.status(SITE, "dev-0"), b'{"v":1,"boot":"f","gen":99,"state":"stopped","examples":1,"info":{}}'),
        (topics.upload(SITE, "dev-0", uid, "begin"), begin),
        (topics.upload(SITE, "dev-0", uid, "fail"), b'{"v":1,"task":"digits.1.dev-0","rule":"Forged","message":"m"}'),
        (topics.down(SITE, "dev-1"), messages.format_down(messages.Refuse(uid, "Forged", "m", None))),
        (topics.task(SITE, "dev-1"), b""),
        (topics.gateway(SITE), b'{"v":1,"epoch":0,"boot":"f","state":"up"}'),
    ]:
        mallory.publish(topic, payload, retain=topic.endswith(("status", "task", "gateway")))


def offers(mallory: Hostile, task: Task) -> dict[str, int]:
    """Offers that are refused before a byte is sent: oversize, another device's task, one of another job."""
    shots = [
        ("UpdateTooLarge", messages.Begin(task.task, "a" * 64, 200 << 20)),
        ("UnknownTask", messages.Begin("digits.1.dev-0", "b" * 64, 1000)),
        ("UnknownTask", messages.Begin("other.1." + mallory.name, "c" * 64, 1000)),
    ]
    expected: dict[str, int] = {}
    for rule, begin in shots:
        mallory.publish(topics.upload(SITE, mallory.name, begin.sha256[:16], "begin"), messages.format_begin(begin))
        expected[rule] = expected.get(rule, 0) + 1
    return expected


def wrong_bytes(mallory: Hostile, task: Task) -> tuple[dict[str, int], dict[str, int]]:
    """An upload whose chunks break rules, and then three times do not give the SHA-256 that was announced."""
    data, announced = bytes(100), sha256(b"something else")
    uid = announced[:16]
    begin = messages.format_begin(messages.Begin(task.task, announced, len(data)))
    mallory.publish(topics.upload(SITE, mallory.name, uid, "begin"), begin)
    good = cut_chunk(data, 0)
    for index, payload in [(0, good[:-1]), (0, good[:-1] + b"\x01"), (7, good), (0, b""), (0, bytes(200_000))]:
        mallory.publish(topics.upload(SITE, mallory.name, uid, index), payload)
    for _ in range(3):
        mallory.publish(topics.upload(SITE, mallory.name, uid, 0), good)
    return {"ChecksumMismatch": 1}, {"BadChunk": 4, "BadChunkIndex": 1}


def replays(mallory: Hostile, other: Hostile) -> dict[str, int]:
    """Another device's update under one's own name, and one more offer for a task that is over."""
    assert other.task is not None
    for device, digest, size in [(mallory, sha256(other.update), len(other.update)), (other, "d" * 64, 99)]:
        begin = messages.format_begin(messages.Begin(other.task.task, digest, size))
        device.publish(topics.upload(SITE, device.name, digest[:16], "begin"), begin)
    return {"UnknownTask": 2}


def give_up(mallory: Hostile, task: Task) -> None:
    """Until here its open task has held the round, and with it the figures."""
    fail = messages.format_fail(messages.Fail(task.task, "GivenUp", "the test wants it"))
    mallory.publish(topics.upload(SITE, mallory.name, "e" * 16, "fail"), fail)


def added(*counts: dict[str, int]) -> dict[str, float]:
    rules = {rule for each in counts for rule in each}
    return {rule: float(sum(each.get(rule, 0) for each in counts)) for rule in rules}


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        pytest.param(
            "mosquitto",
            ["dense"],
            marks=pytest.mark.skipif(
                find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"
            ),
        ),
        ("embedded", CODED),
    ],
)
def test_hostile_devices_change_nothing_and_every_attack_is_counted_under_its_rule(
    site: Callable[..., Site], kind: str, codec: list[str]
) -> None:
    attacks = {**ANY_CODEC, **(DENSE if codec == ["dense"] else COMPRESSED)}
    alone = site("alone", kind, [], codec)
    alone.start()
    undisturbed = alone.until_done()
    federation = site("attacked", kind, [*attacks, "mallory", "late"], codec)
    federation.start_coordinator()
    url = federation.until(lambda e: e["event"] == "listening", "start")["metrics"]
    devices = [Hostile(federation.urls(name), SITE, name, poison) for name, (poison, _) in attacks.items()]
    mallory = Hostile(federation.urls("mallory"), SITE, "mallory", lambda *_: b"")
    everybody = [*devices, mallory]
    with ExitStack() as stack:
        for each in everybody:
            stack.callback(each.link.close)
        pump(everybody, lambda: mallory.session.online and mallory.sees_gateway, "link")
        ignored = spam(mallory)
        forge(mallory)
        for name in HONEST:
            federation.start_device(name)
        pump(everybody, lambda: all(each.settled for each in devices) and mallory.task is not None, "answers")
        assert mallory.task is not None
        told = {each.name: each.settled[0].rule for each in devices}
        assert told == {name: rule for name, (_, rule) in attacks.items()}
        refused = [{rule: 1} for rule in told.values()]
        refused += [offers(mallory, mallory.task), replays(mallory, devices[0])]
        mismatch, chunks = wrong_bytes(mallory, mallory.task)
        expected = {"edge_updates_refused": added(*refused, mismatch), "edge_messages_ignored": added(ignored, chunks)}
        pump_until_counted(everybody, url, expected)
        late = Hostile(federation.urls("late"), SITE, "late", lambda *_: b"")
        stack.callback(late.link.close)
        everybody.append(late)
        pump(everybody, lambda: late.session.online, "link of a device that takes part from the next round")
        give_up(mallory, mallory.task)
        pump(everybody, lambda: late.task is not None, "second round")
        stale = [replays(mallory, devices[0]), replays(late, devices[1])]
        expected["edge_updates_refused"] = added(*refused, mismatch, *stale)
        expected["edge_tasks_failed"] = {"GivenUp": 1.0}
        pump_until_counted(everybody, url, expected)
        assert late.task is not None
        give_up(late, late.task)
        pump(everybody, lambda: counters(url)["edge_tasks_failed"] == {"GivenUp": 2.0}, "end of the second round")
        done = federation.until_done()
    assert done["model_sha256"] == undisturbed["model_sha256"]
    assert [e["devices"] for e in federation.seen if e["event"] == "round_done"] == [len(HONEST)] * ROUNDS
    assert done["rss_peak_mb"] < undisturbed["rss_peak_mb"] + 32, "what updates claim to be takes no memory"
