"""The demo on input it must refuse, or must not trip over: exit code, message, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.zoo import MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.e2e
QUICK = ("--rounds", "1", "--epochs", "1", "--broker", "embedded")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edge_runtime", "demo", *map(str, arguments)]


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120)


def assert_refused(done: subprocess.CompletedProcess[str], *wanted: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    for word in wanted:
        assert word in done.stderr, done


def write_rows(folder: Path, *, examples: int = 80, labels: int = 3, **more: Any) -> tuple[object, ...]:
    """Noise of 12 numbers a row, and the options that name it."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    for part in ("train", "test"):
        x = rng.normal(size=(examples, 12)).astype(np.float32)
        np.savez(folder / f"{part}.npz", x=x, y=np.arange(examples) % labels, **more)
    return "--data", folder.name, "--data-dir", folder.parent


@pytest.mark.parametrize(
    "option",
    [
        ("--alpha", "0"),
        ("--alpha", "-1"),
        ("--alpha", "nan"),
        ("--lr", "0"),
        ("--lr", "inf"),
        ("--seed", "-1"),
        ("--seed", str(2**63)),
        ("--batch", "65537"),
        ("--epochs", "0"),
        ("--rounds", "1000001"),
        ("--devices", "none"),
        ("--broker", "localhost"),
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_named_with_its_value(option: Sequence[str]) -> None:
    assert_refused(demo(*option), *option[:1], option[1].removesuffix(".0"))


def test_a_label_no_classifier_could_have_is_refused_before_anything_is_made_for_it(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d", examples=4)
    x = np.zeros((4, 12), np.float32)
    np.savez(tmp_path / "d" / "train.npz", x=x, y=np.array([0, 1, 2, 2_000_000_000]))
    assert_refused(demo(*data), "2000000000", "65535")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    assert_refused(demo(*write_rows(tmp_path / "d", labels=1)), "greatest label is 0")


def test_clients_that_would_be_one_device_are_both_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d", client=np.array(["hall a", "hall/a"] * 40))
    assert_refused(demo(*data), "'hall a'", "'hall/a'", "'hall-a'")


def test_clients_may_be_called_as_the_demos_own_parts(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d", client=np.array(["test", "broker", "coordinator", "held-out"] * 20))
    done = demo(*data, *QUICK)
    assert done.returncode == 0, done


def test_ten_examples_are_enough_for_two_devices(tmp_path: Path) -> None:
    done = demo(*write_rows(tmp_path / "d", examples=10), *QUICK, "--devices", "2")
    assert done.returncode == 0, done


def test_what_the_coordinator_refuses_is_bad_input_told_once(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODELS["mlp"]((12,), 2, 1))
    data = write_rows(tmp_path / "d", labels=3)
    done = demo(*data, *QUICK, "--model", tmp_path / "m.onnx")
    assert_refused(done, "label 2")
    assert (done.stdout + done.stderr).count("label 2") == 1


def test_a_work_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    assert_refused(demo(*QUICK, "--work", tmp_path), "--work", "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("option", ["--work", "--report"])
def test_a_folder_for_results_that_cannot_be_made_is_told_before_the_work(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = demo(*QUICK, option, tmp_path / "file")
    assert_refused(done, option, "name another folder")
    assert "round" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_demo_that_is_asked_to_stop_leaves_no_process_and_no_folder(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ("--broker", "embedded", "--devices", "2", "--rounds", "100000")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    # Whatever a shell starts in the background ignores SIGINT, and so would the demo.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        while "round " not in (line := running.stdout.readline()):
            assert line, running.stderr.read()
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert said == "edge-runtime demo: stopped\n"
    assert len(children) == 4
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.glob("edge-runtime-*")) == []
