"""Upload of one update: offer it, send the window of chunks the gateway asks for, ask again when it is silent."""

from dataclasses import dataclass

from edge_runtime.errors import RemoteError
from edge_runtime.wire import messages, topics
from edge_runtime.wire.chunks import Readable, chunk_count, cut_chunk, missing_chunks, parse_bitmap
from edge_runtime.wire.events import DeviceCommand, Publish, PublishChunk

__all__ = ["Offer"]

RETRY_S = 2.0
# Half a window: the other half is on its way while the answer is.
ACK_CHUNKS = 2
MAX_RETRY_S = 30.0


@dataclass
class Offer:
    """An update on its way to the gateway.

    _patience_s is how long silence is borne before `begin` is said again. It doubles with every silence and falls back
    only when the gateway turns out to lack a chunk that was sent: on a link where one window takes longer than
    RETRY_S, silence means slowness, and asking sooner would only send everything twice.

    A small update travels with its offer in one message, where the gateway takes such; it is offered again without.

    _in_flight holds the chunks sent and not yet confirmed, in the order they were sent. The connection keeps it:
    one sent before a confirmed one is lost, those sent after the last confirmed one are still on their way.
    """

    site: str
    device: str
    task: str
    sha256: str
    data: Readable
    _patience_s: float = RETRY_S
    _asked_at: float = 0.0
    _asked_since_sending: bool = True
    _last_bitmap: bytes = b""
    _in_flight: tuple[int, ...] = ()

    @property
    def uid(self) -> str:
        """The upload's id on the wire."""
        return self.sha256[:16]

    def start(self, now: float, whole_bytes: int = 0) -> list[DeviceCommand]:
        """Offer on a new connection, or to a coordinator that has just come up.

        Args:
            now: Seconds of a monotonic clock.
            whole_bytes: Updates of so much may come with their offer, as the gateway says.
        """
        self._patience_s, self._in_flight = RETRY_S, ()
        if len(self.data) > min(whole_bytes, messages.MAX_WHOLE_BYTES):
            return self._begin(now)
        try:
            payload = messages.format_whole(self._offered(), cut_chunk(self.data, 0))
        except RemoteError:
            return self._begin(now)  # a disk that fails is told of when the gateway asks for the chunk
        self._asked_at = now
        # As if an answer had asked for the chunk, and it were on its way.
        self._in_flight, self._last_bitmap, self._asked_since_sending = (0,), bytes(1), False
        return [self._publish("whole", payload, 0)]

    def tick(self, now: float) -> list[DeviceCommand]:
        """Offer again when the gateway was silent for too long."""
        if now - self._asked_at < self._patience_s:
            return []
        self._patience_s = min(2 * self._patience_s, MAX_RETRY_S)
        return self._begin(now)

    def have(self, now: float, answer: messages.Have) -> list[DeviceCommand]:
        """Send the first chunks that the gateway lacks and that are not on their way, up to `window` in flight.

        Raises:
            BadBitmap: The answer's bitmap does not fit this update.
        """
        chunks = chunk_count(len(self.data))
        bitmap = parse_bitmap(answer.have, chunks)
        self._asked_at = now
        if bitmap == self._last_bitmap and not self._asked_since_sending:
            return []  # the second answer to one question; those chunks are on their way
        # Asked again, the gateway has nothing more than the last time: what was sent meanwhile is lost.
        flying = () if bitmap == self._last_bitmap else _behind_the_last_confirmed(self._in_flight, bitmap)
        lacking = missing_chunks(bitmap, chunks, answer.window + len(flying))
        indexes = [index for index in lacking if index not in flying][: max(0, answer.window - len(flying))]
        if any(index in self._in_flight for index in indexes):
            self._patience_s = RETRY_S
        self._last_bitmap, self._in_flight = bitmap, (*flying, *indexes)
        self._asked_since_sending = not self._in_flight
        return [PublishChunk(self._topic(index), self.data, index) for index in indexes]

    def _begin(self, now: float) -> list[DeviceCommand]:
        self._asked_at = now
        self._asked_since_sending = True
        return [self._publish("begin", messages.format_begin(self._offered()), 1)]

    def _offered(self) -> messages.Begin:
        return messages.Begin(self.task, self.sha256, len(self.data), ACK_CHUNKS)

    def _publish(self, part: str, payload: bytes, qos: int) -> Publish:
        return Publish(self._topic(part), payload, qos)

    def _topic(self, part: str | int) -> str:
        return topics.upload(self.site, self.device, self.uid, part)


def _behind_the_last_confirmed(sent: tuple[int, ...], bitmap: bytes) -> tuple[int, ...]:
    confirmed = [place for place, index in enumerate(sent) if bitmap[index // 8] >> (index % 8) & 1]
    return sent[confirmed[-1] + 1 :] if confirmed else sent
