"""How a worker hands a member's socket to another worker of the same machine.

Between ``worker`` and ``worker``. Each worker has an inbox, a pair of connected sockets that the parent makes
before it forks: what is put into it is not lost when the worker dies, its successor takes it out. A parcel is
one datagram with the descriptor beside it (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import socket
from typing import NamedTuple

from tornadochat.auth import Identity
from tornadochat.protocol import Join

log = logging.getLogger("tornadochat")

# Of one parcel: what a member may have sent behind its handshake before its first join. A pair of sockets holds
# some hundred usual ones on its way, and refuses more.
MAX_PARCEL_BYTES = 64 * 1024
# Taken out in one go, so that a storm of them does not hold the loop; each costs about 0.1 ms.
PARCELS_AT_ONCE = 32


class Parcel(NamedTuple):
    """A member on its way.

    Attributes:
        identity: Who it is.
        address: Where it comes from.
        deflates: Whether permessage-deflate is negotiated.
        ended: When its user's sessions were last ended, as far as the sender has heard.
        join: The command that made it move.
        received: What it had sent behind that.
    """

    identity: Identity
    address: str
    deflates: bool
    ended: float
    join: Join
    received: bytes


class Handover:
    """The inboxes of all workers of a machine. Made by the parent before it forks.

    Args:
        slots: Workers.
    """

    def __init__(self, slots: int) -> None:
        self._ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        for end in itertools.chain(*self._ends):
            end.setblocking(False)

    def take(self, slot: int) -> None:
        """Be one worker's: the other inboxes are only sent to."""
        for index, (inbox, _) in enumerate(self._ends):
            if index != slot:
                inbox.close()
        self._inbox = self._ends[slot][0]

    def close(self) -> None:
        """Let go of all of them."""
        for end in itertools.chain(*self._ends):
            end.close()

    def empty(self, slot: int) -> None:
        """The parent's: end the connections in an inbox that no worker is going to look into soon."""
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._ends[slot][0], MAX_PARCEL_BYTES, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                os.close(descriptor)

    def fileno(self) -> int:
        """Descriptor that is readable while there is something in the worker's inbox."""
        return self._inbox.fileno()

    def send(self, slot: int, descriptor: int, parcel: Parcel) -> bool:
        """Put a copy of a socket into a worker's inbox.

        Returns:
            False where it is too large, or the inbox is full; nothing was put into it then.
        """
        data = pickle.dumps(parcel, pickle.HIGHEST_PROTOCOL)
        if len(data) > MAX_PARCEL_BYTES:
            return False
        try:
            socket.send_fds(self._ends[slot][1], [data], [descriptor])
        except OSError:  # EAGAIN; ETOOMANYREFS where very many are on their way
            return False
        return True

    def receive(self) -> list[tuple[int, Parcel]]:
        """Take out what is there, at most ``PARCELS_AT_ONCE``; the descriptors are the caller's."""
        found: list[tuple[int, Parcel]] = []
        while len(found) < PARCELS_AT_ONCE:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._inbox, MAX_PARCEL_BYTES, 1)
            except BlockingIOError:
                break
            if not descriptors:  # this process may open no more files: the kernel has closed it
                log.warning("a member that was brought here is lost: this worker may open no more files")
                continue
            found.append((descriptors[0], pickle.loads(data)))
        return found
