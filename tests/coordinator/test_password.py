"""The broker's password stays out of what is printed; logs travel further than the command that was typed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.broker.probe import without_password

URL = "mqtt://gateway:s3cret@127.0.0.1:1"
JOB = """
[job]
name = "j"
seed = 1
rounds = 1
[model]
zoo = "mlp"
input_shape = [4]
classes = 2
[method]
name = "fedavg"
[training]
epochs = 1
batch = 4
lr = 0.1
[round]
devices = 1
min_updates = 1
deadline_s = 5.0
[evaluate]
data = "."
"""


def edge_runtime(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_runtime", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://a:b@host:1883", "mqtt://***@host:1883"),
        ("mqtt://a:b@c@host", "mqtt://***@host"),
        ("mqtt://host", "mqtt://host"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_login(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_the_coordinators_log_has_no_password(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    np.savez(tmp_path / "test.npz", x=np.zeros((3, 4), np.float32), y=np.arange(3) % 2)
    with edge_runtime("coordinator", "--job", tmp_path / "job.toml", "--state", tmp_path / "s", "--broker", URL) as it:
        assert it.stdout is not None
        first, second = it.stdout.readline(), it.stdout.readline()
        it.terminate()
        rest, _ = it.communicate(timeout=30)
    assert "listening url=mqtt://***@127.0.0.1:1" in first
    assert "no link" in second
    assert "s3cret" not in first + second + rest


@pytest.mark.parametrize("url", [URL, URL + "999999", URL.replace("mqtt", "http")])
def test_a_demo_that_finds_no_broker_says_so_without_the_password(url: str) -> None:
    with edge_runtime("demo", "--broker", url) as it:
        said, _ = it.communicate(timeout=60)
    assert it.returncode == 2
    assert "***@127.0.0.1" in said
    assert "s3cret" not in said
