"""The shapes of load that servers are compared on: rooms, members of each, and messages a second."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """One load.

    Attributes:
        name: As on the command line.
        rooms: Number of rooms.
        members: Connections in each room.
        rate: Messages a second, all rooms together.
    """

    name: str
    rooms: int
    members: int
    rate: float

    @property
    def connections(self) -> int:
        """In all rooms together."""
        return self.rooms * self.members

    @property
    def layout(self) -> str:
        """Rooms and members, whatever the rate is."""
        return f"{self.rooms:,} {'room' if self.rooms == 1 else 'rooms'} of {self.members:,}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}: {self.layout}, {self.rate:,.0f} messages a second"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("sparse", rooms=10, members=100, rate=200),
        Shape("busy", rooms=10, members=100, rate=2_000),
        Shape("very-busy", rooms=10, members=100, rate=10_000),
        Shape("small", rooms=1_000, members=5, rate=2_000),
        Shape("huge", rooms=1, members=15_000, rate=5),
        Shape("tiny", rooms=3, members=4, rate=50),
    )
}


def add_shape(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options of a load of one's own: the sparse one for so many seconds, unless told otherwise."""
    sparse = SHAPES["sparse"]
    parser.add_argument("--rooms", type=int, default=sparse.rooms)
    parser.add_argument("--members", type=int, default=sparse.members, help="in each room")
    parser.add_argument(
        "--rate", type=float, default=float(sparse.rate), help="messages a second, all rooms together"
    )
    parser.add_argument("--seconds", type=float, default=seconds)
