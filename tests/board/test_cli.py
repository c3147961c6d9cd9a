"""The command line: verbs, help, and what is missing."""

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NoReturn

import pytest

from edge_runtime import __version__, cli


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"edge-runtime {__version__}\n"


def test_help_lists_every_verb_and_no_verb_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in cli.VERBS)
    assert cli.main([]) == 2
    assert cli.main(["clinet"]) == 2
    assert "'clinet'" in capsys.readouterr().err


def test_info_tells_what_this_machine_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["isa_available"]
    assert facts["version"] == __version__
    assert facts["cores"] >= 1
    assert cli.main(["info"]) == 0
    assert "numpy" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [verb for verb, (_, extra, _) in cli.VERBS.items() if extra])
def test_a_verb_without_its_extra_says_which_to_install(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name, name="onnx")

    monkeypatch.setattr(importlib, "import_module", absent)
    assert cli.main([verb]) == 2
    assert f"pip install 'edge-runtime[{cli.VERBS[verb][1]}]'" in capsys.readouterr().err


def test_a_hole_in_our_own_package_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name, name="models.compiler.cli")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["plan"])


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - {"bench"}))
def test_every_verb_has_a_main(verb: str) -> None:
    assert callable(importlib.import_module(cli.VERBS[verb][0]).main)


def test_a_package_that_is_missed_only_at_work_is_explained_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(cli.importlib, "import_module", lambda _name: SimpleNamespace(main=main))
    assert cli.main(["demo"]) == 2
    assert "pip install 'edge-runtime[demo]'" in capsys.readouterr().err


def test_an_interrupt_while_a_verb_is_loaded_is_its_code_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_module: str) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert cli.main(["info"]) == 130


def test_help_of_the_benches_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    assert "fleet" in capsys.readouterr().out


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    code = "import sys; from edge_runtime import cli; cli.main(['info', '--json']); print('\xe4')"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "\\xe4")
