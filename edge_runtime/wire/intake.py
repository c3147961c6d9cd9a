"""Uploads on their way into the gateway: which are taken, what has come of each, and what to answer.

An upload is ABSENT until a `begin` passes admission, COLLECTING until its chunks are complete and its SHA-256 is right,
CHECKING until the caller has made it durable and accepts it, or refuses it. The table at the end of Intake says what a
message does in each of these states.

Uploads that are not ABSENT share a budget of memory. What does not fit into it waits in a line: the device is told when
to ask again, by its place, and is sent its first `have` as soon as there is room, so that nobody waits for a clock and
nobody who asks more often is served sooner. An update larger than the budget is taken when nothing else is open, and a
small one that comes with its offer at once: to let it wait would save nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from edge_runtime.errors import LocalError, RemoteError
from edge_runtime.wire import messages
from edge_runtime.wire.chunks import Assembler, checked_piece, digest_of
from edge_runtime.wire.events import UpdateReceived
from edge_runtime.wire.waiting import WaitingLine

__all__ = ["BadUid", "Intake", "NotOffered", "Refusal"]

WINDOW = 4
MAX_ATTEMPTS = 3
# A device that waits asks again after so long, and as long again for every budget of bytes before it.
BUSY_RETRY_S = 5.0
MAX_BUSY_RETRY_S = 60.0
IDLE_UPLOAD_S = 120.0
# The bitmap of an update that came in one piece.
ALL_OF_ONE = b"\1"


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
    WHOLE = auto()
    CHUNK = auto()


@dataclass
class _Upload:
    """One update on its way in.

    assembler is None while ABSENT, and of an update that came in one piece. fresh counts the chunks that were new since
    the last answer: repeated ones earn no credit, or a device that hears two answers would send at twice the window
    from then on.
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
        self._partial: dict[str, _Upload] = {}  # the COLLECTING one of a device, of which it has at most one
        self._waiting = WaitingLine()
        self._open_bytes = 0
        self._now = 0.0

    @property
    def open_bytes(self) -> int:
        """Memory promised to open uploads."""
        return self._open_bytes

    @property
    def open_uploads(self) -> int:
        """How many uploads are open."""
        return len(self._uploads)

    @property
    def waiting(self) -> int:
        """How many devices wait for room."""
        return len(self._waiting)

    def begin(  # noqa: PLR0913, PLR0917 a message and what its judge needs
        self,
        now: float,
        device: str,
        uid: str,
        begin: messages.Begin,
        refusal: Callable[[], Refusal | None],
        piece: bytes | None = None,
    ) -> list[Answer]:
        """Take an offer, or the resumption of one.

        Args:
            now: Seconds of a monotonic clock.
            device: Who offers.
            uid: The id in the topic.
            begin: The offer.
            refusal: Asked only for a new upload: why the caller does not want it, or None.
            piece: The only chunk, where it comes with the offer: there is room for it always, since it is here.

        Raises:
            BadUid: The id is not the offer's.
            BadChunk, BadChunkIndex: The chunk is not that of the offer.
        """
        self._now = now
        upload = self._known(device, uid, begin)
        if upload.stage is _Stage.ABSENT:
            no = refusal() or self._too_large(begin) or (self._must_wait(device, uid, begin) if piece is None else None)
            if no is not None:
                return [messages.Refuse(uid, no.rule, no.message, no.retry_s)]
        if piece is None:
            return self._table[upload.stage, _Input.BEGIN](self, upload, -1, b"")
        return self._table[upload.stage, _Input.WHOLE](self, upload, 0, piece)

    def _known(self, device: str, uid: str, begin: messages.Begin) -> _Upload:
        """The upload of an offer; an ABSENT one is not kept yet."""
        upload = self._uploads.get((device, uid))
        if upload is None:
            return _Upload(device, uid, begin, touched=self._now)
        if upload.begin != begin:
            raise BadUid(f"upload {uid} is open for {upload.begin.task}, not for {begin.task}")
        upload.touched = self._now
        return upload

    def chunk(self, now: float, device: str, uid: str, index: int, payload: bytes) -> list[Answer]:
        """Take a chunk.

        Raises:
            BadChunk, BadChunkIndex: It does not belong to this upload as it was announced.
        """
        self._now = now
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
        self._forget(upload)
        return upload.begin

    def drop(self, device: str, uid: str) -> None:
        """Forget an upload, if there is one."""
        upload = self._uploads.get((device, uid))
        if upload is not None:
            self._forget(upload)

    def drop_idle(self, now: float) -> None:
        """Take the memory back from uploads that stood still for IDLE_UPLOAD_S, and the place from who did not ask."""
        self._now = now
        for upload in [each for each in self._partial.values() if now - each.touched >= IDLE_UPLOAD_S]:
            self._forget(upload)
        self._waiting.forget(now - IDLE_UPLOAD_S)

    def leave(self, device: str) -> None:
        """The device is gone and waits no more; what has come of its update stays for a while."""
        self._waiting.leave(device)

    def admit(self, refusal: Callable[[str, str], Refusal | None]) -> list[tuple[str, Answer]]:
        """Open the uploads for which there is room now, in the order of the line.

        Args:
            refusal: (device, task) -> why the caller does not want it any more, or None.

        Returns:
            Devices, and what each is to be told.
        """
        told: list[tuple[str, Answer]] = []
        while (ticket := self._waiting.first()) is not None and self._has_room(ticket.device, ticket.begin):
            self._waiting.leave(ticket.device)
            no = refusal(ticket.device, ticket.begin.task)
            if no is not None:
                told.append((ticket.device, messages.Refuse(ticket.uid, no.rule, no.message, no.retry_s)))
                continue
            upload = _Upload(ticket.device, ticket.uid, ticket.begin, touched=self._now)
            told += ((ticket.device, answer) for answer in self._open(upload, -1, b""))
        return told

    def _must_wait(self, device: str, uid: str, begin: messages.Begin) -> Refusal | None:
        first, own = self._waiting.first(), self._partial.get(device)
        its_turn = (first is None or first.device == device) and self._has_room(device, begin)
        if its_turn or (own is not None and begin.size_bytes <= own.begin.size_bytes):
            self._waiting.leave(device)
            return None
        before_bytes = self._waiting.take(self._now, device, uid, begin)
        retry_s = min(MAX_BUSY_RETRY_S, BUSY_RETRY_S * (1 + before_bytes // self._budget_bytes))
        return Refusal("GatewayBusy", f"{before_bytes} bytes of other updates are before this one", retry_s)

    def _too_large(self, begin: messages.Begin) -> Refusal | None:
        if begin.size_bytes <= self._max_update_bytes:
            return None
        return Refusal("UpdateTooLarge", f"{begin.size_bytes} bytes; the cap is {self._max_update_bytes}")

    def _has_room(self, device: str, begin: messages.Begin) -> bool:
        # The device's own partial upload makes way for the new one, see _open.
        own = self._partial.get(device)
        others = self._open_bytes - (own.begin.size_bytes if own is not None else 0)
        return others == 0 or others + begin.size_bytes <= self._budget_bytes

    def _forget(self, upload: _Upload) -> None:
        del self._uploads[upload.device, upload.uid]
        self._open_bytes -= upload.begin.size_bytes
        if self._partial.get(upload.device) is upload:
            del self._partial[upload.device]

    def _open(self, upload: _Upload, _index: int, _payload: bytes) -> list[Answer]:
        upload.assembler = Assembler(upload.begin.sha256, upload.begin.size_bytes, self._max_update_bytes)
        self._place(upload, _Stage.COLLECTING)
        self._partial[upload.device] = upload
        return self._resume(upload, -1, b"")

    def _place(self, upload: _Upload, stage: _Stage) -> None:
        # One partial upload a device: a device that restarts with another result gives up the first one.
        if upload.device in self._partial:
            self._forget(self._partial[upload.device])
        upload.stage = stage
        self._uploads[upload.device, upload.uid] = upload
        self._open_bytes += upload.begin.size_bytes

    def _take(self, upload: _Upload, index: int, payload: bytes) -> list[Answer]:
        """An update in one piece; a damaged one is as if it had not come."""
        begin = upload.begin
        data = bytes(checked_piece(payload, index, begin.size_bytes))
        if digest_of(data) != begin.sha256:
            return []
        self._waiting.leave(upload.device)
        self._place(upload, _Stage.CHECKING)
        return [UpdateReceived(upload.device, begin.task, upload.uid, begin.sha256, data)]

    def _resume(self, upload: _Upload, _index: int, _payload: bytes) -> list[Answer]:
        have = ALL_OF_ONE if upload.assembler is None else upload.assembler.have()
        upload.fresh = 0
        return [messages.Have(upload.uid, have.hex(), WINDOW)]

    def _collect(self, upload: _Upload, index: int, payload: bytes) -> list[Answer]:
        assert upload.assembler is not None, "whatever is COLLECTING has one"
        upload.fresh += upload.assembler.add(index, payload)
        if upload.assembler.complete:
            return self._complete(upload, upload.assembler)
        # A window that was answered only at its end would leave the link idle until the next one is on its way.
        answered = min(WINDOW, upload.begin.ack_chunks or WINDOW)
        return self._resume(upload, -1, b"") if upload.fresh >= answered else []

    def _complete(self, upload: _Upload, assembler: Assembler) -> list[Answer]:
        data = assembler.take()
        if data is not None:
            upload.stage = _Stage.CHECKING
            del self._partial[upload.device]
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
        (_Stage.ABSENT, _Input.WHOLE): _take,
        (_Stage.COLLECTING, _Input.BEGIN): _resume,
        (_Stage.COLLECTING, _Input.WHOLE): _collect,
        (_Stage.COLLECTING, _Input.CHUNK): _collect,
        # The chunks are all here; the device waits, and asks again, until accept or refuse.
        (_Stage.CHECKING, _Input.BEGIN): _resume,
        (_Stage.CHECKING, _Input.WHOLE): _ignore,
        (_Stage.CHECKING, _Input.CHUNK): _ignore,
    }
