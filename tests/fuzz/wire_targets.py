"""Every decoder that bytes from a network reach, with valid inputs to be broken."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator import mqtt
from coordinator.broker import packets
from coordinator.broker.parser import Parser
from coordinator.updates import check_update
from edge_runtime import kernels
from edge_runtime.codecs import find_codec
from edge_runtime.deltas import CHANGED, apply_delta, write_delta
from edge_runtime.errors import RemoteError
from edge_runtime.plan import CHECK_BYTES, FILE_BYTES_FIELD, PlanError, read_plan
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire import DeviceSession, messages, topics
from edge_runtime.wire.chunks import Assembler, cut_chunk, parse_bitmap
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.tasks import Task, Upload, format_task, parse_task
from models.compiler import compile_training, import_onnx
from models.zoo import MODELS
from support.codecs import PIPELINES, SHAPES, tree
from support.joined import SITE, blob, make_task, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEVICE = "dev-1"
PACKET_BYTES = 4096
BLOB = blob("plan", 700)


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes:
        name: For the report.
        seeds: Valid inputs.
        feed: Takes an input; what it raises for a broken one is in `errors`.
        errors: The only exceptions that may come out of it.
        bytes_more: Memory it may take beside 64 times the input.
        mended: Puts check sums right after a mutation, so that what lies behind them is reached too.
    """

    name: str
    seeds: tuple[bytes, ...]
    feed: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (RemoteError,)
    bytes_more: int = 1 << 20
    mended: Callable[[bytes], bytes] = bytes


def targets() -> list[Target]:
    """All of them; building takes some seconds, for a plan is compiled."""
    return [*_control(), *_sessions(), *_blobs(), *_updates(), *_streams(), *_packets()]


# Control messages, with and without their check sum.


def _control() -> Iterable[Target]:
    begin = messages.Begin("job.1.dev-1", sha256(BLOB), len(BLOB))
    down = (
        messages.Have("0" * 16, "ff00", 4),
        messages.Done("0" * 16, "a" * 64),
        messages.Refuse("0" * 16, "GatewayBusy", "come back later", 5.0),
    )
    status = messages.Status("boot", 3, "online", 100, {"cpu": "x", "x_shape": [1, 8, 8]})
    tel = {"rss_peak_kb": 3000, "import_s": 0.25, "task": "t"}
    kinds: list[tuple[str, Callable[[bytes], object], list[bytes]]] = [
        ("gateway", messages.parse_gateway, [messages.format_gateway(messages.GatewayState(3, "boot", "up"))]),
        ("status", messages.parse_status, [messages.format_status(status)]),
        ("begin", messages.parse_begin, [messages.format_begin(begin)]),
        ("down", messages.parse_down, [messages.format_down(each) for each in down]),
        ("fail", messages.parse_fail, [messages.format_fail(messages.Fail("t", "R", "why"))]),
        ("telemetry", messages.parse_telemetry, [messages.format_telemetry(tel)]),
        ("task", parse_task, [format_task(_task())]),
    ]
    for name, parse, seeds in kinds:
        yield Target(name, (*seeds, *map(unsealed, seeds)), parse)
    wholes = (messages.format_whole(begin, cut_chunk(BLOB, 0)), unsealed(messages.format_begin(begin)) + b"\0" + BLOB)
    yield Target("whole", wholes, messages.parse_whole)
    lines = (topics.status(SITE, DEVICE), topics.upload(SITE, DEVICE, "0" * 16, 3), topics.chunk(SITE, "a" * 64, 7))
    yield Target("topic", tuple(each.encode() for each in lines), lambda data: topics.parse_topic(SITE, _text(data)))
    yield Target("bitmap", (b"ff00", b"0100"), lambda data: parse_bitmap(_text(data), 9))


def unsealed(message: bytes) -> bytes:
    """The message as an older end writes it, without a check sum, so that a mutation reaches its fields."""
    fields = json.loads(message)
    fields.pop("crc", None)
    return json.dumps(fields, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _task(stages: tuple[str, ...] = ("dense",)) -> Task:
    return replace(make_task("job.1.dev-1", DEVICE, BLOB, BLOB + b"w"), upload=Upload(codec=stages))


# Whole sessions: an input is a topic, a zero byte, and a payload; whatever it is, the answer is a list.


def _sessions() -> Iterable[Target]:
    task, uid = _task(), sha256(BLOB)[:16]
    begin = unsealed(messages.format_begin(messages.Begin(task.task, sha256(BLOB), len(BLOB))))
    up = [
        (topics.status(SITE, DEVICE), b'{"v":1,"boot":"b","gen":1,"state":"online","examples":5,"info":{}}'),
        (topics.upload(SITE, DEVICE, uid, "begin"), begin),
        (topics.upload(SITE, DEVICE, uid, "whole"), begin + b"\0" + cut_chunk(BLOB, 0)),
        (topics.upload(SITE, DEVICE, uid, 0), cut_chunk(BLOB, 0)),
        (topics.upload(SITE, DEVICE, uid, "fail"), b'{"v":1,"task":"job.1.dev-1","rule":"R","message":"m"}'),
        (topics.telemetry(SITE, DEVICE), b'{"v":1,"rss_peak_kb":1}'),
        (topics.gateway(SITE), b'{"v":1,"epoch":9,"boot":"b","state":"up"}'),
    ]
    down = [
        (topics.task(SITE, DEVICE), unsealed(format_task(task))),
        (topics.down(SITE, DEVICE), b'{"v":1,"uid":"' + uid.encode() + b'","have":"00","window":4}'),
        (topics.chunk(SITE, sha256(BLOB), 0), cut_chunk(BLOB, 0)),
        (topics.gateway(SITE), b'{"v":1,"epoch":9,"boot":"b","state":"up"}'),
        (topics.status(SITE, DEVICE), b'{"v":1,"boot":"c","gen":9,"state":"online","examples":5,"info":{}}'),
    ]
    for name, exchanged, feed in (("gateway session", up, _to_gateway), ("device session", down, _to_device)):
        yield Target(name, tuple(topic.encode() + b"\0" + payload for topic, payload in exchanged), feed, errors=())


def _to_gateway(data: bytes) -> object:
    session = GatewaySession(SITE, 10, "boot", max_update_bytes=1 << 16, budget_bytes=1 << 17)
    session.connected(0.0)
    session.send_task(DEVICE, _task(), {sha256(BLOB): BLOB, sha256(BLOB + b"w"): BLOB + b"w"})
    uid, begin = sha256(BLOB)[:16], messages.Begin("job.1.dev-1", sha256(BLOB), len(BLOB))
    session.received(0.0, topics.upload(SITE, DEVICE, uid, "begin"), messages.format_begin(begin))
    topic, _, payload = data.partition(b"\0")
    outcomes = session.received(1.0, _text(topic), payload)
    assert session.open_bytes <= 1 << 17
    return outcomes


def _to_device(data: bytes) -> object:
    session = DeviceSession(SITE, DEVICE, boot="b", stored_gen=0, examples=5, cached=lambda _: False)
    session.connected(0.0)
    session.subscribed(0.0, (topics.status(SITE, DEVICE),))
    session.tick(1.0)
    session.received(1.0, topics.task(SITE, DEVICE), format_task(_task()))
    topic, _, payload = data.partition(b"\0")
    return session.received(2.0, _text(topic), payload)


# Blobs.


def _blobs() -> Iterable[Target]:
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float32)}
    yield Target("tensors", (encode_tensors(weights, {"k": "v"}), encode_tensors({})), decode_tensors)
    exact = write_delta({"b": np.ones(4, np.float32)}, [], b"")
    stages = ("topk 0.5", "fp16", "rice")
    coded = write_delta({}, ["a"], find_codec(stages).encode({"a": weights["a"]}, {"task": "t"}, {}))
    yield Target("delta", (exact,), lambda data: apply_delta(weights, data, CHANGED))
    yield Target("coded delta", (coded, exact), lambda data: apply_delta(weights, data, stages))
    plan = compile_training(import_onnx(MODELS["mlp"]((6,), 3, 1), batch=2)).plan
    yield Target("plan", (plan,), read_plan, errors=(PlanError,), bytes_more=1 << 24, mended=_mended_plan)
    chunk = cut_chunk(BLOB, 0)
    yield Target("chunk", (chunk,), lambda data: Assembler(sha256(BLOB), len(BLOB), 1 << 20).add(0, data))


def _mended_plan(data: bytes) -> bytes:
    if len(data) < FILE_BYTES_FIELD.stop + CHECK_BYTES:
        return data
    announced = len(data).to_bytes(8, "little")
    body = data[: FILE_BYTES_FIELD.start] + announced + data[FILE_BYTES_FIELD.stop : -CHECK_BYTES]
    return body + hashlib.sha256(body).digest()


# Updates, through all that a coordinator does with them before it journals one.


def _updates() -> Iterable[Target]:
    layout = kernels.Layout(SHAPES)
    for number, stages in enumerate(PIPELINES):
        task = _task(stages)
        names = {"task": task.task, "job": task.job, "round": "1", "version": "1", "device": DEVICE}
        metadata = {**names, "examples": "5", "steps": "2", "loss": "0.5"}
        seed = find_codec(stages).encode(tree(number), metadata, {})
        feed = partial(check_update, task=task, layout=layout, announced_examples=5)
        yield Target(f"update {' | '.join(stages)}", (seed,), feed)


# Streams of the entropy coders by themselves.


def _streams() -> Iterable[Target]:
    rng = np.random.default_rng(1)
    places = np.flatnonzero(rng.random(5000) < 0.05).astype(np.int32)
    errors: tuple[type[Exception], ...] = (kernels.StreamError,)
    yield Target(
        "gaps",
        (kernels.encode_indices(places, 5000), kernels.encode_indices(places[:0], 5000)),
        lambda data: kernels.decode_indices(data, 5000, 2500),
        errors,
    )
    cdf = kernels.quantized_cdf(np.full(17, 1 / 17))[None]
    tables = kernels.RansTables(cdf, np.array([cdf.size], np.int32), np.array([-8], np.int32))
    symbols = rng.integers(-12, 12, 400).astype(np.int32)
    indexes = np.zeros(400, np.int32)
    stream = kernels.rans_encode(symbols, tables, indexes)
    yield Target("rans", (stream,), lambda data: kernels.rans_decode(data, tables, indexes), errors)


# Packets of MQTT, as the link and the embedded broker read them.


def _packets() -> Iterable[Target]:
    publish = mqtt.publish_head("edge/v1/lab/gateway", 5, 7, retain=True) + b"hello"
    to_client = (publish, b"\x20\x02\x00\x00" + publish, b"\x90\x03\x00\x01\x01\xd0\x00\x40\x02\x00\x07")
    yield Target("link packets", to_client, _to_reader)
    to_broker = (
        mqtt.connect("client", 30, ("will", b"gone"), None) + mqtt.subscribe(1, ("a/+", "b"), 1) + publish,
        mqtt.unsubscribe(2, ("a/+",)) + b"\xc0\x00\xe0\x00",
    )
    yield Target("broker packets", to_broker, _to_parser, errors=(packets.MalformedPacket,))


def _to_reader(data: bytes) -> object:
    reader, found = mqtt.Reader(64, PACKET_BYTES), []
    while data:
        space = reader.space()
        part = data[: min(len(space), 50)]
        space[: len(part)] = part
        found += reader.filled(len(part))
        data = data[len(part) :]
    return found


def _to_parser(data: bytes) -> Any:
    return list(Parser(PACKET_BYTES).feed(data))
