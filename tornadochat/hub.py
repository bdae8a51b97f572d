"""The rooms of one worker, and when each of them writes.

``broker`` hands over everything that one read of its socket brought; every room takes its part, then
the rooms that are due write once each. A room that has been quiet writes at once; a busy one at most
once per window, and not while so many of its batches are on their way that the next one has to wait. No timer
runs while nothing waits. On a worker that mostly writes to busy rooms all windows end together, once for each
beat of its turns.

Pure: time, timers and the store come in as callables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from tornadochat.room import Page, Room

if TYPE_CHECKING:
    from tornadochat.settings import Settings
    from tornadochat.transport import Channel, Transport

log = logging.getLogger("tornadochat")

# First byte of a payload on a room's channel.
EVENTS, EPHEMERAL, PRESENCE = ord("E"), ord("X"), ord("P")
# What a room takes of a turn may be at most this share of the time between two of its writes. What does not fit
# into a turn goes on in later ones, and rests by itself (``_fanout``).
FAN_OUT_SHARE = 0.5
# No room waits longer than this between two writes, however long its fan-out takes.
MAX_WINDOW_SECONDS = 0.25
# While all fan-outs together take more than this share of the worker's time, every window is wider, at
# most so many times: fewer and larger writes cost less.
BUSY_SHARE = 0.05
MAX_STRETCH = 1.5
# A worker that waits less than MIN_IDLE of its time cannot keep up for long. Then windows grow up to so many
# times, 80 ms, until it waits for MAX_IDLE again: what rooms get together costs less, and everybody is a little
# later, not more and more.
MIN_IDLE, MAX_IDLE = 0.1, 0.3
MAX_LOADED_STRETCH = 8.0
# At once, since what cannot be kept up with piles up meanwhile.
LOADED_STRETCH_STEP = 2.0
# The share is taken over this time; from one to the next the windows change by at most STRETCH_STEP.
SHARE_SECONDS = 0.1
STRETCH_STEP = 1.25
# Where the windows are at their widest, and most events go out together with others, the worker's turns keep a
# beat of so many windows, until the windows are as asked for again. A message waits for one beat and for what the
# store then takes, 27 ms with the default window and a store nearby: that leaves 13 of 40 ms for the fan-outs.
# Fewer turns find the caches cold fewer times, and windows that end together make longer runs of sends.
BEAT_WINDOWS = 2.4
MIN_TOGETHER = 0.5
# From a beat to the moment in which the store has answered what all workers sent on it, most of the time.
SETTLE_SECONDS = 0.003
# A shorter beat has no room for that. Who connects waits for a longer one; wider windows are kept by timers alone.
MIN_BEAT_SECONDS, MAX_BEAT_SECONDS = 4 * SETTLE_SECONDS, 0.05
# On a beat fan-outs cost less; until they take less than this share the beat is kept.
PACED_BUSY_SHARE = BUSY_SHARE / 2
# One timer serves all rooms that wait; it fires no more often than this.
MIN_TIMER_SECONDS = 0.002


class Pacer(Protocol):
    """What makes the turns of a worker keep a beat; its ``Poller``."""

    @property
    def waited_us(self) -> int:
        """Microseconds so far in which the worker waited."""

    @property
    def settled(self) -> bool:
        """Whether in this turn there is what the store answered to all that was sent on the beat."""

    def pace(self, beat: float, settle: float) -> None:
        """Keep a beat of so many seconds, 0 for none, that has settled after so many."""


class Hub:
    """All rooms with members on this worker, by name and by channel.

    Args:
        settings: Limits and windows.
        transports: In the order of ``Member.transport_index``.
        channel_of: Name of a room's pub/sub channel.
        now: Monotonic seconds.
        schedule: Run a callable after so many seconds.
        sync: See ``room.Ports.sync``.
        fetch: See ``room.Ports.fetch``.
        close_room: Unsubscribe a room that nobody is in any more.
        people: See ``room.Ports.people``.
        on_presence: Takes a room's name and a presence payload of another worker.
        pacer: Makes the worker's turns keep a beat; None where they cannot.
    """

    def __init__(
        self,
        settings: Settings,
        transports: Sequence[Transport],
        *,
        channel_of: Callable[[str], bytes],
        now: Callable[[], float],
        schedule: Callable[[float, Callable[[], None]], object],
        sync: Callable[[Room, int], None],
        fetch: Callable[[Room, int, Callable[[Page | None], None]], None],
        close_room: Callable[[str], None],
        people: Callable[[str], int],
        on_presence: Callable[[str, bytes], None],
        pacer: Pacer | None = None,
    ) -> None:
        self.rooms: dict[str, Room] = {}
        self.replay_bytes = settings.replay_in_flight_bytes
        self.max_history = settings.history
        self.sync = sync
        self.fetch = fetch
        self.people = people
        self.events_delivered = 0  # events handed to fan-outs, for the metrics
        self._settings = settings
        self._window = settings.batch_window_ms / 1000
        self._slack = min(MIN_TIMER_SECONDS, self._window / 2)  # who is due so soon is not worth a timer
        self._transports = transports
        self._channel_of = channel_of
        self._now = now
        self._schedule = schedule
        self._close_room = close_room
        self._on_presence = on_presence
        self._by_channel: dict[bytes, Room] = {}
        self._due: dict[Room, None] = {}  # rooms with pending events, in the order they became due
        self._timer_runs = False
        self._pacer = pacer
        self._widest_beat = 0.0  # seconds; 0 where turns are not paced
        beat = round(self._window * BEAT_WINDOWS, 6)  # whole microseconds, as the pacer counts them
        shortest = max(MIN_BEAT_SECONDS, 2 * settings.turn_interval_ms / 1000)
        if pacer is not None and settings.turn_interval_ms and shortest <= beat <= MAX_BEAT_SECONDS:
            self._widest_beat = beat
        self._beat = 0.0  # that the turns keep; 0 for none
        self._together = self._alone = 0  # events since _share_from, and whether they went out with others
        self._stretch = 1.0  # times that windows are wider than asked for
        self._fan_out_seconds = 0.0  # since _share_from
        self._share_from = now()
        self._waited_from = 0  # waited_us of the pacer then
        self._share_ring_bytes()

    # Rooms -------------------------------------------------------------------------------------

    def room(self, name: str) -> Room:
        """The room of this name; made when it is not there yet."""
        room = self.rooms.get(name)
        if room is None:
            channels: list[Channel] = [transport.channel(name) for transport in self._transports]
            room = self.rooms[name] = Room(name, self, channels)
            self._by_channel[self._channel_of(name)] = room
            self._share_ring_bytes()
        return room

    def names_of(self, channels: Iterable[bytes]) -> list[str]:
        """The rooms that are here of these channels."""
        return [room.name for room in map(self._by_channel.get, channels) if room is not None]

    def ring_bytes(self) -> int:
        """What one room may keep of its recent events, so that all together stay within bounds."""
        return self._ring_bytes

    def _share_ring_bytes(self) -> None:
        share = self._settings.ring_total_bytes // max(1, len(self.rooms))
        self._ring_bytes = min(self._settings.ring_batch_bytes, share)

    def tick(self) -> None:
        """Once a second: drop rooms that have been empty for the grace period, trim the rings."""
        self._share_ring_bytes()
        now, limit = self._now(), self._ring_bytes
        grace = self._settings.subscription_grace_seconds
        for room in tuple(self.rooms.values()):
            room.ring.trim(limit)
            if len(room) or room.awaited:
                room.empty_since = None
            elif room.empty_since is None:
                room.empty_since = now
            elif now - room.empty_since >= grace:
                self._drop(room)

    def _drop(self, room: Room) -> None:
        del self.rooms[room.name]
        del self._by_channel[self._channel_of(room.name)]
        self._due.pop(room, None)
        self._close_room(room.name)

    # What was published ------------------------------------------------------------------------

    def on_published(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in all payloads of one read, in the order they came, then write what is due.

        Args:
            items: ``(channel, payload)``; channels of rooms that are not here any more are passed by.
        """
        now = self._now()
        for channel, payload in items:
            room = self._by_channel.get(channel)
            if room is None or not payload:
                continue
            if payload[0] == EVENTS:
                self._receive(room, payload, now)
            elif payload[0] == EPHEMERAL:
                room.tell(payload[1:])
            elif payload[0] == PRESENCE:
                self._on_presence(room.name, payload)
        self.flush_due()

    def _receive(self, room: Room, payload: bytes, now: float) -> None:
        try:
            room.receive(payload)
        except ValueError as error:
            # Somebody else writes to our channels, or a worker of another version does.
            log.warning("room %r: malformed payload of %d bytes left out: %s", room.name, len(payload), error)
        else:
            if room.pending and room not in self._due:
                self._due[room] = None
                if room.next_flush > now:
                    room.next_flush = self._end_of_window(now, room.window)

    def _end_of_window(self, now: float, window: float) -> float:
        """When a message that comes now goes out: after the window; on a beat by the turn in which that has
        settled (see ``flush_due``), and this is when it goes out should nothing come then."""
        if not self._beat or self._pacer is None:
            return now + window
        earliest = now + max(0.0, window - self._beat)
        if earliest == now and self._pacer.settled:
            return now
        since = (earliest - SETTLE_SECONDS) % self._beat  # the last moment at which a beat had settled
        return earliest + self._beat - since + SETTLE_SECONDS

    def flush_due(self) -> None:
        """Write every room whose window is over; a timer sees to the others."""
        if not self._due:
            return
        now = self._now()
        soon = now + self._slack
        ending = self._beat if self._pacer is not None and self._pacer.settled else -1.0  # windows that end now
        waiting: dict[Room, None] = {}
        for room in self._due:
            if room.busy or (room.next_flush > soon and room.window > ending):
                waiting[room] = None
            elif room.pending:
                self._flush(room)
        self._due = waiting
        if now - self._share_from >= SHARE_SECONDS:
            self._set_stretch(now)
        if waiting and not self._timer_runs:
            self._timer_runs = True
            soonest = min(room.next_flush for room in waiting) - now
            self._schedule(max(soonest, MIN_TIMER_SECONDS), self._on_timer)

    def _set_stretch(self, now: float) -> None:
        """Wider windows where fan-outs take much of the worker's time, narrower ones where they do not."""
        share = self._fan_out_seconds / (now - self._share_from)
        busy_share = PACED_BUSY_SHARE if self._beat else BUSY_SHARE
        change = min(max(share / busy_share, 1 / STRETCH_STEP), STRETCH_STEP)
        idle = self._idle_share(now)
        if idle < MIN_IDLE:
            self._stretch = min(self._stretch * LOADED_STRETCH_STEP, MAX_LOADED_STRETCH)
        elif self._stretch <= MAX_STRETCH:
            self._stretch = min(max(self._stretch * change, 1.0), MAX_STRETCH)
        elif idle > MAX_IDLE:
            self._stretch = max(self._stretch / STRETCH_STEP, MAX_STRETCH)
        self._set_beat()
        self._fan_out_seconds, self._share_from = 0.0, now
        self._together = self._alone = 0

    def _idle_share(self, now: float) -> float:
        """Which part of the time since ``_share_from`` the worker waited; 1 where nobody knows."""
        if self._pacer is None:
            return 1.0
        waited = self._pacer.waited_us
        share = (waited - self._waited_from) / 1e6 / (now - self._share_from)
        self._waited_from = waited
        return share

    def _set_beat(self) -> None:
        busy = self._together * (1 - MIN_TOGETHER) > self._alone * MIN_TOGETHER
        if self._stretch >= MAX_STRETCH and busy:
            beat = self._widest_beat
        elif self._stretch == 1.0 or not busy:
            beat = 0.0
        else:
            return
        if beat != self._beat and self._pacer is not None:
            self._beat = beat
            self._pacer.pace(beat, SETTLE_SECONDS)

    def _on_timer(self) -> None:
        self._timer_runs = False
        self.flush_due()

    def _flush(self, room: Room) -> None:
        begin = self._now()
        events = room.flush()
        end = self._now()
        self.events_delivered += events
        if events > 1:
            self._together += events
        else:
            self._alone += events
        self._fan_out_seconds += end - begin
        if self._window:
            window = max(self._beat, self._window * self._stretch, (end - begin) / FAN_OUT_SHARE)
            room.window = min(window, MAX_WINDOW_SECONDS)
            room.next_flush = begin + room.window
