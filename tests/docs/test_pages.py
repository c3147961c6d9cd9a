"""What docs say of the code is what the code says, and their examples run."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from coordinator.jobs_cli import main as job
from support.data import REPOSITORY
from support.memory import finished, start_all
from support.pages import PAGES, PARTS, SPOKEN, parts_of, rewritten
from support.tiny_job import make_site

if TYPE_CHECKING:
    from pathlib import Path

DOCS = REPOSITORY / "docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_the_tables_of_a_page_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rewritten(text) == text, f"{page.name} is stale; make docs writes it anew"


def test_every_part_stands_on_one_page() -> None:
    assert sorted(name for page in PAGES for name in parts_of(page)) == sorted(PARTS)


def test_every_refusal_in_the_code_has_a_meaning_on_the_page() -> None:
    sources = [*(REPOSITORY / "coordinator").glob("*.py"), *(REPOSITORY / "edge_runtime" / "wire").glob("*.py")]
    text = "\n".join(each.read_text(encoding="utf-8") for each in sources)
    spoken = re.findall(r'(?:Refusal|Refuse)\(\s*(?:\w+\.uid, )?"([A-Z]\w+)"', text)
    assert set(spoken) == SPOKEN.keys()


def test_links_between_pages_lead_to_files() -> None:
    for page in [*DOCS.glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_notebooks_lines_read_the_rounds_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (DOCS / "monitoring.md").read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, object] = {}
    exec(lines, found)  # noqa: S102  our own page
    told = site.seen("round_done")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
    assert found["total_up"] == sum(event["bytes_up"] for event in told)
    assert found["best"]["accuracy"] == max(event["accuracy"] for event in told)  # type: ignore[index]
    section = (DOCS / "monitoring.md").read_text(encoding="utf-8").partition("| column | unit | meaning |")[2]
    cells = re.findall(r"^\| (`.*?`) \|", section.partition("\n## ")[0], re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert names == list(found["best"].keys())  # type: ignore[attr-defined]


def test_tensorboard_reads_back_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    assert job(["export", "--state", str(site.state), "--tensorboard", str(tmp_path / "runs")]) == 0
    assert "2 rounds" in capsys.readouterr().out
    (file,) = (tmp_path / "runs" / "tiny").iterdir()
    scalars = {(tag, step): value for tag, step, value in read_scalars(file.read_bytes())}
    for event in site.seen("round_done"):
        for tag, key in [
            ("held_out/accuracy", "accuracy"),
            ("held_out/loss", "loss"),
            ("traffic/bytes_up", "bytes_up"),
        ]:
            assert scalars[tag, event["round"]] == pytest.approx(event[key], rel=1e-6)
    updates = [event for event in site.seen("update") if event["round"] == 2]
    examples = sum(event["examples"] for event in updates)
    mean = sum(event["loss"] * event["examples"] for event in updates) / examples
    assert scalars["training/loss", 2] == pytest.approx(mean, rel=1e-6)


def test_an_export_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(["export", "--state", str(tmp_path)]) == 2
    assert "--tensorboard" in capsys.readouterr().err


def read_scalars(data: bytes) -> list[tuple[str, int, float]]:
    """The records of an event file: length, its masked CRC-32C, an Event, and the CRC of that."""
    found: list[tuple[str, int, float]] = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + size]
        assert struct.unpack_from("<I", data, at + 8)[0] == masked(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + size)[0] == masked(body)
        event = Event.FromString(body)
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        at += 16 + size
    return found


def masked(data: bytes) -> int:
    """The mask of TFRecord files."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
