"""What a job may have left on the broker: retained tasks and chunks that nobody needs any more."""

from collections.abc import Collection

from coordinator.program import Program
from coordinator.store import Store
from edge_runtime.wire import topics
from edge_runtime.wire.chunks import chunk_count
from edge_runtime.wire.events import Command, Publish

# Chunks of earlier versions that are cleared at one time.
OLD_CHUNKS = 256


def clear_versions(store: Store, site: str, keep: Collection[str] = ()) -> list[Command]:
    """Takes versions off the broker, the newest first, but for the blobs in `keep`.

    A crash may have come between a version's fold and that; and a broker that was killed comes back with what it had
    written last, up to a minute of rounds ago. Many small versions or the one before a large one: both are cheap, and
    of large ones few are made in a minute.
    """
    commands: list[Command] = []
    for sha256, size_bytes in store.digests(OLD_CHUNKS):
        if sha256 in keep:
            continue
        if commands and len(commands) + chunk_count(size_bytes) > OLD_CHUNKS:
            break
        commands += _clear_blob(site, sha256, size_bytes)
    return commands


def clear_stage(program: Program, site: str, number: int, keep: Collection[str] = ()) -> list[Command]:
    """Takes the plans of the stage before a round's off the broker, but for those that the round uses or are kept."""
    used = {plan.sha256 for plan in program.stage(number).files} | set(keep)
    before = [plan for plan in program.stage(number - 1).files if plan.sha256 not in used]
    return [command for plan in before for command in _clear_blob(site, plan.sha256, len(plan.data))]


def clear_job(program: Program, store: Store, site: str) -> list[Command]:
    """Takes an ended job off the broker: the broker may have been away when it ended."""
    tasks = [_clear(topics.task(site, device)) for device in sorted(store.journalled().fleet)]
    plans = [command for plan in program.plans.values() for command in _clear_blob(site, plan.sha256, len(plan.data))]
    return [*tasks, *plans, *clear_versions(store, site)]


def _clear_blob(site: str, sha256: str, size_bytes: int) -> list[Command]:
    return [_clear(topics.chunk(site, sha256, index)) for index in range(chunk_count(size_bytes))]


def _clear(topic: str) -> Command:
    return Publish(topic, b"", 1, retain=True)
