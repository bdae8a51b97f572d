"""The smallest same chat on other servers, each as its own documentation recommends for production.

Two worker processes each, one port, and Redis pub/sub between the workers where the peer needs something there;
the ``-single`` ones are one process and nothing else.
All of them do the same: who joined a room gets each text that anybody of the room sends, the sender too. Unlike
tornadochat they keep no log: what a member misses is lost.

    with peers.start("websockets") as peer:
        ...  # peer.port, peer.pids, peer.dialect
"""

from __future__ import annotations

from bench.peers.starting import PEERS, Peer, RunningPeer, start
from bench.processes import Unavailable

__all__ = ["PEERS", "Peer", "RunningPeer", "Unavailable", "start"]
