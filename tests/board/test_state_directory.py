"""What a client keeps on disk: nothing damaged is believed, nothing grows without end, one client each."""

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.file_slice import FileUnreadable
from edge_runtime.state_directory import StateDirectory, StateInUse, StateUnusable
from edge_runtime.wire import Outbox


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(tmp_path / "s", 1000)
    yield state
    state.close()


def name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_second_client_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "s", 1)
    with pytest.raises(StateInUse, match="its own"):
        StateDirectory(tmp_path / "s", 1)
    first.close()
    StateDirectory(tmp_path / "s", 1).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateUnusable, match="file/s"):
        StateDirectory(tmp_path / "file" / "s", 1)


def test_the_generation_is_kept_and_a_damaged_one_begins_again(state: StateDirectory, tmp_path: Path) -> None:
    assert state.gen() == 0
    state.keep_gen(41)
    assert state.gen() == 41
    (tmp_path / "s" / "gen").write_bytes(b"\xff?")
    assert state.gen() == 0


def test_a_damaged_plan_is_removed_and_fetched_again(state: StateDirectory, tmp_path: Path) -> None:
    plan = bytes(range(100))
    state.keep_plan(name(plan), plan)
    assert state.plan(name(plan)) == plan
    (tmp_path / "s" / "plans" / name(plan)).write_bytes(plan[:-1])
    assert not state.has_plan(name(plan))
    assert not (tmp_path / "s" / "plans" / name(plan)).exists()


def test_the_plans_used_longest_ago_make_room(state: StateDirectory, tmp_path: Path) -> None:
    plans = [bytes([i]) * 400 for i in range(4)]
    for order, plan in enumerate(plans[:2]):
        state.keep_plan(name(plan), plan)
        os.utime(tmp_path / "s" / "plans" / name(plan), (order, order))
    assert state.plan(name(plans[0])) is not None
    state.keep_plan(name(plans[2]), plans[2])
    assert [state.has_plan(name(plan)) for plan in plans] == [True, False, True, False]


def test_a_plan_larger_than_the_cache_is_kept_while_it_is_the_newest(state: StateDirectory) -> None:
    state.keep_plan(name(b"x" * 5000), b"x" * 5000)
    assert state.has_plan(name(b"x" * 5000))
    state.keep_plan(name(b"y" * 900), b"y" * 900)
    assert not state.has_plan(name(b"x" * 5000))


def test_an_update_outlives_the_process_and_a_damaged_one_does_not(state: StateDirectory, tmp_path: Path) -> None:
    assert state.outbox(5) is None
    kept = state.keep_update("k", "t", b"line\nline\n", 5)
    found = state.outbox(5)
    assert found is not None
    assert replace(found, data=found.data[0:100]) == Outbox("k", "t", b"line\nline\n")
    assert (len(kept), kept[0:10], kept[5:9], kept[9:99]) == (10, b"line\nline\n", b"line", b"\n")
    path = tmp_path / "s" / "outbox"
    for damage in (path.read_bytes()[:-1], b"{}", b"", b"\xff\n", b'{"sha256":"' + name(b"").encode() + b'"}\n'):
        path.write_bytes(damage)
        assert state.outbox(5) is None


def test_no_cut_and_no_flipped_bit_of_an_outbox_is_offered_and_each_is_told_and_moved_aside(
    state: StateDirectory, tmp_path: Path
) -> None:
    path = tmp_path / "s" / "outbox"
    state.keep_update("k", "t", b"an update", 5)
    whole = path.read_bytes()
    cuts = [whole[:end] for end in range(len(whole))]
    flips = [
        bytes(byte ^ (1 << bit) * (at == i) for i, byte in enumerate(whole))
        for at in range(len(whole))
        for bit in (0, 7)
    ]
    for damage in (*cuts, *flips):
        path.write_bytes(damage)
        assert state.outbox(5) is None, damage
        assert len(state.troubles()) == 1
        assert (tmp_path / "s" / "outbox.damaged").read_bytes() == damage
        assert not path.exists()
    assert state.troubles() == []


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_at_any_step_leaves_the_update_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, number: int
) -> None:
    state = StateDirectory(tmp_path / "s", 100)
    state.keep_update("k", "t", b"first", 5)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        owner, name_of = (os, "fsync") if step == "fsync" else (Path, step)
        patched.setattr(owner, name_of, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            state.keep_update("l", "u", b"second", 5)
    state.close()
    again = StateDirectory(tmp_path / "s", 100)
    found = again.outbox(5)
    assert found is not None
    assert (found.task, found.data[0:9]) == ("t", b"first")
    assert again.troubles() == []
    again.keep_update("m", "v", b"third", 5)
    third = again.outbox(5)
    assert third is not None
    assert third.task == "v"
    again.close()


def test_a_generation_that_is_no_number_is_told_and_moved_aside(state: StateDirectory, tmp_path: Path) -> None:
    (tmp_path / "s" / "gen").write_bytes(b"\x00\x00\x00\x00")
    assert state.gen() == 0
    assert "holds no number" in state.troubles()[0]
    assert (tmp_path / "s" / "gen.damaged").exists()
    assert state.gen() == 0
    assert state.troubles() == []


def test_a_damaged_file_that_cannot_be_moved_is_still_told(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "s" / "outbox").write_bytes(b"rubbish")
    monkeypatch.setattr(Path, "replace", read_only)
    assert state.outbox(5) is None
    assert "cannot be moved aside" in state.troubles()[0]


def test_an_update_that_is_being_sent_stays_when_the_next_one_is_kept(state: StateDirectory) -> None:
    first = state.keep_update("k", "t", b"first", 5)
    state.keep_update("l", "u", b"second one", 5)
    state.drop_update()
    assert first[0:9] == b"first"


def test_an_update_that_the_disk_does_not_give_back_is_an_error_by_name(state: StateDirectory, tmp_path: Path) -> None:
    data = state.keep_update("k", "t", b"update", 5)
    os.truncate(tmp_path / "s" / "outbox", 10)
    with pytest.raises(FileUnreadable, match="not there any more"):
        data[0:6]


def test_an_update_that_was_trained_on_other_data_is_not_offered(state: StateDirectory) -> None:
    state.keep_update("k", "t", b"1", 5)
    assert state.outbox(4) is None
    assert state.outbox(6) is None


def test_a_disk_that_became_read_only_still_gives_what_it_has(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state.keep_plan(name(b"plan"), b"plan")
    state.keep_plan(name(b"other"), b"other")
    (tmp_path / "s" / "plans" / name(b"other")).write_bytes(b"damaged")
    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    assert state.plan(name(b"plan")) == b"plan"
    assert state.plan(name(b"other")) is None


def read_only(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_forgotten_update_is_gone(state: StateDirectory) -> None:
    state.keep_update("k", "t", b"1", 5)
    state.drop_update()
    state.drop_update()
    assert state.outbox(5) is None
