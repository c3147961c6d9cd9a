"""The line of devices whose updates wait for room at the gateway, in the order they first asked."""

from dataclasses import dataclass

from edge_runtime.wire import messages

__all__ = ["Ticket", "WaitingLine"]


@dataclass
class Ticket:
    """A device's place in the line.

    Attributes:
        device: Whose it is; a device has one.
        uid: The upload's id.
        begin: What it offers.
        entered_bytes: What all who ever came before it offered; with `WaitingLine.left_bytes` this gives its place.
        touched: When the device last asked.
    """

    device: str
    uid: str
    begin: messages.Begin
    entered_bytes: int
    touched: float


class WaitingLine:
    """First come, first served; every operation takes the same time however long the line is.

    Attributes:
        left_bytes: What all who ever left the line, to the gateway or for good, had offered.
    """

    def __init__(self) -> None:
        """Nobody waits."""
        self.left_bytes = 0
        self._entered_bytes = 0
        self._tickets: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def take(self, now: float, device: str, uid: str, begin: messages.Begin) -> int:
        """Join the line, or keep the place in it with what the device offers now.

        Returns:
            Bytes that others offer who are served before; when somebody has left the line from behind, somewhat less.
        """
        ticket = self._tickets.get(device)
        if ticket is None:
            ticket = self._tickets[device] = Ticket(device, uid, begin, self._entered_bytes, now)
            self._entered_bytes += begin.size_bytes
        else:
            self._entered_bytes += begin.size_bytes - ticket.begin.size_bytes
            ticket.uid, ticket.begin, ticket.touched = uid, begin, now
        return max(0, ticket.entered_bytes - self.left_bytes)

    def first(self) -> Ticket | None:
        """Whose turn it is next."""
        return next(iter(self._tickets.values()), None)

    def leave(self, device: str) -> None:
        """Take a device out of the line, if it is in it."""
        ticket = self._tickets.pop(device, None)
        if ticket is not None:
            self.left_bytes += ticket.begin.size_bytes

    def forget(self, before: float) -> None:
        """Take those out who last asked before this time."""
        for device in [ticket.device for ticket in self._tickets.values() if ticket.touched < before]:
            self.leave(device)
