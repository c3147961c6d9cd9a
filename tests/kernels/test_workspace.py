"""Workspaces, and what is said of the kernels here."""

import pytest

from edge_runtime.kernels import Workspace, info


def test_every_instruction_set_that_runs_here_can_be_forced() -> None:
    said = info()
    assert [Workspace(isa=isa).isa for isa in said["available"]] == said["available"]
    assert said["isa"] in said["available"]
    assert not set(said["available"]) & set(said["unavailable"])


def test_the_environment_forces_an_instruction_set_and_info_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    slowest = info()["available"][0]
    monkeypatch.setenv("EDGE_ISA", slowest)
    assert info()["isa"] == Workspace().isa == slowest
    assert info()["why"] == f"EDGE_ISA={slowest} is set"


def test_an_unknown_instruction_set_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="'sse9' is not available here; available: auto, "):
        Workspace(isa="sse9")


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_thread_counts_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be in 1..256, got {threads}"):
        Workspace(threads=threads)


def test_a_new_workspace_holds_no_memory() -> None:
    workspace = Workspace(threads=2)
    assert (workspace.held_bytes, workspace.peak_bytes, workspace.threads) == (0, 0, 2)
