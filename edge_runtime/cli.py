"""The command `edge-runtime VERB ...`: a table from verbs to modules, each imported only when its verb is used."""

import importlib
import io
import sys

from edge_runtime import __version__

__all__ = ["main"]

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

# verb -> (module with main(argv) -> exit code, the extra that installs what it needs, what it does)
VERBS = {
    "client": ("edge_runtime.client", "", "train on this board's data when a coordinator asks"),
    "info": ("edge_runtime.info", "", "show this machine and what runs on it"),
    "profile": ("edge_runtime.profile.cli", "", "time and memory of a plan, a model or a device's job on this machine"),
    "coordinator": ("coordinator.server", "gateway", "run a job, or those of a home, over the devices of a site"),
    "job": ("coordinator.jobs_cli", "gateway", "submit jobs to a home, look at them and steer them"),
    "device": ("coordinator.devices_cli", "gateway", "look at the devices of jobs, evict and readmit them"),
    "broker": ("coordinator.broker.cli", "", "run the embedded MQTT broker"),
    "plan": ("models.compiler.cli", "gateway", "compile an ONNX model into a training plan, or show one"),
    "demo": ("coordinator.demo.cli", "demo", "broker, coordinator and devices on this machine, on real data"),
    "bench": ("edge_runtime.bench", "test", "ratios against what one would use instead"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Verb and its arguments; None for the process's own.

    Returns:
        The verb's exit code; 2 for an unknown verb or a missing extra, 130 after Ctrl-C where the verb has no other.
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["--version"], ["-V"]):
        print(f"edge-runtime {__version__}")
        return 0
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_usage())
        return 0 if words else EXIT_BAD_INPUT
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show ends no command
    if words[0] not in VERBS:
        print(f"edge-runtime: no verb {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return _run(words[0], words[1:])


def _run(verb: str, argv: list[str]) -> int:
    module, extra, _ = VERBS[verb]
    try:
        return int(importlib.import_module(module).main(argv))
    except ModuleNotFoundError as error:
        # Only what an extra would bring is explained so; a hole in our own package is a bug and shows itself.
        if not extra or str(error.name).split(".")[0] in {"edge_runtime", "coordinator", "models"}:
            raise
        print(
            f"edge-runtime {verb} needs the package {error.name!r}, which is not installed; "
            f"run: pip install 'edge-runtime[{extra}]'",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:  # while modules or data were loaded, too
        return EXIT_INTERRUPTED


def _usage() -> str:
    rows = "\n".join(f"  {verb:<12} {text}" for verb, (_, _, text) in VERBS.items())
    return (
        f"usage: edge-runtime VERB ...\n\n{rows}\n\nedge-runtime VERB --help says more; --version shows {__version__}"
    )
