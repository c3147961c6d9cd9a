"""Requests of operators: the journal first, then the job; carried out once, by whoever holds the job."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.gateway import EXIT_DONE
from coordinator.journal import JournalError
from coordinator.requests import VERBS, Inbox, Request, carry_out, request, unanswered
from coordinator.store import Store, open_reader, open_store
from coordinator.versions import list_versions
from edge_runtime.slots import Slots
from edge_runtime.tensors import decode_tensors
from support.memory import MemorySite, finished, start_all
from support.operated import Operated
from support.tiny_job import JOB, make_site

LONG = JOB.replace("rounds = 2", "rounds = 6")


@pytest.fixture
def site(tmp_path: Path) -> Operated:
    made = make_site(tmp_path, LONG)
    return Operated(made.job_file, made.state, {name: each.dataset for name, each in made.devices.items()})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    site = make_site(tmp_path_factory.mktemp("undisturbed"), LONG)
    start_all(site)
    return finished(site)


def run_into_a_round(site: MemorySite, number: int) -> None:
    """Until two devices of a round have delivered and the third has died."""
    site.run(lambda: len(site.seen("round_started")) == number)
    site.devices["dev-b"].kill()
    site.run(lambda: sum(event["round"] == number for event in site.seen("update")) == 2)


def rounds_done(site: MemorySite) -> list[int]:
    return [event["round"] for event in site.seen("round_done")]


def test_a_paused_job_ends_its_round_starts_no_other_and_goes_on_to_the_same_bits(
    site: Operated, undisturbed: str
) -> None:
    start_all(site)
    site.run(lambda: len(site.seen("update")) >= 4)
    site.ask("pause")
    for _ in range(300):
        site.turn()
    assert rounds_done(site) == [1, 2]
    assert len(site.seen("update")) == 6
    assert site.job is not None
    assert site.job.exit_code is None
    site.ask("resume")
    assert finished(site) == undisturbed


def test_a_pause_outlives_the_coordinator(site: Operated, undisturbed: str) -> None:
    start_all(site)
    site.run(lambda: len(site.seen("update")) >= 4)
    site.ask("pause")
    site.turn()
    site.kill()
    site.start()
    for _ in range(300):
        site.turn()
    assert rounds_done(site) == [1, 2]
    site.kill()
    assert request(site.state, "resume", "", 5.0).done
    site.start()
    assert finished(site) == undisturbed


def test_a_stopped_job_is_done_with_the_version_it_has_and_leaves_nothing_on_the_broker(site: Operated) -> None:
    start_all(site)
    run_into_a_round(site, 4)
    asked = site.ask("stop")
    site.run()
    assert site.stop() == EXIT_DONE
    assert site.answer(asked)[0] == "done"
    with closing(open_reader(site.state)) as store:
        assert store.latest().version == 4
        assert store.done() == "stopped by ann@desk"
        assert (site.state / "final.safetensors").read_bytes() == store.latest().weights
    assert [topic for topic in site.broker.retained if "/task" in topic or "/b/" in topic] == []
    assert not site.start()


def weights_of(state: Path, version: int) -> bytes:
    with closing(open_reader(state)) as store:
        ((weights,),) = store.rows("SELECT weights FROM versions WHERE version = ?", (version,))
        return bytes(weights)


def test_a_rollback_puts_an_older_version_on_top_and_keeps_the_history(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2, 3])
    with closing(open_reader(site.state)) as store:
        run = store.run()
    asked = site.ask("rollback", "3")
    site.run(lambda: site.seen("request") != [])
    assert site.answer(asked) == ("done", "version 5 has the weights and the server state of version 3")
    assert weights_of(site.state, 5) == weights_of(site.state, 3)
    site.run(lambda: 5 in rounds_done(site))
    with closing(open_reader(site.state)) as store:
        assert [each.version for each in list_versions(store)] == [1, 2, 3, 4, 5, 6]
        rows = store.rows("SELECT round, note, accuracy FROM rounds_v1 WHERE round IN (2, 4) ORDER BY round")
        assert rows[1][1] == "back to version 3, asked by ann@desk"
        assert rows[0][2] == rows[1][2]  # judged anew, the same weights are as good
        assert store.run() != run
    site.run()
    assert site.stop() == EXIT_DONE


def test_what_was_delivered_for_a_round_that_is_rolled_back_does_not_count(site: Operated) -> None:
    start_all(site)
    run_into_a_round(site, 4)
    site.ask("rollback", "3")
    site.devices["dev-b"].start(site.now_s)
    site.run(lambda: 5 in rounds_done(site))
    with closing(open_reader(site.state)) as store:
        states = dict(store.rows("SELECT state, count(*) FROM tasks WHERE round = 4 GROUP BY state"))
        assert states == {"done": 2, "failed": 1}
        assert store.rows("SELECT 1 FROM updates WHERE data IS NOT NULL AND round < 6") == []
    # Round 5 starts from version 3's weights, with version 5's number.
    tasks = [task for device in site.devices.values() for task in device.tasks if task.round == 5]
    with closing(open_reader(site.state)) as store:
        assert {task.weights for task in tasks} == {
            row[0] for row in store.rows("SELECT sha256 FROM versions WHERE version IN (3, 5)")
        }


def test_devices_begin_with_nothing_carried_over_after_a_rollback(tmp_path: Path) -> None:
    job = LONG.replace("[evaluate]", '[upload]\ncodec = ["topk 0.1 ef", "fp16"]\n[evaluate]')
    made = make_site(tmp_path / "carrying", job)
    site = Operated(made.job_file, made.state, {name: each.dataset for name, each in made.devices.items()})
    for name, device in site.devices.items():
        device.slots = Slots(tmp_path / f"slots-{name}")
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2, 3])
    site.ask("rollback", "3")
    finished(site)
    runs: dict[int, set[tuple[str, str | None]]] = {}
    for task in (task for device in site.devices.values() for task in device.tasks):
        counted = None if task.carry.counted is None else task.carry.counted.rsplit(".", 1)[0]
        runs.setdefault(task.round, set()).add((task.carry.run, counted))
    (first,), (last,) = {run for run, _ in runs[1]}, {run for run, _ in runs[6]}
    assert first != last
    assert runs[5] == {(last, None)}
    assert runs[6] == {(last, "tiny.5")}


@pytest.mark.parametrize("method", ["ef21"])
def test_a_method_with_state_on_its_devices_is_not_rolled_back(site: Operated, method: str) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2])
    site.kill()
    with closing(open_store(site.state)) as store:
        definition = store.definition() | {"method.name": f'"{method}"'}
        with store.transaction() as write:
            write("UPDATE job SET definition = ?", (json.dumps(definition),))
    answer = request(site.state, "rollback", "2", 5.0)
    assert answer is not None
    assert not answer.done
    assert "clone the job from that version" in answer.message


def test_a_version_that_is_not_kept_is_refused_with_those_that_are(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2, 3, 4])
    numbers = [site.ask("rollback", word) for word in ("1", "77", "three", "9" * 30, "9" * 5000)]
    site.run(lambda: len(site.seen("request")) == 5)
    assert site.answer(numbers[0])[0] == "refused"
    assert "version 1 is not kept; those that are: 3, 4, 5" in site.answer(numbers[0])[1]
    assert "version 77 is not kept" in site.answer(numbers[1])[1]
    assert "is no version" in site.answer(numbers[2])[1]
    assert "is not kept" in site.answer(numbers[3])[1], "larger than SQLite can hold"
    assert "is no version" in site.answer(numbers[4])[1]
    site.run()
    assert site.stop() == EXIT_DONE
    assert rounds_done(site) == [1, 2, 3, 4, 5, 6]


def test_an_evicted_device_is_asked_no_more_until_it_is_readmitted(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1])
    site.ask("evict", "dev-b")
    site.run(lambda: rounds_done(site) == [1, 2, 3])
    cohorts = [event["devices"] for event in site.seen("round_done")]
    assert cohorts == [3, 2, 2]
    assert [task.round for task in site.devices["dev-b"].tasks][-1] <= 2
    site.ask("readmit", "dev-b")
    site.run()
    assert site.stop() == EXIT_DONE
    assert site.seen("round_done")[-1]["devices"] == 3


def test_an_update_of_a_device_that_was_evicted_meanwhile_does_not_count(site: Operated) -> None:
    start_all(site)
    run_into_a_round(site, 1)
    assert site.job is not None
    evicted = Request(site.ask("evict", "dev-b"), "evict", "dev-b", "ann@desk")
    carry_out(site.job._parts.store, evicted)
    site.renew()
    site.devices["dev-b"].start(site.now_s)
    site.run(lambda: rounds_done(site) == [1])
    assert {event["device"] for event in site.seen("update")} == {"dev-a", "dev-c"}


def test_evicting_more_devices_than_a_round_can_spare_waits_instead_of_failing(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1])
    for name in ("dev-a", "dev-b"):
        site.ask("evict", name)
    for _ in range(300):
        site.turn()
    assert site.job is not None
    assert site.job.exit_code is None
    done = len(rounds_done(site))
    site.ask("readmit", "dev-a")
    site.run(lambda: len(rounds_done(site)) > done)


@pytest.mark.parametrize(("verb", "argument"), [("pause", ""), ("rollback", "2"), ("evict", "dev-a"), ("stop", "")])
def test_a_request_that_was_written_before_a_kill_is_carried_out_once_by_the_next_coordinator(
    site: Operated, verb: str, argument: str
) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2])
    number = site.ask(verb, argument)
    site.kill()
    site.start()
    site.run(lambda: site.seen("request") != [])
    assert site.answer(number)[0] == "done"
    for _ in range(30):
        if site.job is not None and site.job.exit_code is None:
            site.turn()
    assert len(site.seen("request")) == 1


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_transaction_that_is_cut_changes_nothing_and_the_request_still_waits(site: Operated, verb: str) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2])
    site.kill()
    with closing(open_store(site.state)) as store:
        carry_out(store, Request(site.ask("pause"), "pause", "", "ann@desk")) if verb == "resume" else None
        carry_out(store, Request(site.ask("evict", "dev-a"), "evict", "dev-a", "x")) if verb == "readmit" else None
        argument = {"rollback": "2", "evict": "dev-a", "readmit": "dev-a"}.get(verb, "")
        asked = Request(site.ask(verb, argument), verb, argument, "ann@desk")
        before = dump(store)
        store._connection.execute(
            "CREATE TRIGGER cut BEFORE UPDATE ON requests BEGIN SELECT RAISE(ABORT, 'the power failed'); END"
        )
        with pytest.raises(JournalError, match="the power failed"):
            carry_out(store, asked)
        store._connection.execute("DROP TRIGGER cut")
        assert dump(store) == before
        assert unanswered(store) == (asked,)
        assert carry_out(store, asked).done
        assert dump(store) != before


def dump(store: Store) -> dict[str, list[object]]:
    return {
        name: store.rows(f"SELECT * FROM {name}")  # noqa: S608  names of this line
        for name in ("job", "versions", "rounds", "tasks", "evictions")
    }


def test_requests_are_carried_out_here_when_no_coordinator_holds_the_job(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1, 2])
    site.kill()
    assert request(site.state, "rollback", "2", 5.0).done
    assert request(site.state, "evict", "dev-c", 5.0).done
    refused = request(site.state, "rollback", "99", 5.0)
    assert refused is not None
    assert not refused.done
    assert request(site.state, "stop", "", 5.0).done
    late = request(site.state, "pause", "", 5.0)
    assert late is not None
    assert "the job is done: stopped by" in late.message
    assert decode_tensors((site.state / "final.safetensors").read_bytes())[0].keys() == site.program.weights.keys()


def test_a_coordinator_that_does_not_answer_leaves_the_request_waiting(site: Operated) -> None:
    start_all(site)
    assert request(site.state, "pause", "", 0.2) is None
    site.run(lambda: site.seen("request") != [])
    assert site.seen("request")[0]["verb"] == "pause"


def test_asking_while_a_coordinator_answers_returns_its_answer(site: Operated) -> None:
    start_all(site)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(request(site.state, "pause", "", 20.0)))
    asking.start()
    site.run(lambda: site.seen("request") != [])
    asking.join()
    assert getattr(answers[0], "done", None) is True


def test_a_directory_without_a_job_is_refused_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="holds no job"):
        request(tmp_path / "nowhere", "pause", "", 1.0)
    assert not (tmp_path / "nowhere").exists()


def test_requests_are_looked_for_only_when_another_process_has_written(site: Operated) -> None:
    start_all(site)
    site.run(lambda: rounds_done(site) == [1])
    assert site.job is not None
    store, queries = site.job._parts.store, []
    inbox = Inbox(store)
    inbox.waiting()
    store._connection.set_trace_callback(queries.append)
    for _ in range(5):
        assert inbox.waiting() == ()
    store._connection.set_trace_callback(None)
    assert {query.split()[0] for query in queries} == {"PRAGMA"}


def test_a_failed_job_says_why_until_it_is_started_again(site: Operated) -> None:
    for device in site.devices.values():
        device.rule = "LabelOutOfRange"
    start_all(site)
    site.run()
    assert site.stop() == 3
    with closing(open_reader(site.state)) as store:
        assert "LabelOutOfRange" in (store.failed() or "")
    assert request(site.state, "resume", "", 5.0).done
    with closing(open_reader(site.state)) as store:
        assert store.failed() is None


@pytest.fixture(autouse=True)
def closed(site: Operated) -> Iterator[None]:
    yield
    if site.job is not None:
        site.kill()
