"""A real-time chat server for many rooms and very many people.

A chat message goes straight through these steps, each one module and one verb::

    1 _reactor   on readable        bytes off the socket, one epoll for all members
    2 _fastframe decode             bytes -> one text payload (RFC 6455)
    3 protocol   parse_command      payload -> Send(room, id, text), or ProtocolError
    4 member     handle             may they? how often? -> event body
    5 broker     publish            -> Redis: numbered, stored, published, one script per batch
    6 broker     on_published       <- Redis, in every worker that has members in the room
    7 hub        deliver            in order? ring of recent frames, this worker's members
    8 _fastframe encode_published   the batch becomes frames, once
    9 _reactor   broadcast          the same bytes to every member

``worker`` alone ties the steps together; ``supervisor`` forks the workers; ``gateway`` lets people in.
"""

__version__ = "0.1.0"
