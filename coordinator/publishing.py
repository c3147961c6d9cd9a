"""What a job has on the broker: tasks, and the blobs that they name for as long as an open task needs them."""

from collections.abc import Iterable

from coordinator.blob_use import BlobUse
from coordinator.leftovers import clear_stage, clear_versions
from coordinator.program import Program
from coordinator.store import Store, Version
from edge_runtime.wire.events import Command
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.tasks import Task


class Publisher:
    """Publishes tasks and blobs, and takes off what nobody needs; `version` is the newest, which new tasks start from.

    Every method returns what is to be published.
    """

    def __init__(self, session: GatewaySession, program: Program, version: Version) -> None:
        self.version = version
        self._session = session
        self._program = program
        self._use = BlobUse()

    def offer(self, version: Version) -> list[Command]:
        """Publishes what is sent of a version, and the plans that run on it."""
        blobs = self._plans(version.version) | version.sent.blobs
        return [command for sha256, data in blobs.items() for command in self._session.publish_blob(sha256, data)]

    def send(self, task: Task, payload: bytes) -> list[Command]:
        """Publishes a task whose blobs are published, and takes those of the device's last one off."""
        sent = self._session.send_task(task.device, task, payload=payload)
        return sent + self._drop(self._use.take(task.device, {*task.blobs, *(step.blob for step in task.deltas)}))

    def clear(self, devices: Iterable[str]) -> list[Command]:
        """Takes the tasks of these devices off, and blobs that were theirs alone."""
        commands: list[Command] = []
        for device in devices:
            commands += self._session.clear_task(device)
            commands += self._drop(self._use.release(device))
        return commands

    def renew(self, made: Version, members: Iterable[str]) -> list[Command]:
        """A round has made the newest version: the tasks of its members end, and the version before goes."""
        old, self.version = self.version, made
        return self.clear(members) + self._drop({*old.sent.blobs, *self._plans(old.version)})

    def clear_leftovers(self, store: Store) -> list[Command]:
        """Takes off what earlier versions and stages may have left, after a crash of either end."""
        site, used = self._session.site, self._use.used
        return [
            *clear_versions(store, site, keep={*self.version.sent.blobs, *used}),
            *clear_stage(self._program, site, self.version.version, keep=used),
        ]

    def withdraw(self, devices: Iterable[str]) -> list[Command]:
        """The job has ended: takes everything off, for all these devices."""
        plans = (plan.sha256 for plan in self._program.plans.values())
        blobs = sorted({*plans, *self.version.sent.blobs, *self._use.used})
        return [
            *(command for device in sorted(devices) for command in self._session.clear_task(device)),
            *(command for sha256 in blobs for command in self._session.drop_blob(sha256)),
        ]

    def _drop(self, unused: set[str]) -> list[Command]:
        """Takes blobs off that no open task needs, but for what the next tasks will."""
        if not unused:
            return []
        kept = {*self.version.sent.blobs, *self._plans(self.version.version), *self._use.used}
        return [command for sha256 in sorted(unused - kept) for command in self._session.drop_blob(sha256)]

    def _plans(self, number: int) -> dict[str, bytes]:
        """The plans of a round, by SHA-256."""
        return {plan.sha256: plan.data for plan in self._program.stage(number).files}
