"""The recent events of one room, kept as the very frames that were sent.

``room`` appends each batch after it was encoded and serves joins from here. Pure: knows neither
sockets nor the store.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadochat._fastframe import Batch


class Ring:
    """Consecutive batches of one room, newest last, at most so many bytes.

    A batch is kept or dropped whole, since its bytes are shared with members that are still being
    written to.
    """

    __slots__ = ("_batches", "size")

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self.size = 0

    @property
    def first_seq(self) -> int:
        """Seq of the oldest event held; 0 when empty."""
        return self._batches[0].first_seq if self._batches else 0

    @property
    def last_seq(self) -> int:
        """Seq of the newest event held; 0 when empty."""
        return self._batches[-1].last_seq if self._batches else 0

    def append(self, batch: Batch, max_bytes: int) -> None:
        """Add the newest events, then drop the oldest batches beyond ``max_bytes``.

        A batch that does not follow the newest one empties the ring first: what it holds is always
        one run of seqs without a hole.
        """
        if self._batches and batch.first_seq != self.last_seq + 1:
            self.clear()
        self._batches.append(batch)
        self.size += batch.size
        self.trim(max_bytes)

    def trim(self, max_bytes: int) -> None:
        """Drop the oldest batches until at most ``max_bytes`` are held."""
        while self.size > max_bytes and self._batches:
            self.size -= self._batches.popleft().size

    def clear(self) -> None:
        """Forget everything."""
        self._batches.clear()
        self.size = 0

    def since(self, start_seq: int) -> list[Batch] | None:
        """Batches that hold every event from ``start_seq`` to the newest, oldest first.

        Returns:
            None when the ring does not reach back that far. The first batch may also hold events
            before ``start_seq``; whoever sends it skips them.
        """
        if not self._batches or start_seq < self.first_seq or start_seq > self.last_seq:
            return None
        found: list[Batch] = []
        for batch in reversed(self._batches):
            found.append(batch)
            if batch.first_seq <= start_seq:
                break
        found.reverse()
        return found
