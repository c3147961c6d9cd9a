"""A home: jobs come in whole or not at all, need nothing outside it, and are taken in their order."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import devices_cli, jobs_cli
from coordinator import home as homes
from coordinator.backup import back_up
from coordinator.home import (
    HomeError,
    bring_up_to_date,
    clone,
    next_ready,
    parse_changes,
    queue,
    remove_remains,
    submissions,
    submit,
)
from coordinator.jobfile import JobFileError, load_job
from coordinator.requests import request
from coordinator.store import open_reader, open_store
from coordinator.toml_text import toml_text
from support.tiny_job import JOB, made_up

KEYS = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    return write_job(tmp_path / "desk", JOB)


def write_job(directory: Path, text: str) -> Path:
    (directory / "held-out").mkdir(parents=True, exist_ok=True)
    test = made_up(99, 60)
    np.savez(directory / "held-out" / "test.npz", x=test.x, y=test.y)
    (directory / "job.toml").write_text(text)
    return directory / "job.toml"


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_what_is_written_as_toml_is_read_back_equal(document: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(toml_text(document)) == document


def test_a_submitted_job_is_the_same_job_and_needs_nothing_outside(job_file: Path, tmp_path: Path) -> None:
    submitted = submit(tmp_path / "home", job_file)
    before = load_job(job_file)
    shutil.rmtree(job_file.parent)
    moved = (tmp_path / "home").rename(tmp_path / "moved") / "jobs" / "tiny"
    after = load_job(moved / "job.toml")
    assert (submitted.number, submitted.name) == (1, "tiny")
    assert (after.name, after.training, after.round, after.model) == (
        before.name,
        before.training,
        before.round,
        before.model,
    )
    homes.check_job(moved / "job.toml")


def test_every_problem_of_a_job_file_is_told_with_its_line_and_nothing_is_left(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(job_file.parent, JOB.replace("lr = 0.1", "lr = -1").replace("devices = 3", "devises = 3"))
    assert jobs_cli.main(["submit", str(job_file), "--home", str(tmp_path / "home")]) == 2
    told = capsys.readouterr().err
    assert f"{job_file}:14: training.lr" in told
    assert 'did you mean "devices"?' in told
    assert submissions(tmp_path / "home") == ()
    assert not (tmp_path / "home").exists()


def test_any_name_that_a_job_may_have_is_free_in_a_new_home(tmp_path: Path) -> None:
    for name in ("lock", "jobs", "journal"):
        submit(tmp_path / "home", write_job(tmp_path / name, JOB.replace('"tiny"', f'"{name}"')))
    assert [each.name for each in submissions(tmp_path / "home")] == ["lock", "jobs", "journal"]


def test_two_jobs_of_one_name_are_refused_and_the_first_stays(job_file: Path, tmp_path: Path) -> None:
    submit(tmp_path / "home", job_file)
    with pytest.raises(HomeError, match="has a job 'tiny' already"):
        submit(tmp_path / "home", job_file)
    assert [each.number for each in submissions(tmp_path / "home")] == [1]


def test_a_submission_that_fails_half_way_leaves_no_job(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("keep_model", "open_store", "toml_text"):
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patched.setattr(homes, step, fail)
            with pytest.raises(OSError, match="No space"):
                submit(tmp_path / "home", job_file)
        assert submissions(tmp_path / "home") == ()
        assert [path.name for path in (tmp_path / "home" / "jobs").iterdir()] == []


def test_what_a_killed_submission_left_is_no_job_and_is_removed(job_file: Path, tmp_path: Path) -> None:
    submitted = submit(tmp_path / "home", job_file)
    shutil.copytree(submitted.directory, submitted.directory.with_name(".other-12345678"))
    assert [each.name for each in submissions(tmp_path / "home")] == ["tiny"]
    remove_remains(tmp_path / "home")
    assert sorted(path.name for path in (tmp_path / "home" / "jobs").iterdir()) == ["tiny"]


def test_jobs_are_taken_in_order_without_those_that_are_done_failed_or_paused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("one", "two", "three", "four"):
        submit(home, write_job(tmp_path / name, JOB.replace('"tiny"', f'"{name}"')))
    assert [each.name for each in submissions(home)] == ["one", "two", "three", "four"]
    ready = lambda: getattr(next_ready(home), "name", None)  # noqa: E731  a word for a long expression
    assert ready() == "one"
    assert request(home / "jobs" / "one", "stop", "", 5.0)
    assert ready() == "two"
    assert request(home / "jobs" / "two", "pause", "", 5.0)
    assert ready() == "three"
    with closing(open_store(home / "jobs" / "three")) as store:
        store.fail("as the test wants it")
    assert ready() == "four"
    assert next_ready(home, {"four"}) is None
    assert request(home / "jobs" / "two", "resume", "", 5.0)
    assert request(home / "jobs" / "three", "resume", "", 5.0)
    assert ready() == "two"


def test_a_clone_begins_with_the_version_and_keeps_what_is_not_changed(job_file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = submit(home, job_file).directory
    with closing(open_reader(source)) as store:
        version = store.latest()
    made = clone(home, source, version, "again", parse_changes(("training.lr=0.01", "method.name=fedavgm")))
    job = load_job(made.directory / "job.toml")
    assert (made.number, job.name, job.method, job.training.stages[0].lr) == (2, "again", "fedavgm", 0.01)
    assert (job.seed, job.training.epochs) == (5, 2)
    with closing(open_reader(made.directory)) as store:
        assert store.latest().weights == version.weights
        assert store.epoch() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("training.lr",), "is not SECTION.KEY=VALUE"),
        (("lr=1",), "is not SECTION.KEY=VALUE"),
        (('a.b"c=1',), "is not SECTION.KEY=VALUE"),
        (("training.=1",), "is not SECTION.KEY=VALUE"),
        (("training.lr=0",), "^clone of tiny: training.lr must be greater than 0"),
        (("training.lr=fast",), "training.lr must be a number, not 'fast'"),
        (("training.rate=1",), "training.rate is not a key of"),
    ],
)
def test_a_clone_with_a_bad_key_is_refused_and_named(
    job_file: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    source = submit(tmp_path / "home", job_file).directory
    with closing(open_reader(source)) as store:
        version = store.latest()
    with pytest.raises(JobFileError, match=message):
        clone(tmp_path / "home", source, version, "again", parse_changes(words))
    assert [each.name for each in submissions(tmp_path / "home")] == ["tiny"]


def test_a_damaged_job_is_named_and_keeps_no_other_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    for name in ("one", "two", "three"):
        submit(home, write_job(tmp_path / name, JOB.replace('"tiny"', f'"{name}"')))
    (home / "jobs" / "one" / "submitted.json").write_bytes(b"{}")
    (home / "jobs" / "two" / "journal.sqlite").write_bytes(b"rubbish" * 100)
    (home / "jobs" / "two" / "journal.sqlite-wal").unlink(missing_ok=True)
    assert {each.name: each.state for each in queue(home)} == {"one": "damaged", "two": "damaged", "three": "ready"}
    ready = next_ready(home)
    assert ready is not None
    assert ready.name == "three"
    assert jobs_cli.main(["list", "--home", str(home)]) == 0
    told = capsys.readouterr().out
    assert "submitted.json cannot be read" in told
    assert "two: the journal" in told
    bring_up_to_date(home)
    assert jobs_cli.main(["show", "two", "--home", str(home)]) == 2


def test_a_backup_is_a_job_and_is_not_written_over_anything(job_file: Path, tmp_path: Path) -> None:
    source = submit(tmp_path / "home", job_file).directory
    with closing(open_store(source)) as store:  # held, and being written to
        store.keep_epoch(4)
        back_up(source, tmp_path / "copies" / "tiny")
        store.keep_epoch(5)
    with pytest.raises(HomeError, match="is there already"):
        back_up(source, tmp_path / "copies" / "tiny")
    shutil.rmtree(source)
    (tmp_path / "copies" / "tiny").rename(source)
    assert [each.name for each in submissions(tmp_path / "home")] == ["tiny"]
    homes.check_job(source / "job.toml")
    with closing(open_store(source)) as store:
        assert store.epoch() == 4


CASES = [
    (["show", "nobody", "--home", "HOME"], 2, "has no job 'nobody'; it has: tiny"),
    (["show", "--home", "HOME"], 2, "say which job"),
    (["show", "tiny", "--home", "HOME", "--state", "HOME"], 2, "give it alone"),
    (["pause", "--state", "NOWHERE"], 2, "holds no job"),
    (["export", "tiny", "--home", "HOME", "--version", "9", "--to", "OUT"], 2, "those that are: 1"),
    (["rollback", "tiny", "9", "--home", "HOME"], 3, ""),
    (["rollback", "tiny", "9" * 30, "--home", "HOME"], 3, ""),
    (["export", "tiny", "--home", "HOME", "--version", "9" * 30, "--to", "OUT"], 2, "those that are: 1"),
    (["clone", "again", "--state", "NOWHERE"], 2, "is of no home"),
    (["pause", "tiny", "--home", "HOME"], 0, ""),
    (["list", "--home", "NOWHERE"], 0, ""),
]


@pytest.mark.parametrize(("words", "code", "message"), CASES)
def test_exit_codes_and_words_of_the_command_line(  # noqa: PLR0917  what a case is made of
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    home = tmp_path / "home"
    submit(home, job_file)
    places = {"HOME": str(home), "NOWHERE": str(tmp_path / "nowhere"), "OUT": str(tmp_path / "out")}
    assert jobs_cli.main([places.get(word, word) for word in words]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out == "") == (code == 2)


@pytest.mark.parametrize("words", [["rollback", "tiny", "x"], ["rollback", "tiny", "0"], ["pause", "--timeout", "nan"]])
def test_what_is_no_number_is_bad_input_and_no_request(job_file: Path, tmp_path: Path, words: list[str]) -> None:
    directory = submit(tmp_path / "home", job_file).directory
    with pytest.raises(SystemExit, match="2"):
        jobs_cli.main([*words, "--home", str(tmp_path / "home")])
    with closing(open_reader(directory)) as store:
        assert store.rows("SELECT * FROM requests") == []


def test_an_id_that_no_device_can_have_is_bad_input_and_one_that_is_new_is_told_to_be(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "home", job_file)
    home = ["--home", str(tmp_path / "home")]
    assert devices_cli.main(["evict", "Käse", *home]) == 2
    assert "cannot be an id" in capsys.readouterr().err
    assert devices_cli.main(["evict", "a", *home]) == 0
    assert "a, which the job has not seen yet," in capsys.readouterr().out


def evicted_in(home: Path, name: str) -> frozenset[str]:
    with closing(open_reader(home / "jobs" / name)) as store:
        return store.evicted()


def test_a_job_that_is_submitted_later_begins_without_the_devices_that_were_evicted(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    options = ["--home", str(home)]
    assert devices_cli.main(["evict", "dev-a", *options]) == 2
    assert "is no home" in capsys.readouterr().err
    assert not home.exists()
    submit(home, job_file)
    for device in ("dev-a", "dev-b"):
        assert devices_cli.main(["evict", device, *options]) == 0
    assert devices_cli.main(["evict", "dev-c", "tiny", *options]) == 2  # the job comes first
    assert devices_cli.main(["evict", "tiny", "dev-c", *options]) == 0
    assert jobs_cli.main(["clone", "tiny", "second", *options]) == 0
    assert evicted_in(home, "tiny") == {"dev-a", "dev-b", "dev-c"}
    assert evicted_in(home, "second") == {"dev-a", "dev-b"}
    assert devices_cli.main(["readmit", "dev-b", *options]) == 0
    assert jobs_cli.main(["clone", "tiny", "third", *options]) == 0
    assert (evicted_in(home, "second"), evicted_in(home, "third")) == ({"dev-a"}, {"dev-a"})


def test_evictions_that_cannot_be_read_are_named_before_a_job_is_made(job_file: Path, tmp_path: Path) -> None:
    submit(tmp_path / "home", job_file)
    (tmp_path / "home" / "evicted.json").write_text('["dev-a"]')
    job_file.write_text(job_file.read_text().replace('"tiny"', '"second"'))
    with pytest.raises(HomeError, match=r"evicted\.json is no object"):
        submit(tmp_path / "home", job_file)
    assert [each.name for each in submissions(tmp_path / "home")] == ["tiny"]


def test_a_clone_is_made_in_a_home_that_is_named_by_a_relative_path(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(tmp_path / "home", job_file)
    monkeypatch.chdir(tmp_path)
    assert jobs_cli.main(["clone", "tiny", "again", "--home", "home"]) == 0
    assert jobs_cli.main(["clone", "third", "--state", "home/jobs/again"]) == 0
    assert [each.name for each in submissions(Path("home"))] == ["tiny", "again", "third"]


def test_a_reader_that_goes_away_ends_a_command_without_a_word(job_file: Path, tmp_path: Path) -> None:
    submit(tmp_path / "home", job_file)
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "edge_runtime", "job", "list", "--home", str(tmp_path / "home")]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_table_for_people_and_records_for_scripts_say_the_same(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "home", job_file)
    assert jobs_cli.main(["list", "--home", str(tmp_path / "home")]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["JOB", "STATE", "ROUND", "OF", "VERSION", "ACCURACY", "DEVICES"]
    assert row.split() == ["tiny", "queued", "1", "2", "1", "-", "0"]
    assert jobs_cli.main(["list", "--home", str(tmp_path / "home"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["state"], record["accuracy"]) == ("tiny", "queued", None)
    assert jobs_cli.main(["show", "tiny", "--home", str(tmp_path / "home")]) == 0
    assert "tiny is queued; round 1 of 2, version 1" in capsys.readouterr().out


def test_a_second_coordinator_on_a_home_is_refused(job_file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    submit(home, job_file)
    with homes.open_lock(home):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "edge_runtime",
                "coordinator",
                "--home",
                str(home),
                "--broker",
                "mqtt://localhost:1",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert f"another coordinator works on {home}" in done.stderr


@contextmanager
def serving(home: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A coordinator on a home, whose broker is down; gives a function that reads on to an event of a kind."""
    words = ["coordinator", "--home", str(home), "--broker", "mqtt://127.0.0.1:9", "--events"]
    with subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        told = map(json.loads, process.stdout)
        yield lambda kind: next(event for event in told if event["event"] == kind)
        process.terminate()


def test_a_job_that_a_command_is_just_at_work_on_is_begun_when_that_has_done(job_file: Path, tmp_path: Path) -> None:
    directory = submit(tmp_path / "home", job_file).directory
    with ExitStack() as at_work:
        at_work.enter_context(closing(open_store(directory)))
        with serving(tmp_path / "home") as until:
            assert until("warning")["rule"] == "JournalInUse"
            at_work.close()
            assert until("listening")["job"] == "tiny"


def test_a_job_whose_file_was_spoilt_is_begun_when_that_is_mended(job_file: Path, tmp_path: Path) -> None:
    copy = submit(tmp_path / "home", job_file).directory / "job.toml"
    good = copy.read_text()
    copy.write_text(good.replace("[round]", "[rond]"))
    with serving(tmp_path / "home") as until:
        assert until("error")["rule"] == "JobFileError"
        until("idle")
        copy.write_text(good)
        assert until("listening")["job"] == "tiny"
