"""Whole jobs in memory: real sessions, training and journal, and a fault at every place where something is written."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.aggregators import Contribution, weighted_mean
from coordinator.evaluate import Evaluation, evaluate
from coordinator.store import JournalUpdate, Store, Version, open_store
from edge_runtime.data import Dataset
from edge_runtime.plan import read_plan
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire import Publish, UpdateSettled
from edge_runtime.wire.messages import GatewayState, Status, format_gateway, format_status
from support.dying_store import DyingStore, Killed
from support.memory import MemorySite, finished, start_all
from support.tiny_job import EXAMPLES, JOB, make_site


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    site = make_site(tmp_path_factory.mktemp("undisturbed"))
    start_all(site)
    return finished(site)


def test_a_job_runs_to_its_end_and_reports_every_round(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    sha256 = finished(site)
    assert [event["round"] for event in site.seen("round_done")] == [1, 2]
    assert [event["devices"] for event in site.seen("round_done")] == [3, 3]
    assert site.seen("round_done")[1]["accuracy"] > 0.5
    assert len(site.seen("update")) == 6
    (done,) = site.seen("job_done")
    weights = (tmp_path / "state" / "final.safetensors").read_bytes()
    assert decode_tensors(weights)[0].keys() == site.program.weights.keys()
    judged = evaluate((tmp_path / "state" / "final.onnx").read_bytes(), site.held_out)
    assert judged.accuracy == done["accuracy"] == site.seen("round_done")[1]["accuracy"]
    assert len(sha256) == 64


def test_bytes_of_a_round_follow_the_formula(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    weights = len(encode_tensors(site.program.weights))
    first, second = site.seen("round_done")
    assert first["bytes_down"] == 3 * (weights + len(site.program.plans["train"].data))
    assert second["bytes_down"] == 3 * weights
    for event in (first, second):
        sizes = [each["bytes"] for each in site.seen("update") if each["round"] == event["round"]]
        assert event["bytes_up"] == sum(sizes)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_arrival_does_not_change_a_bit(tmp_path: Path, undisturbed: str, order: int) -> None:
    site = make_site(tmp_path, order=order)
    start_all(site)
    assert finished(site) == undisturbed


def test_a_round_equals_fedavg_written_out(tmp_path: Path) -> None:
    site = make_site(tmp_path, JOB.replace("rounds = 2", "rounds = 1"))
    start_all(site)
    finished(site)
    plan = read_plan(site.program.plans["train"].data)
    updates: list[Contribution] = []
    for name, device in sorted(site.devices.items()):
        task = next(run for run in device.tasks if run.round == 1)
        update = run_task(task, {plan.sha256: plan}, site.program.weights, device.dataset)
        updates.append(Contribution(name, len(device.dataset), decode_tensors(update.data)[0]))
    found = decode_tensors((tmp_path / "state" / "final.safetensors").read_bytes())[0]
    total = sum(EXAMPLES.values())
    for name, mean in weighted_mean(updates).items():
        by_hand = sum(each.examples / total * each.tensors[name].astype(np.float64) for each in updates)
        np.testing.assert_allclose(mean, by_hand, rtol=1e-12)
        np.testing.assert_allclose(found[name], site.program.weights[name] + by_hand, rtol=1e-6, atol=1e-7)


def test_a_finished_job_leaves_no_task_and_no_blob_on_the_broker(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    left = [topic for topic in site.broker.retained if "/b/" in topic or topic.endswith("/task")]
    assert left == []
    assert b'"stopped"' in site.broker.retained["edge/v1/test/gateway"]


def test_a_task_left_by_a_crash_is_taken_off_the_broker_at_the_next_start(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 1)
    site.kill()
    stale = "edge/v1/test/d/dev-b/task"
    assert stale in site.broker.retained
    store = open_store(tmp_path / "state")
    store.fail_task(1, "dev-b", "OverMemoryLimit", unfit=True)
    store.close()
    site.start()
    assert stale not in site.broker.retained
    site.kill()


def test_while_it_waits_the_job_says_for_how_many(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.start()
    for device in site.devices.values():
        device.start(site.now_s)
        assert device.session is not None
        site.run(lambda session=device.session: session.online)  # type: ignore[misc]
        site.turn()
    finished(site)
    first = site.seen("waiting")
    assert [(event["round"], event["devices"], event["needed"]) for event in first] == [(1, 0, 3), (1, 1, 3), (1, 2, 3)]


def test_a_superseded_coordinator_stops_without_touching_the_site(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 1)
    before = dict(site.broker.retained)
    assert site.job is not None
    older = format_gateway(GatewayState(epoch=0, boot="b", state="up"))
    site.send(site.job.received("edge/v1/test/gateway", older, site.now_s, retain=False))
    assert site.stop() == 3
    assert "epoch 0" in site.seen("error")[0]["message"]
    assert site.broker.retained == before


def test_blobs_of_earlier_rounds_are_taken_off_the_broker(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 2)
    blobs = {topic.split("/")[4] for topic in site.broker.retained if "/b/" in topic}
    site.kill()
    assert len(blobs) == 2  # the plan and the present weights


def writes_of_an_undisturbed_job(tmp_path: Path) -> list[str]:
    site = make_site(tmp_path)
    spies: list[DyingStore] = []

    def spy(store: Store) -> DyingStore:
        spies.append(DyingStore(store, at=0, after=False))
        return spies[-1]

    site.start(spy)
    for device in site.devices.values():
        device.start(site.now_s)
    finished(site)
    return spies[0].written


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_the_journal_leads_to_the_same_bits(
    tmp_path: Path, undisturbed: str, *, after: bool
) -> None:
    writes = writes_of_an_undisturbed_job(tmp_path / "spied")
    assert set(writes) == DyingStore.WRITES
    for at in range(1, len(writes) + 1):
        site = make_site(tmp_path / f"{at}")
        for device in site.devices.values():
            device.start(site.now_s)
        with pytest.raises(Killed):
            start_and_run(site, at, after=after)
        site.kill()
        for _ in range(3):
            site.turn()
        if site.start():
            assert finished(site) == undisturbed, f"write {at}: {writes[at - 1]}"
        else:
            assert (at, after) == (len(writes), True)


def start_and_run(site: MemorySite, at: int, *, after: bool) -> None:
    site.start(lambda store: DyingStore(store, at, after=after))
    site.run()


def test_a_crash_between_any_two_turns_leads_to_the_same_bits(tmp_path: Path, undisturbed: str) -> None:
    plain = make_site(tmp_path / "plain")
    start_all(plain)
    turns = 0
    while plain.job is not None and plain.job.exit_code is None:
        plain.turn()
        turns += 1
    plain.stop()
    for at in range(1, turns, 2):
        site = make_site(tmp_path / f"{at}", order=at)
        start_all(site)
        for _ in range(at):
            if site.job is not None and site.job.exit_code is None:
                site.turn()
        if site.job is not None and site.job.exit_code is not None:
            site.stop()
            continue
        site.kill()
        site.start()
        assert finished(site) == undisturbed, f"killed after turn {at}"


def test_a_broker_that_forgets_everything_leads_to_the_same_bits(tmp_path: Path, undisturbed: str) -> None:
    for at in range(1, 40, 3):
        site = make_site(tmp_path / f"{at}", order=at)
        start_all(site)
        for _ in range(at):
            if site.job is not None and site.job.exit_code is None:
                site.turn()
        site.restart_broker()
        assert finished(site) == undisturbed, f"restarted after turn {at}"


def test_a_device_that_dies_and_comes_back_takes_part_again(tmp_path: Path) -> None:
    site = make_site(tmp_path, JOB.replace("rounds = 2", "rounds = 3"))
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 1)
    site.devices["dev-b"].kill()
    site.run(lambda: len(site.seen("round_done")) == 1)
    assert site.seen("round_done")[0]["devices"] == 2
    site.devices["dev-b"].start(site.now_s)
    finished(site)
    assert site.seen("round_done")[-1]["devices"] == 3


def test_a_device_that_died_with_the_broker_costs_the_grace_and_no_deadline(tmp_path: Path, undisturbed: str) -> None:
    """A broker that keeps its messages on disk serves the birth of a device whose will nobody is left to send."""
    site = make_site(tmp_path)
    site.broker.retained["edge/v1/test/d/dev-z/status"] = format_status(Status("dead", 1, "online", 9, {}))
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 1)
    assert 5.0 <= site.now_s < 6.0
    assert finished(site) == undisturbed
    assert [event["cohort"] for event in site.seen("round_started")] == [3, 3]
    assert site.now_s < 15.0  # the deadline is 60 s
    assert not [event for event in site.seen("device") if event["device"] == "dev-z"]


def test_devices_that_were_there_before_the_coordinator_are_asked_at_once(tmp_path: Path, undisturbed: str) -> None:
    site = make_site(tmp_path)
    for device in site.devices.values():
        device.start(site.now_s)
    for _ in range(20):
        site.turn()
    assert sum(topic.endswith("/status") for topic in site.broker.retained) == 3
    began_s = site.now_s
    site.start()
    site.run(lambda: len(site.seen("round_started")) == 1)
    assert site.now_s - began_s < 1.0
    assert finished(site) == undisturbed


def spoiled(change: Callable[[dict[str, Any], dict[str, str]], None]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        tensors, metadata = decode_tensors(data)
        copies = {name: tensor.copy() for name, tensor in tensors.items()}
        change(copies, metadata)
        return encode_tensors(copies, metadata)

    return spoil


def put_nan(tensors: dict[str, Any], _metadata: dict[str, str]) -> None:
    next(iter(tensors.values())).reshape(-1)[0] = np.nan


def claim_more(_tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["examples"] = "1000000"


def be_another(_tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["device"] = "dev-a"


def drop_one(tensors: dict[str, Any], _metadata: dict[str, str]) -> None:
    tensors.popitem()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (put_nan, "NonFinite"),
        (claim_more, "TooManyExamples"),
        (be_another, "WrongTask"),
        (drop_one, "WrongTensors"),
    ],
)
def test_a_hostile_update_is_refused_by_name_and_the_others_go_on(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, str]], None], rule: str
) -> None:
    site = make_site(tmp_path)
    site.devices["dev-b"].spoil = spoiled(change)
    start_all(site)
    finished(site)
    warnings = [event["message"] for event in site.seen("warning")]
    assert any("dev-b" in message and rule in message for message in warnings)
    assert [event["devices"] for event in site.seen("round_done")] == [2, 2]
    assert {event["device"] for event in site.seen("update")} == {"dev-a", "dev-c"}


def test_bytes_that_are_no_update_are_refused_by_name(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.devices["dev-b"].spoil = lambda data: data[: len(data) // 2]
    start_all(site)
    finished(site)
    assert any("BadOffsets" in event["message"] for event in site.seen("warning"))


def test_a_job_whose_devices_all_fail_ends_with_their_reasons_and_can_be_started_again(
    tmp_path: Path, undisturbed: str
) -> None:
    site = make_site(tmp_path)
    for device in site.devices.values():
        device.rule = "OverMemoryLimit"
    start_all(site)
    site.run()
    assert site.stop() == 3
    assert "dev-a: OverMemoryLimit" in site.seen("error")[0]["message"]
    for device in site.devices.values():
        device.rule = None
    site.start()
    assert finished(site) == undisturbed


def test_a_device_without_examples_is_told_of_and_left_out(tmp_path: Path) -> None:
    site = make_site(tmp_path, JOB.replace("devices = 3", "devices = 2"))
    empty = Dataset(np.zeros((0, 6), np.float32), np.zeros(0, np.int32))
    site.devices["dev-a"].dataset = empty
    start_all(site)
    finished(site)
    assert any("dev-a has no examples" in event["message"] for event in site.seen("warning"))
    assert site.devices["dev-a"].trained == 0


def test_an_update_that_is_offered_twice_counts_once(tmp_path: Path, undisturbed: str) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("update")) == 1)
    (name,) = {event["device"] for event in site.seen("update")}
    site.devices[name].kill()  # its disk forgets the update: it trains and offers again
    site.devices[name].start(site.now_s)
    assert finished(site) == undisturbed
    assert len(site.seen("update")) == 6


def test_the_journal_keeps_digests_and_no_bytes_of_folded_updates(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    kept: list[Store] = []
    site.start(lambda store: (kept.append(store), store)[1])  # type: ignore[func-returns-value]
    for device in site.devices.values():
        device.start(site.now_s)
    site.run()
    rows: list[JournalUpdate] = [update for number in (1, 2) for update in kept[0].updates(number)]
    assert len(rows) == 6
    assert all(row.data is None and len(row.sha256) == 64 for row in rows)
    assert replace(rows[0], data=b"").device == "dev-a"
    site.stop()


def test_a_device_that_is_slower_than_the_deadline_counts_in_the_next_attempt(tmp_path: Path, undisturbed: str) -> None:
    site = make_site(tmp_path, JOB.replace("min_updates = 2", "min_updates = 3"))
    slow, held = site.devices["dev-b"], []
    run, slow.run = slow.run, lambda command, _now_s: held.append(command) or []  # type: ignore[method-assign, func-returns-value]
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 2)
    assert [event["attempt"] for event in site.seen("round_started")] == [1, 2]
    slow.run = run  # type: ignore[method-assign]
    for command in held:
        slow.handle(run(command, site.now_s), site.now_s)
    assert finished(site) == undisturbed
    assert len(site.seen("round_started")) == 3


def test_versions_that_a_killed_broker_brings_back_are_taken_off_again(tmp_path: Path) -> None:
    site = make_site(tmp_path, JOB.replace("rounds = 2", "rounds = 6"))
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 2)
    written = dict(site.broker.retained)
    site.run(lambda: len(site.seen("round_started")) == 5)
    site.restart_broker()
    site.broker.retained = {**written, **site.broker.retained}
    assert site.job is not None
    site.send(site.job.connected(site.now_s))
    finished(site)
    assert not [topic for topic in site.broker.retained if "/b/" in topic]


def test_looking_up_what_a_device_delivered_reads_no_other_devices_rounds(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    query = "SELECT sha256 FROM updates WHERE device = ? AND task = ?"
    plan = [row[3] for row in store._all(f"EXPLAIN QUERY PLAN {query}", ("a", "t"))]
    store.close()
    assert not [step for step in plan if step.startswith("SCAN")], plan


def test_the_journal_drops_the_bytes_of_folded_tasks(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 2)
    site.kill()
    store = open_store(tmp_path / "state")
    rows = store._all("SELECT round, length(data) FROM tasks ORDER BY round")
    store.close()
    assert {number for number, size in rows if size == 0} == {1}
    assert {number for number, size in rows if size > 0} == {2}


def test_while_a_version_is_judged_the_site_goes_on_and_a_late_update_is_refused(tmp_path: Path) -> None:
    """The last chunk of dev-b's update comes after the fold: taking it would acknowledge what never counts."""
    site = make_site(tmp_path)
    judge, verdict = site._judge, Future[Evaluation]()
    site._judge = lambda _version: verdict  # type: ignore[method-assign]
    held: list[Publish] = []
    handle = site.broker.handle

    def hold(name: str, command: Any) -> bool:
        late = name == "dev-b" and isinstance(command, Publish) and command.topic.endswith("/0")
        return held.append(command) is None if late else handle(name, command)

    site.broker.handle = hold  # type: ignore[method-assign]
    start_all(site)
    site.run(lambda: site.job is not None and site.job.closing.beside is verdict)
    handle("dev-b", held[0])
    site.devices["dev-c"].kill()
    site.turn()
    site.turn()
    assert site.seen("device")[-1] == {"event": "device", "device": "dev-c", "state": "lost", "examples": 31}
    (refused,) = [each for each in site.devices["dev-b"].settled if isinstance(each, UpdateSettled)]
    assert (refused.outcome, refused.rule) == ("refused", "StaleTask")
    assert site.job is not None
    version = site.job.published.version
    site._judge, site.broker.handle = judge, handle  # type: ignore[method-assign]
    verdict.set_result(judge(version).result())
    site.devices["dev-c"].start(site.now_s)
    finished(site)
    assert [event["devices"] for event in site.seen("round_done")] == [2, 3]
    assert sorted(e["device"] for e in site.seen("update") if e["round"] == 1) == ["dev-a", "dev-c"]


def test_while_a_round_is_folded_the_site_goes_on_and_a_kill_folds_it_again(tmp_path: Path, undisturbed: str) -> None:
    site = make_site(tmp_path)
    fold, made = site._fold, Future[Version]()
    site._fold = lambda _old, _gathered: made  # type: ignore[method-assign]
    start_all(site)
    site.run(lambda: site.job is not None and site.job.closing.beside is not None)
    site.devices["dev-c"].kill()
    for _ in range(3):
        site.turn()
    assert site.seen("device")[-1]["state"] == "lost"
    assert site.seen("round_done") == []
    site.kill()
    made.cancel()
    site._fold = fold  # type: ignore[method-assign]
    site.devices["dev-c"].start(site.now_s)
    site.start()
    assert finished(site) == undisturbed
