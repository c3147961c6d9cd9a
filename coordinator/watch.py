"""What watches a coordinator beside its log: where events go, and the sample that says how things stand."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from coordinator.events import Emit, to_all
from coordinator.stall import needed_bytes
from edge_runtime.board import memory_peak_kb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry

    from coordinator.gateway import RunningJob
    from coordinator.store import Store
    from edge_runtime.link import Link

__all__ = ["MetricsError", "every", "listen_address", "serve_metrics", "stand", "watching"]

LOOPBACK = "127.0.0.1"

_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})")


class MetricsError(ValueError):
    """The endpoint cannot be had; the message says why and what to do."""


def watching(emit: Emit, metrics: str | None, stack: ExitStack) -> tuple[Emit, dict[str, Any]]:
    """Adds the metrics endpoint to where events go, if one is asked for; the stack ends it.

    Returns:
        Where events go now, and what the `listening` event says of it.

    Raises:
        MetricsError: The address is none, or cannot be listened on.
    """
    if metrics is None:
        return emit, {}
    from coordinator.metrics import Metrics  # noqa: PLC0415  who shows no metrics needs no prometheus-client

    figures = Metrics()
    url = stack.enter_context(serve_metrics(figures.registry, *listen_address(metrics)))
    # Before `emit`, which leaves out what is told too often: every single one is counted.
    return to_all(figures.take, emit), {"metrics": url}


def listen_address(text: str) -> tuple[str, int]:
    """HOST and PORT of "[HOST:]PORT"; the host is 127.0.0.1 where none is named, and IPv6 stands in brackets.

    Raises:
        MetricsError: It is neither.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise MetricsError(f"--metrics {text!a} is not [HOST:]PORT, such as 9100, 0.0.0.0:9100 or [::1]:9100")
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


@contextmanager
def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> Iterator[str]:
    """Shows the registry over HTTP from a thread, as long as the context lasts; yields the URL; port 0 is any.

    Raises:
        MetricsError: The address cannot be listened on.
    """
    from prometheus_client import start_http_server  # noqa: PLC0415  as above

    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsError(
            f"metrics cannot be shown on {host}:{port}: {error.strerror or error}; give --metrics another [HOST:]PORT"
        ) from error
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def every(seconds: float, action: Callable[[], None]) -> Callable[[float], None]:
    """Does something once in so many seconds, counted from the first call with the time."""
    due_s: float | None = None

    def at(now_s: float) -> None:
        nonlocal due_s
        if due_s is not None and now_s >= due_s:
            action()
        if due_s is None or now_s >= due_s:
            due_s = now_s + seconds

    return at


def stand(job: RunningJob, link: Link, store: Store) -> dict[str, Any]:
    """The `sample` event."""
    free_bytes = shutil.disk_usage(store.directory).free
    return {
        "event": "sample",
        **job.sample(),
        "connected": int(link.connected),
        "connects": link.connects,
        "bytes_in": link.bytes_down,
        "bytes_out": link.bytes_up,
        "disk_free_bytes": free_bytes,
        "disk_usable": int(store.beats and free_bytes >= needed_bytes(job.published.version)),
        "rss_peak_kb": memory_peak_kb(),
    }
