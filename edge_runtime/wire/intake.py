"""Uploads on their way into the gateway: which are taken, what has come of each, and what to answer.

An upload is ABSENT until a `begin` passes admission, COLLECTING until its chunks are complete and its SHA-256 is right,
CHECKING until the caller has made it durable and accepts it, or refuses it. The table at the end of Intake says what a
message does in each of these states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from edge_runtime.errors import LocalError, RemoteError
from edge_runtime.wire import messages
from edge_runtime.wire.chunks import Assembler
from edge_runtime.wire.events import UpdateReceived

__all__ = ["BadUid", "Intake", "NotOffered", "Refusal"]

WINDOW = 4
MAX_ATTEMPTS = 3
BUSY_RETRY_S = 5.0
IDLE_UPLOAD_S = 120.0


class NotOffered(LocalError):
    """An upload that is not waiting for a decision was accepted or refused."""


class BadUid(RemoteError):
    """An upload's id is not the beginning of its SHA-256, or is taken by another upload."""


@dataclass(frozen=True)
class Refusal:
    """Why an offered update is not wanted, and after what time it may be offered again (None: never)."""

    rule: str
    message: str
    retry_s: float | None = None


class _Stage(Enum):
    ABSENT = auto()
    COLLECTING = auto()
    CHECKING = auto()


class _Input(Enum):
    BEGIN = auto()
    CHUNK = auto()


@dataclass
class _Upload:
    """One update on its way in.

    assembler is None only while ABSENT. fresh counts the chunks that were new since the last answer: repeated ones earn
    no credit, or a device that hears two answers would send at twice the window from then on.
    """

    device: str
    uid: str
    begin: messages.Begin
    assembler: Assembler | None = None
    touched: float = 0.0
    stage: _Stage = _Stage.ABSENT
    fresh: int = 0
    attempts: int = 1


Answer = messages.Down | UpdateReceived


class Intake:
    """The open uploads of all devices, within a budget of memory."""

    def __init__(self, max_update_bytes: int, budget_bytes: int) -> None:
        """Start without uploads; both caps are checked before any memory is taken."""
        self._max_update_bytes = max_update_bytes
        self._budget_bytes = budget_bytes
        self._uploads: dict[tuple[str, str], _Upload] = {}

    @property
    def open_bytes(self) -> int:
        """Memory promised to open uploads."""
        return sum(upload.begin.size_bytes for upload in self._uploads.values())

    @property
    def open_uploads(self) -> int:
        """How many uploads are open."""
        return len(self._uploads)

    def begin(
        self, now: float, device: str, uid: str, begin: messages.Begin, refusal: Callable[[], Refusal | None]
    ) -> list[Answer]:
        """Take an offer, or the resumption of one.

        Args:
            now: Seconds of a monotonic clock.
            device: Who offers.
            uid: The id in the topic.
            begin: The offer.
            refusal: Asked only for a new upload: why the caller does not want it, or None.

        Raises:
            BadUid: The id is not the offer's.
        """
        upload = self._uploads.get((device, uid))
        if upload is None:
            no = refusal() or self._over_caps(device, begin)
            if no is not None:
                return [messages.Refuse(uid, no.rule, no.message, no.retry_s)]
            upload = _Upload(device, uid, begin)
        elif upload.begin != begin:
            raise BadUid(f"upload {uid} is open for {upload.begin.task}, not for {begin.task}")
        upload.touched = now
        return self._table[upload.stage, _Input.BEGIN](self, upload, -1, b"")

    def chunk(self, now: float, device: str, uid: str, index: int, payload: bytes) -> list[Answer]:
        """Take a chunk.

        Raises:
            BadChunk, BadChunkIndex: It does not belong to this upload as it was announced.
        """
        upload = self._uploads.get((device, uid))
        if upload is None:
            return []  # a stray: the device asks again within 2 s and learns how things stand
        upload.touched = now
        return self._table[upload.stage, _Input.CHUNK](self, upload, index, payload)

    def settle(self, device: str, uid: str) -> messages.Begin:
        """End an upload that waits for a decision, and give back its offer.

        Raises:
            NotOffered: There is no such upload.
        """
        upload = self._uploads.get((device, uid))
        if upload is None or upload.stage is not _Stage.CHECKING:
            raise NotOffered(f"device {device} has no upload {uid} that waits for a decision")
        del self._uploads[device, uid]
        return upload.begin

    def drop(self, device: str, uid: str) -> None:
        """Forget an upload, if there is one."""
        self._uploads.pop((device, uid), None)

    def drop_idle(self, now: float) -> None:
        """Take the memory back from uploads that stood still for IDLE_UPLOAD_S."""
        self._drop_partial(lambda upload: now - upload.touched >= IDLE_UPLOAD_S)

    def _over_caps(self, device: str, begin: messages.Begin) -> Refusal | None:
        if begin.size_bytes > self._max_update_bytes:
            return Refusal("UpdateTooLarge", f"{begin.size_bytes} bytes; the cap is {self._max_update_bytes}")
        # The device's own partial upload makes way for the new one, see _open.
        freed = sum(u.begin.size_bytes for u in self._uploads.values() if _partial_of(u, device))
        if self.open_bytes - freed + begin.size_bytes > self._budget_bytes:
            return Refusal("GatewayBusy", "too many uploads are open; come back later", BUSY_RETRY_S)
        return None

    def _drop_partial(self, condition: Callable[[_Upload], bool]) -> None:
        for key, upload in list(self._uploads.items()):
            if upload.stage is _Stage.COLLECTING and condition(upload):
                del self._uploads[key]

    def _open(self, upload: _Upload, _index: int, _payload: bytes) -> list[Answer]:
        # One partial upload a device: a device that restarts with another result gives up the first one.
        self._drop_partial(lambda other: other.device == upload.device)
        upload.assembler = Assembler(upload.begin.sha256, upload.begin.size_bytes, self._max_update_bytes)
        upload.stage = _Stage.COLLECTING
        self._uploads[upload.device, upload.uid] = upload
        return self._resume(upload, -1, b"")

    def _resume(self, upload: _Upload, _index: int, _payload: bytes) -> list[Answer]:
        assert upload.assembler is not None, "only an ABSENT upload has none"
        upload.fresh = 0
        return [messages.Have(upload.uid, upload.assembler.have().hex(), WINDOW)]

    def _collect(self, upload: _Upload, index: int, payload: bytes) -> list[Answer]:
        assert upload.assembler is not None, "only an ABSENT upload has none"
        upload.fresh += upload.assembler.add(index, payload)
        if upload.assembler.complete:
            return self._complete(upload, upload.assembler)
        return self._resume(upload, -1, b"") if upload.fresh >= WINDOW else []

    def _complete(self, upload: _Upload, assembler: Assembler) -> list[Answer]:
        data = assembler.take()
        if data is not None:
            upload.stage = _Stage.CHECKING
            return [UpdateReceived(upload.device, upload.begin.task, upload.uid, upload.begin.sha256, data)]
        if upload.attempts == MAX_ATTEMPTS:
            self.drop(upload.device, upload.uid)
            message = f"{MAX_ATTEMPTS} times the chunks did not give the SHA-256 that was announced"
            return [messages.Refuse(upload.uid, "ChecksumMismatch", message, None)]
        upload.attempts += 1
        return self._resume(upload, -1, b"")

    def _ignore(self, upload: _Upload, _index: int, _payload: bytes) -> list[Answer]:  # noqa: ARG002 a row of the table
        return []

    _table: ClassVar[dict[tuple[_Stage, _Input], Callable[["Intake", _Upload, int, bytes], list[Answer]]]] = {
        (_Stage.ABSENT, _Input.BEGIN): _open,
        (_Stage.COLLECTING, _Input.BEGIN): _resume,
        (_Stage.COLLECTING, _Input.CHUNK): _collect,
        # The chunks are all here; the device waits, and asks again, until accept or refuse.
        (_Stage.CHECKING, _Input.BEGIN): _resume,
        (_Stage.CHECKING, _Input.CHUNK): _ignore,
    }


def _partial_of(upload: _Upload, device: str) -> bool:
    return upload.stage is _Stage.COLLECTING and upload.device == device
