"""``python -m bench.memory``: where the bytes of one idle joined member are.

Builds in this process, layer upon layer, what a worker keeps of its members, and tells what each layer
adds to the proportional set size (PSS) of the process, for each member. ``bench.idle`` measures the whole on
a real worker; kernel buffers are in neither.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import time
from typing import Any

from bench.processes import pss_bytes
from bench.receive import ignore
from tornadochat import protocol
from tornadochat._reactor import Reactor
from tornadochat.limits import AddressCounts
from tornadochat.member import UNLIMITED, Member, Rules
from tornadochat.presence import Here
from tornadochat.processes import raise_file_limit
from tornadochat.protocol import User
from tornadochat.settings import Settings
from tornadochat.worker import transport_limits


class Layers:
    """What has been built so far, and what each step added."""

    def __init__(self, members: int) -> None:
        self.count = members
        self.kept: list[Any] = []
        self.found: list[tuple[str, float]] = []
        self._before = self._now()

    @staticmethod
    def _now() -> int:
        gc.collect()
        return pss_bytes(os.getpid())

    def add(self, name: str, kept: Any) -> Any:
        """Note what the last step added; ``kept`` stays alive."""
        self.kept.append(kept)
        now = self._now()
        self.found.append((name, (now - self._before) / self.count))
        self._before = self._now()
        return kept


def measure(members: int, room_size: int) -> list[tuple[str, float]]:
    """Bytes of each layer, for each member."""
    settings = Settings()
    reactor = Reactor(
        **transport_limits(settings)._asdict(), on_text=ignore, on_closed=ignore, on_drained=ignore, on_gap=ignore
    )
    rules: Any = Rules(
        **dict.fromkeys(Rules.__slots__, ignore)
        | {"limits": protocol.Limits.of(settings), "max_rooms": 100, "stored": 0}
    )
    counts = AddressCounts(settings)
    pairs = [socket.socketpair() for _ in range(members)]
    descriptors = [near.detach() for near, _ in pairs]
    rooms = -(-members // room_size)
    layers = Layers(members)
    users = layers.add(
        "who it is: id, name, and the pair of both",
        [User(f"u_{number:016x}", f"Load {number}") for number in range(members)],
    )
    made = layers.add(
        "its rules: one object with slots",
        [
            Member(rules, user, transport_index=0, allowed=None, expires=0.0, address="127.0.0.1", rates=UNLIMITED)
            for user in users
        ],
    )
    connections = layers.add(
        "its socket: a C struct (decoder, queue, timer wheel) and its handle",
        [reactor.attach(descriptor, member) for descriptor, member in zip(descriptors, made, strict=True)],
    )
    for member, connection in zip(made, connections, strict=True):
        member.connection = connection
    channels = [reactor.channel(f"room-{number}") for number in range(rooms)]
    for number, member in enumerate(made):
        channels[number % rooms].join(member.connection, 1, True)
        member.rooms = (channels[number % rooms],)
    layers.add("its place in the room: entry, membership, and the tuple of its rooms", channels)
    here = [Here() for _ in range(rooms)]
    for number, user in enumerate(users):
        here[number % rooms].users[user.id] = user
        here[number % rooms].told[user.id] = user
    layers.add("presence: who is here, and whom the others were told of", here)
    members_set = set(made)
    for _ in made:
        counts.add("127.0.0.1")
    layers.add("the worker's set of members", (members_set, counts))
    layers.found.append(("all", sum(size for _, size in layers.found)))
    reactor.close()
    for _, far in pairs:
        far.close()
    return layers.found


def main(arguments: list[str] | None = None) -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, default=8000, help="each takes two files of this process")
    parser.add_argument("--room-size", type=int, default=100)
    options = parser.parse_args(arguments)
    members = min(options.members, (raise_file_limit() - 100) // 2)
    time.sleep(0.1)
    print("| what | bytes for each member |\n| --- | --- |")
    for name, size in measure(members, options.room_size):
        print(f"| {name} | {size:.0f} |")


if __name__ == "__main__":
    main()
