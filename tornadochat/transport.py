"""The one small interface that both transports give to rooms and members.

``_reactor`` implements it in Cython over an epoll of its own, ``stream_transport`` in Python over
Tornado's IOStream (TLS, systems without epoll). ``room``, ``hub`` and ``member`` see only this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tornadochat._fastframe import Batch


class Connection(Protocol):
    """One member's socket."""

    owner: Any

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more; ``send`` and ``close`` are then ignored."""

    def send_text(self, payload: bytes) -> None:
        """Send one answer; never dropped, and closed with 1013 beyond ``max_answer_bytes``."""

    def hold(self, held: bool) -> None:
        """Read nothing while held, so that the peer's own socket fills; what was read is handled."""

    def close(self, code: int, reason: str = "") -> None:
        """Start the close handshake with a code of RFC 6455 section 7.4.1."""

    def abort(self) -> None:
        """End the connection at once, without a close frame."""


class Channel(Protocol):
    """The members that one room has on one transport, each with the seq it gets next."""

    def __len__(self) -> int:
        """Members in the room on this transport."""

    def __iter__(self) -> Iterator[Any]:
        """Owners of the connections, in no promised order."""

    def __contains__(self, connection: Any) -> bool:
        """Whether this connection is in the room."""

    @property
    def busy(self) -> bool:
        """Whether what is broadcast now has to wait for the end of an earlier fan-out."""

    def join(self, connection: Any, next_seq: int, live: bool) -> None:
        """Take a connection in, or move one that is in already."""

    def leave(self, connection: Any) -> None:
        """Let a connection go; one that is not in is no error."""

    def next_seq(self, connection: Any) -> int:
        """Seq that this connection gets next."""

    def silent(self, connection: Any) -> bool:
        """Whether broadcasts pass this connection by: it replays, or has a gap."""

    def replay(self, connection: Any, batch: Batch) -> int:
        """Send one silent connection what it lacks of a batch; returns its replayed bytes in flight."""

    def in_flight(self, connection: Any) -> int:
        """Replayed bytes that wait for this connection's socket, of all its rooms."""

    def set_live(self, connection: Any, next_seq: int) -> None:
        """Let broadcasts reach this connection, from ``next_seq`` on."""

    def set_silent(self, connection: Any) -> None:
        """Let broadcasts pass this connection by."""

    def broadcast(self, batch: Batch) -> None:
        """Send a batch to every live connection, after those that went before."""

    def reset(self, notice: Batch, next_seq: int) -> None:
        """Send a notice to every connection that is live now, and let each go on at ``next_seq``."""


class Transport(Protocol):
    """Makes channels; there is one transport of each kind in a worker."""

    on_work_left: Callable[[], None] | None
    connections: int
    deliveries: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    backlog_drops: int
    gaps: int

    def channel(self, key: Any) -> Channel:
        """A channel without members; ``key`` is what ``on_gap`` calls it."""

    def tick(self, now: float) -> None:
        """Run the timers that are due; called about once a second with a monotonic time."""

    def close(self) -> None:
        """End every connection at once."""


OnText = Callable[[Any, bytes], None]
OnClosed = Callable[[Any, int, str], None]
OnDrained = Callable[[Any], None]
OnGap = Callable[[Any, Sequence[tuple[Any, int]]], None]
