"""The board's client: sockets, clock, disk, signals and one training thread around a DeviceSession."""

import ctypes
import gc
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from edge_runtime import light_imports  # noqa: F401 before anything that imports paho or hashlib
from edge_runtime.board import describe_board, memory_peak_kb
from edge_runtime.client_config import ClientConfig, read_config
from edge_runtime.client_log import Log, make_log
from edge_runtime.data import Dataset, load_dataset
from edge_runtime.errors import EdgeError, RemoteError
from edge_runtime.features import Place
from edge_runtime.link import Connected, Disconnected, Link, LinkEvent, Message, Refused, Subscribed
from edge_runtime.sending import send
from edge_runtime.slots import SLOTS_NAME, Slots
from edge_runtime.state_directory import StateDirectory
from edge_runtime.trainer import Failure, Job, Result, Trainer, Unusable
from edge_runtime.weights_cache import WeightsCache
from edge_runtime.wire import (
    AbandonTask,
    DeviceCommand,
    DeviceSession,
    KeepGen,
    Publish,
    PublishChunk,
    RenewWill,
    RunTask,
    Stop,
    StoreBlob,
    StoreUpdate,
    Subscribe,
    Unsubscribe,
    UpdateSettled,
    Warned,
)
from edge_runtime.wire.tasks import MAX_BLOB_BYTES
from edge_runtime.wire.topics import parse_topic

__all__ = ["main"]

EXIT_OK, EXIT_BAD_INPUT, EXIT_DUPLICATE = 0, 2, 3

# How often the session hears the time: fine enough for its 0.3 s and 2 s, and seldom when nothing is going on.
TICK_S = 0.1
IDLE_TICK_S = 1.0
STOP_S = 0.8


class Client:
    """One running client: the parts it joins, the blobs of the task to come, and what it counts."""

    def __init__(self, config: ClientConfig, state: StateDirectory, dataset: Dataset, log: Log) -> None:
        """Put the parts together; nothing is connected yet."""
        limit = None if config.memory_limit_mb is None else config.memory_limit_mb << 20
        boot = os.urandom(8).hex()
        self._log = log
        self._state = state
        self._examples = len(dataset)
        self._blobs: dict[str, bytes] = {}
        self._exit: int | None = None
        self._waiting: deque[Publish] = deque()
        self._tasks = 0
        self._train_s = 0.0
        self._import_s = 0.0
        self._weights = WeightsCache(config.state / "weights", self._disk_trouble)
        self._session = DeviceSession(
            config.site,
            config.device,
            boot=boot,
            stored_gen=state.gen(),
            examples=len(dataset),
            info=describe_board() | _describe_data(dataset),
            cached=lambda sha256: sha256 in self._blobs or self._weights.has(sha256) or state.has_plan(sha256),
            open_sink=self._weights.open_sink,
            outbox=state.outbox(len(dataset)),
            max_blob_bytes=MAX_BLOB_BYTES if limit is None else min(limit, MAX_BLOB_BYTES),
        )
        self._link = Link(config.broker, f"{config.device}-{boot}", self._session.will(), config.keepalive_s)
        place = Place(config.state / "features", config.feature_cache_mb << 20)
        slots = Slots(config.state / SLOTS_NAME)
        self._trainer = Trainer(dataset, config.threads, limit, self._link.wake, self._weights, place, slots)

    def stop(self, code: int = EXIT_OK) -> None:
        """End run() as soon as possible; safe in a signal handler."""
        self._exit = code if self._exit is None else self._exit
        self._link.wake()

    def run(self, import_s: float) -> int:
        """Work until stop(); returns the exit code."""
        self._import_s = import_s
        while self._exit is None:
            idle = self._session.online and not self._session.busy
            self._take_events(IDLE_TICK_S if idle else TICK_S)
            self._take_results()
            self._do(self._session.tick(time.monotonic()))
            self._send_waiting()
            self._write_slots()
            if troubles := self._state.troubles():
                self._disk_trouble("; ".join(troubles))
            if not self._session.busy:
                self._blobs.clear()  # of a task that was withdrawn before all of them had come
        return self._leave(self._exit)

    def _write_slots(self) -> None:
        try:
            self._trainer.write_slots(time.monotonic())
        except OSError as error:
            self._disk_trouble(f"what the last update left out is still in memory alone: {error.strerror}")

    # Not in run(), where the names would keep the last event, a chunk maybe, while the next one is read, and a result,
    # and so its update, all through the next task.

    def _take_events(self, timeout_s: float) -> None:
        for event in self._link.poll(timeout_s):
            self._do(self._on_link(event))

    def _take_results(self) -> None:
        for result in self._trainer.results():
            self._do(self._on_result(result))

    def _leave(self, code: int) -> int:
        stopped = self._trainer.finish(STOP_S)
        self._waiting.clear()
        self._do(self._session.stopping())
        self._link.close()
        try:
            self._state.keep_summary(self._measured() | {"tasks": self._tasks, "train_s": self._train_s})
        except OSError as error:
            self._disk_trouble(str(error))
        self._log("stopped", code=code, tasks=self._tasks)
        if not stopped:
            # A daemon thread inside the engine cannot be unwound when the interpreter goes down; nothing is lost, for
            # whatever it would give is asked for again.
            sys.stderr.flush()
            os._exit(code)
        return code

    def _measured(self) -> dict[str, int | float | str]:
        return {
            "rss_peak_kb": memory_peak_kb(),
            "import_s": self._import_s,
            "bytes_up": self._link.bytes_up,
            "bytes_down": self._link.bytes_down,
        }

    def _on_link(self, event: LinkEvent) -> list[DeviceCommand]:
        now = time.monotonic()
        match event:
            case Message(topic, payload, retain):
                return self._session.received(now, topic, payload, retain=retain)
            case Connected():
                self._log("connected")
                return self._session.connected(now)
            case Subscribed(topics, refused):
                if refused:
                    self._on_refused(refused[0])
                return self._session.subscribed(now, topics)
            case Disconnected(reason, retry_s):
                self._waiting.clear()
                self._log("not connected", reason=reason, retry_s=retry_s)
                return self._session.disconnected(now)
            case Refused(code, reason):
                self._log("error", rule="BrokerRefused", code=code, message=reason)
        return []

    def _on_refused(self, topic: str) -> None:
        self._log("error", rule="SubscriptionRefused", message=f"the broker does not allow to subscribe to {topic}")
        # Without a blob one task fails, and the coordinator is told; without the rest nobody would ever know.
        if parse_topic(self._session.site, topic).kind != "blob":
            self._link.give_up(f"it does not allow to subscribe to {topic}")

    def _on_result(self, result: Result) -> list[DeviceCommand]:
        now = time.monotonic()
        self._train_s += result.train_s
        for message in result.warnings:
            self._disk_trouble(message)
        match result.outcome:
            case Failure(rule, message, trace):
                self._log("task failed", task=result.task, rule=rule, message=message)
                sys.stderr.write(trace)
                return [*self._session.failed(now, result.key, rule, message), *self._telemetry(result)]
            case Unusable(message):
                return self._session.unusable(now, result.key, message)
            case update:
                self._tasks += 1
                self._log(
                    "task done",
                    task=result.task,
                    loss=update.loss,
                    steps=update.steps,
                    seconds=result.train_s,
                    bytes=len(update.data),
                )
                return [*self._session.finished(now, result.key, update.data), *self._telemetry(result)]

    def _telemetry(self, result: Result) -> list[DeviceCommand]:
        return self._session.telemetry(self._measured() | {"train_s": result.train_s, "task": result.task})

    def _do(self, commands: list[DeviceCommand]) -> None:
        for command in commands:
            self._do_one(command)

    def _do_one(self, command: DeviceCommand) -> None:
        match command:
            case Publish():
                self._waiting.append(command)
                self._send_waiting()
            case Subscribe() | Unsubscribe():
                send(self._link, command)
            case RenewWill():
                self._link.set_will(self._session.will())
                self._link.reconnect()
            case RunTask(_, task):
                self._log("task", task=task.task, round=task.round, deltas=len(command.deltas))
                self._run_task(command)
            case AbandonTask():
                self._log("task withdrawn")
                self._trainer.abandon()
            case UpdateSettled(_, task, outcome, rule, message):
                self._settle(task, outcome, rule, message)
            case Stop(rule, message):
                self._log("error", rule=rule, message=message)
                self.stop(EXIT_DUPLICATE)
            case Warned(source, rule, message):
                self._log("warning", source=source, rule=rule, message=message)
            case KeepGen() | StoreBlob() | StoreUpdate():
                self._keep(command)

    def _send_waiting(self) -> None:
        """Hand over what waits, in order; a chunk once those before it are sent, so that one is in memory."""
        while self._waiting and not (isinstance(self._waiting[0], PublishChunk) and self._link.congested()):
            try:
                send(self._link, self._waiting.popleft())
            except RemoteError as error:
                self._do(self._session.unreadable(time.monotonic(), error))

    def _keep(self, command: KeepGen | StoreBlob | StoreUpdate) -> None:
        # A full disk costs the cache and the outbox, not the work: the task can still be done from memory.
        try:
            match command:
                case KeepGen(gen):
                    self._state.keep_gen(gen)
                case StoreUpdate(key, task, data):
                    self._session.stored(key, self._state.keep_update(key, task, data, self._examples))
                case StoreBlob(sha256, data, is_plan) if data is not None:
                    self._blobs[sha256] = data
                    if is_plan:
                        self._state.keep_plan(sha256, data)
        except OSError as error:
            self._disk_trouble(str(error))

    def _run_task(self, command: RunTask) -> None:
        needed = [*command.task.blobs, *(delta.blob for delta in command.deltas)]
        blobs = {sha256: self._blobs.get(sha256) or self._state.plan(sha256) for sha256 in needed}
        self._blobs.clear()
        present = {sha256: data for sha256, data in blobs.items() if data is not None}
        deltas = command.deltas
        self._weights.retain({command.task.weights, *(each.base for each in deltas), *(each.blob for each in deltas)})
        self._trainer.start(Job(command.key, command.task, present, deltas))

    def _disk_trouble(self, message: str) -> None:
        self._log("warning", source="disk", rule="StateUnusable", message=message)

    def _settle(self, task: str, outcome: str, rule: str, message: str) -> None:
        if outcome == "done":
            self._log("update accepted", task=task)
            return
        self._log("update refused", task=task, rule=rule, message=message)
        try:
            self._state.drop_update()
        except OSError as error:
            self._disk_trouble(str(error))


def main(argv: list[str] | None = None) -> int:
    """Run a client until SIGTERM or SIGINT.

    Args:
        argv: Without the verb; None for the process's own.

    Returns:
        0 after a clean stop, 2 for bad input, 3 when another device is on line under this id.
    """
    import_s = time.process_time()
    _keep_one_heap()
    _collect_often()
    try:
        config = _parse(argv)
        dataset = load_dataset(config.data)
        state = StateDirectory(config.state, config.cache_mb << 20)
    except EdgeError as error:
        sys.stderr.write(f"edge-runtime client: {error.rule}: {error}\n")
        return EXIT_BAD_INPUT
    log = make_log(config.device, as_json=config.log_json)
    log("ready", examples=len(dataset), x=f"{dataset.x.dtype}{list(dataset.x.shape[1:])}", import_s=import_s)
    client = Client(config, state, dataset, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: client.stop())
    return client.run(import_s)


def _parse(argv: list[str] | None) -> ClientConfig:
    words = sys.argv[1:] if argv is None else argv
    if len(words) == 2 and words[0] == "--config":
        return read_config(Path(words[1]), {})  # as boards are started: argparse would cost them half a megabyte
    import argparse  # noqa: PLC0415 see above

    parser = argparse.ArgumentParser("edge-runtime client", description="Train on this board's data when asked to.")
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="TOML file; flags override it")
    add("--broker", metavar="URL", help="mqtt://[user:password@]host[:port]")
    add("--device", metavar="ID", help="this device's id, its own on the site")
    add("--data", metavar="DIR", help="directory with train.npz or idx files")
    add("--state", metavar="DIR", help="directory for what must outlive the process")
    add("--site", metavar="NAME", help="the site's id (default: default)")
    add("--threads", type=int, metavar="N", help="threads of the engine (default: 1)")
    add("--memory-limit-mb", type=int, metavar="M", help="refuse plans that need more")
    add("--feature-cache-mb", type=int, metavar="M", help="most that kept features may take (default: 256, 0: none)")
    add("--log-json", action="store_true", default=None, help="one JSON object a line")
    flags = vars(parser.parse_args(words))
    return read_config(flags.pop("config"), flags)


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    return {
        "x_shape": list(dataset.x.shape[1:]),
        "x_dtype": str(dataset.x.dtype),
        # numpy.unique would import numpy.ma, 1 MB, and numpy.sort load its kernels, 0.5 MB, for this one number.
        "classes_seen": len({int(label) for label in dataset.y}),
    }


def _keep_one_heap() -> None:
    """Have glibc give threads no heaps of their own, a few MB each, and large blocks back as soon as they are freed.

    The threshold is glibc's own first one; set by hand, it no longer grows to the size of the largest block freed.
    """
    m_arena_max, m_mmap_threshold, threshold_bytes = -8, -3, 128 * 1024
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such call and need none
        mallopt(m_arena_max, 1)
        mallopt(m_mmap_threshold, threshold_bytes)


def _collect_often() -> None:
    """Have cycles of references go as soon as there are a hundred: every message leaves some of paho's, of 400 bytes.

    What is there now stays, and is never looked through again, so that all this takes little time.
    """
    gc.freeze()
    gc.set_threshold(100, 5, 5)
