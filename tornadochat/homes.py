"""Where the members of a room come together: one worker of this machine, its home.

Before ``worker``, which hands a member over when it joins its first room. A message to a room costs every
worker that has members of it a wake-up, a read and a fan-out of its own, whatever their number, and every
such worker keeps the room's recent events: with all members on one worker each of these is paid once.

Memory that the parent maps before it forks, written by all workers without a lock: each word is written in
one go, and nothing depends on it. Whoever reads what is not so any more leaves a member where it is, or brings
it to a worker that then has a part of the room; both are served.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator

# Rooms that have a home at once, at most; those of a full bucket are served wherever their members came in.
CELLS = 1 << 17
# A room's word is in one of these, which are one line of the cache.
BUCKET = 8
# Cells that ``sweep`` looks at in one call: the whole table in 64 calls.
SWEPT_AT_ONCE = CELLS // 64
# Of a room's word, from above: 44 bits of its name's hash, whether its home has all that it can use,
# and the home's slot, from 1.
HASH_SHIFT = 20
KEY_BITS = (1 << 64) - (1 << HASH_SHIFT)
WIDE = 1 << 19
SLOT_BITS = WIDE - 1
MAX_SLOTS = SLOT_BITS - 1
# A worker's words.
OPEN, MEMBERS, ROOMS, BUSY = range(4)
LINE = 8
# A new room's members are still to come: it counts as so many where a home is chosen.
ROOM_MEMBERS = 10
# A home takes no more newcomers above these; what is on its way to it is not counted yet.
FULL_SHARE, BUSY_SHARE = 0.9, 0.7
# From so many members on a worker one fan-out takes about 10 ms: further ones stay where they came in,
# so that the room's fan-outs have several cores.
WIDE_MEMBERS = 2000
# In each of two rows of a worker; see ``Homes.address_total``.
ADDRESS_CELLS = 16_384


class Homes:
    """See the module. Made by the parent; ``take`` makes it a worker's own.

    Args:
        slots: Workers, 1 to ``MAX_SLOTS``.
    """

    def __init__(self, slots: int) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise ValueError(f"homes for 1 to {MAX_SLOTS} workers, not {slots}")
        self.slots = slots
        self.slot = 0
        self._generation = 0
        lines = CELLS + slots * LINE
        self._memory = mmap.mmap(-1, 8 * lines + 4 * slots * 2 * ADDRESS_CELLS)
        whole = memoryview(self._memory)
        self._rooms = whole[: 8 * CELLS].cast("Q")
        self._lines = whole[8 * CELLS : 8 * lines].cast("Q")
        self._addresses = whole[8 * lines :].cast("I")
        self._capacity = 1
        self._sweep_at = 0
        self._keys: frozenset[int] = frozenset()  # of the rooms that were here when this round began
        self._strays: dict[int, int] = {}  # words of this round that name a room which is not here
        self._suspects: dict[int, int] = {}  # those of the last round

    def take(self, slot: int, generation: int, capacity: int) -> None:
        """Be the view of one worker.

        Args:
            slot: Its number.
            generation: How many workers the slot had before.
            capacity: Members it has room for.
        """
        self.slot, self._generation, self._capacity = slot, generation + 1, max(1, capacity)

    # What a worker tells of itself -----------------------------------------------------------------

    def open(self) -> None:
        """This worker takes members; counts of an earlier one are gone."""
        self._lines[self.slot * LINE + OPEN] = self._generation
        self.report(0, 0, 0.0)
        first = self.slot * 2 * ADDRESS_CELLS
        self._addresses[first : first + 2 * ADDRESS_CELLS] = memoryview(bytes(8 * ADDRESS_CELLS)).cast("I")

    def shut(self) -> None:
        """This worker takes nobody any more; its successor may do so already."""
        if self._is_mine():
            self._lines[self.slot * LINE + OPEN] = 0

    def succeeded(self) -> bool:
        """Whether this worker's successor takes members."""
        return self._lines[self.slot * LINE + OPEN] > self._generation

    def shut_out(self, slot: int) -> None:
        """The parent's word: there is no worker on a slot, and none is expected soon."""
        self._lines[slot * LINE + OPEN] = 0

    def report(self, members: int, rooms: int, busy: float) -> None:
        """Tell the others how full and how busy (share of a core) this worker is; called once a second."""
        if self._is_mine():
            line = self.slot * LINE
            self._lines[line + MEMBERS] = members
            self._lines[line + ROOMS] = rooms
            self._lines[line + BUSY] = int(min(max(busy, 0.0), 1.0) * 1000)

    def count(self, change: int) -> None:
        """A member more or less, before the next ``report``."""
        if self._is_mine():
            cell = self.slot * LINE + MEMBERS
            self._lines[cell] = max(0, self._lines[cell] + change)

    def expect(self, slot: int) -> None:
        """A member is on its way to a worker; what gets lost between two is put right by its next ``report``."""
        self._lines[slot * LINE + MEMBERS] += 1

    def _is_mine(self) -> bool:
        return self._lines[self.slot * LINE + OPEN] == self._generation

    # Rooms -----------------------------------------------------------------------------------------

    def find(self, room: str) -> int | None:
        """The worker that a newcomer to a room is brought to; None where it stays on this one.

        A room without a home gets one: the worker with the fewest members and rooms.
        """
        key = _key(room)
        cell = self._cell(key)
        if cell is not None:
            word = self._rooms[cell]
            home = (word & SLOT_BITS) - 1
            if word & WIDE or home == self.slot or not self._takes(home):
                return None
            return home
        chosen = self._choose()
        free = next(self._free_cells(key), None)
        if chosen is None or free is None:
            return None
        self._rooms[free] = key | (chosen + 1)
        self._lines[chosen * LINE + ROOMS] += 1
        return None if chosen == self.slot else chosen

    def widen(self, room: str) -> None:
        """The room has as many members at its home as one worker should have."""
        cell = self._cell(_key(room))
        if cell is not None:
            self._rooms[cell] |= WIDE

    def sweep(self, rooms: Collection[str]) -> None:
        """Forget, a part of the table at a time, the rooms that have their home here and are not any more.

        Args:
            rooms: Those that are here.
        """
        if not self._is_mine():
            return
        if self._sweep_at == 0:
            self._keys = frozenset(map(_key, rooms))
            self._suspects, self._strays = self._strays, {}
        first, mine = self._sweep_at, self.slot + 1
        for cell, word in enumerate(self._rooms[first : first + SWEPT_AT_ONCE].tolist(), first):
            if word and word & SLOT_BITS == mine and word & KEY_BITS not in self._keys:
                if self._suspects.get(cell) == word and word & KEY_BITS not in map(_key, rooms):
                    self._rooms[cell] = 0  # not here in two rounds: nobody is on the way any more
                else:
                    self._strays[cell] = word
        self._sweep_at = (first + SWEPT_AT_ONCE) % CELLS

    def _cell(self, key: int) -> int | None:
        first = (key >> HASH_SHIFT) * BUCKET % CELLS
        for cell, word in enumerate(self._rooms[first : first + BUCKET].tolist(), first):
            if word & KEY_BITS == key and word:
                return cell
        return None

    def _free_cells(self, key: int) -> Iterator[int]:
        first = (key >> HASH_SHIFT) * BUCKET % CELLS
        return (cell for cell in range(first, first + BUCKET) if not self._rooms[cell])

    def _takes(self, slot: int) -> bool:
        line = self._lines[slot * LINE : slot * LINE + LINE].tolist()
        full = line[MEMBERS] >= FULL_SHARE * self._capacity
        return bool(line[OPEN]) and not full and line[BUSY] < BUSY_SHARE * 1000

    def _choose(self) -> int | None:
        lines = self._lines
        best, least = None, 0
        for slot in range(self.slots):
            line = slot * LINE
            load = lines[line + MEMBERS] + ROOM_MEMBERS * lines[line + ROOMS]
            if (best is None or load < least or (load == least and slot == self.slot)) and self._takes(slot):
                best, least = slot, load
        return best

    # Addresses ---------------------------------------------------------------------------------------

    def count_address(self, address: str, change: int) -> None:
        """A member of this worker from an address more or less."""
        if not self._is_mine():
            return
        for cell in self._address_cells(self.slot, address):
            self._addresses[cell] = max(0, self._addresses[cell] + change)

    def address_total(self, address: str) -> int:
        """Members from an address on all workers; more, now and then, where others share both of its cells
        (a count-min sketch)."""
        total = [0, 0]
        for slot in range(self.slots):
            if self._lines[slot * LINE + OPEN]:
                for row, cell in enumerate(self._address_cells(slot, address)):
                    total[row] += self._addresses[cell]
        return min(total)

    @staticmethod
    def _address_cells(slot: int, address: str) -> tuple[int, int]:
        number, first = hash(address), slot * 2 * ADDRESS_CELLS
        return first + number % ADDRESS_CELLS, first + ADDRESS_CELLS + (number // ADDRESS_CELLS) % ADDRESS_CELLS


def _key(room: str) -> int:
    """The upper bits of a room's word. Python's own hash, which is the same in all processes of one parent, and
    not known to anybody outside."""
    return (hash(room) & 0x7FFFFFFFFFF) + 1 << HASH_SHIFT
