"""How a coordinator comes onto a site: it learns what its epoch must be, and gives way to one that is there.

Run before a GatewaySession, on a connection without a will. Nothing but the presence is published here, so that a
coordinator that is not wanted has touched no task and no blob of the other's job.
"""

from dataclasses import dataclass

from edge_runtime.errors import RemoteError
from edge_runtime.wire import messages, topics
from edge_runtime.wire.events import GatewaySuperseded, Publish, Subscribe, Warned

__all__ = ["SiteEntry"]

# From the broker's confirmation to its retained message, where there is one.
ASK_S = 0.3
# For another coordinator to answer: two ways through the broker, and what it may be busy with.
ANSWER_S = 2.0

EntryOutcome = Subscribe | Publish | GatewaySuperseded | Warned


@dataclass
class SiteEntry:
    """Ask for the retained presence; where it says "up", say that we are there and listen for who was first.

    `epoch` is one more than the larger of stored_epoch and the retained one; keep it on disk once `entered`.
    """

    site: str
    stored_epoch: int
    boot: str
    entered: bool = False
    _seen_epoch: int = 0
    _someone: bool = False
    _spoken: bool = False
    _until: float | None = None

    @property
    def epoch(self) -> int:
        """What this coordinator's epoch is, as far as is known."""
        return min(max(self.stored_epoch, self._seen_epoch) + 1, messages.MAX_EPOCH)

    def connected(self) -> list[EntryOutcome]:
        """Take up a new connection, from the beginning."""
        self._someone, self._spoken, self._until = False, False, None
        return [Subscribe((topics.gateway(self.site),), 1)]

    def subscribed(self, now: float) -> list[EntryOutcome]:
        """Note that the broker has confirmed the subscription."""
        self._until = now + ASK_S if self._until is None else self._until
        return []

    def received(self, now: float, payload: bytes) -> list[EntryOutcome]:
        """Take a message of the `gateway` topic; one that breaks a rule is ignored, with a warning."""
        try:
            state = messages.parse_gateway(payload) if payload else None
        except RemoteError as error:
            return [Warned("gateway", error.rule, str(error))]
        if state is None:
            return []
        if self._spoken:
            older = (state.epoch, state.boot) < (self.epoch, self.boot)
            return [GatewaySuperseded(state.epoch)] if older and state.state == "up" else []
        # Our own words stand here when the connection was cut while we listened; they hide those of another.
        self._someone, self._until = state.state == "up", now
        if state.boot != self.boot:
            self._seen_epoch = max(self._seen_epoch, state.epoch)
        return []

    def tick(self, now: float) -> list[EntryOutcome]:
        """Let time pass; call it every few hundred milliseconds."""
        if self._until is None or now < self._until:
            return []
        if self._spoken or not self._someone:
            self.entered = True
            return []
        self._spoken, self._until = True, now + ANSWER_S
        state = messages.GatewayState(self.epoch, self.boot, "up")
        return [Publish(topics.gateway(self.site), messages.format_gateway(state), 1, retain=True)]
