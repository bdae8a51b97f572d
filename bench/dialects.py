"""What the load generator says to each kind of chat server, and how it tells a delivery.

Texts are templates for ``%`` with ``room``, ``id`` and ``text``. A delivery is a text frame that carries the
stamp, ``"text":"@<microseconds>``; our own ones are told by the ``seq`` that they begin with.
"""

from __future__ import annotations

from typing import NamedTuple


class Dialect(NamedTuple):
    """How to join a room of a server, and to talk in it.

    Attributes:
        path: Request target of the WebSocket.
        opening: Pairs of what is said (nothing where empty) and the beginning of the answer that is waited
            for; whoever got the last answer has joined.
        message: The text that sends a message.
        numbered: Whether each delivery begins with ``{"seq":``, so that holes and repeats are seen one by one.
        resume: What is said instead of the last of the opening by whoever comes back, with ``epoch`` and ``seq``.
        resume_path: Request target of whoever comes back, with ``session``.
        ping: A text that is answered with ``pong`` at once; none where empty.
    """

    path: str
    opening: tuple[tuple[str, str], ...]
    message: str
    numbered: bool = False
    resume: str = ""
    resume_path: str = ""
    ping: str = ""
    pong: str = ""


DIALECTS = {
    "tornadochat": Dialect(
        path="/ws?name=Load",
        opening=(('{"type":"join","room":"%(room)s","history":0}', '{"type":"joined"'),),
        message='{"type":"send","room":"%(room)s","id":"%(id)s","text":"%(text)s"}',
        numbered=True,
        resume='{"type":"join","room":"%(room)s","after":{"epoch":"%(epoch)s","seq":%(seq)d}}',
        resume_path="/ws?token=%(session)s",
    ),
    "plain": Dialect(
        path="/",
        opening=(('{"type":"join","room":"%(room)s"}', '{"type":"joined"'),),
        message='{"type":"send","room":"%(room)s","text":"%(text)s"}',
    ),
    # Engine.IO 4 opens by itself, then Socket.IO connects to the namespace "/", then event 0 is acknowledged.
    "socketio": Dialect(
        path="/socket.io/?EIO=4&transport=websocket",
        opening=(("", "0{"), ("40", "40"), ('420["join","%(room)s"]', "430")),
        message='42["send",{"room":"%(room)s","text":"%(text)s"}]',
        ping="2",
        pong="3",
    ),
    # The room is in the path, and a message is what its publisher says, word for word.
    "nchan": Dialect(path="/room/%(room)s", opening=(), message='{"room":"%(room)s","text":"%(text)s"}'),
}
