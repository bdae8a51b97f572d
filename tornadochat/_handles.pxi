"""Part of ``_reactor``: the objects that rooms and members hold, each a handle on C memory."""


@cython.final
cdef class Connection:
    """One member's socket; made by ``Reactor.attach``."""

    @property
    def closed(self):
        """Whether nothing can be sent any more; ``send`` and ``close`` are then ignored."""
        return self.conn == NULL or self.conn.fd < 0 or self.conn.flags & CLOSE_SENT != 0

    @property
    def backlog(self):
        """Bytes that wait for the socket."""
        return 0 if self.conn == NULL else self.conn.room_bytes + self.conn.answer_bytes

    @property
    def portable(self):
        """Whether another process can take the socket over: it is open, in no room, and nothing waits for it."""
        return (
            self.conn != NULL and self.conn.fd >= 0 and self.conn.first == NULL and self.conn.room_count == 0
            and not self.conn.flags & ~<uint32_t>(DEFLATES | PINGED)
        )

    @property
    def deflates(self):
        """Whether permessage-deflate is negotiated."""
        return self.conn != NULL and self.conn.flags & DEFLATES != 0

    def fileno(self):
        """The descriptor, which stays the reactor's; -1 once closed."""
        return -1 if self.conn == NULL else self.conn.fd

    def unread(self):
        """What came behind the message that is being handled, and is not handled yet."""
        cdef Reactor reactor = self.reactor
        if self.conn == NULL or reactor.parsed != self.conn:
            return b""
        return PyBytes_FromStringAndSize(<char *>reactor.parsed_data, reactor.parsed_size)

    def feed(self, bytes received not None):
        """Handle bytes that were read before the reactor took over."""
        cdef bytes copy
        cdef Reactor reactor = self.reactor
        if self.conn == NULL or not received:
            return
        # The decoder unmasks in place, and CPython may share the bytes of small objects.
        copy = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(received) + 1)
        memcpy(PyBytes_AS_STRING(copy), PyBytes_AS_STRING(received), PyBytes_GET_SIZE(received))
        reactor.depth += 1
        reactor.parse(self.conn, <unsigned char *>PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(received))
        reactor.depth -= 1
        reactor.bury()

    def send(self, bytes frames not None):
        """Send ready-made frames as an answer; above ``max_answer_bytes`` the connection ends with 1013."""
        self.put(frames, 0)

    def send_text(self, bytes payload not None):
        """Send one text message as an answer; above ``max_answer_bytes`` the connection ends with 1013."""
        self.put(payload, 0x1)

    cdef void put(self, bytes data, uint8_t opcode):
        cdef shared_t *shared
        if self.conn == NULL or self.conn.fd < 0 or self.conn.flags & (CLOSE_SENT | BROKEN):
            return
        shared = copied(<unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), opcode)
        answer(self.reactor, self.conn, shared)
        if self.reactor.depth == 0:
            self.reactor.bury()

    def hold(self, bint held):
        """Read nothing while held, so that the peer's own socket fills; what was read is handled."""
        if self.conn != NULL and self.conn.fd >= 0 and held != ((self.conn.flags & HELD) != 0):
            self.conn.flags ^= HELD
            ask_epoll(self.reactor, self.conn)

    def close(self, int code, str reason not None=""):
        """Start the close handshake with a code of RFC 6455 section 7.4.1."""
        if self.conn != NULL:
            self.reactor.start_close(self.conn, code, reason)
            if self.reactor.depth == 0:
                self.reactor.bury()

    def abort(self):
        """End the connection at once, without a close frame."""
        if self.conn != NULL:
            self.reactor.close_now(self.conn, 1006)


@cython.final
cdef class Channel:
    """The members that one room has here, each with the seq it gets next; made by ``Reactor.channel``."""

    def __init__(self, *args, **kwargs):
        raise TypeError("a Channel is made by Reactor.channel")

    def __dealloc__(self):
        cdef channel_t *channel = self.channel
        cdef job_t *job
        cdef uint32_t i
        if channel == NULL:
            return
        channel.owner = NULL
        for i in range(channel.size):
            if channel.entries[i].conn != NULL:
                forget_membership(channel.entries[i].conn, channel)
        channel.size = channel.tombstones = channel.cursor = channel.walked = 0
        while channel.first_job != NULL:
            job = channel.first_job
            channel.first_job = job.next
            free_job(job)
        channel.last_job = NULL
        channel_release(channel)

    @property
    def walked_seq(self):
        """Last seq of the newest batch that has gone to all members; 0 before the first."""
        return self.channel.walked_seq

    @property
    def busy(self):
        """Whether what is broadcast now has to wait for the end of an earlier fan-out."""
        return self.channel.first_job != NULL and not may_get_on(self.channel)

    def __len__(self):
        return self.channel.size - self.channel.tombstones

    def __iter__(self):
        cdef uint32_t i
        owners = []
        for i in range(self.channel.size):
            if self.channel.entries[i].conn != NULL:
                owners.append((<Connection>self.channel.entries[i].conn.connection).owner)
        return iter(owners)

    def __contains__(self, Connection connection not None):
        return connection.conn != NULL and find_membership(connection.conn, self.channel) != NULL

    def join(self, Connection connection not None, next_seq, bint live):
        """Take a connection in, or move one that is in already.

        Args:
            connection: Open, or nothing happens.
            next_seq: Seq that it gets next.
            live: Whether broadcasts reach it; else it is sent what ``replay`` gives.
        """
        cdef entry_t *entry
        cdef uint8_t state = LIVE if live else SILENT
        if connection.conn == NULL or connection.conn.fd < 0:
            return
        entry = find_entry(connection.conn, self.channel)
        if entry != NULL:
            entry.next_seq = next_seq
            entry.state = state
            entry.resets = self.channel.resets
        elif enter(self.channel, connection.conn, next_seq, state):
            raise MemoryError("no memory for one more member of the room")

    def leave(self, Connection connection not None):
        """Let a connection go; what is queued for it still goes out. Not being in is no error."""
        if connection.conn != NULL:
            leave_channel(connection.conn, self.channel)

    cdef entry_t *entry_of(self, Connection connection) except NULL:
        cdef entry_t *entry = NULL
        if connection.conn != NULL:
            entry = find_entry(connection.conn, self.channel)
        if entry == NULL:
            raise KeyError("the connection is not in this channel")
        return entry

    def next_seq(self, Connection connection not None):
        """Seq that this connection gets next; all below was sent or queued.

        Raises:
            KeyError: It is not in this channel.
        """
        return self.entry_of(connection).next_seq

    def silent(self, Connection connection not None):
        """Whether broadcasts pass this connection by: it replays, or has a gap.

        Raises:
            KeyError: It is not in this channel.
        """
        return self.entry_of(connection).state != LIVE

    def replay(self, Connection connection not None, Batch batch not None):
        """Send one silent connection the events of a batch that it lacks.

        Returns:
            Replayed bytes in flight to it. Above half of ``replay_bytes``, ``on_drained`` is called
            once they have fallen below.

        Raises:
            KeyError: It is not in this channel.
        """
        cdef entry_t *entry = self.entry_of(connection)
        cdef conn_t *conn = connection.conn
        cdef shared_t *shared
        cdef uint64_t skip = 0
        cdef Reactor reactor = self.reactor
        if conn.flags & DEFLATES and reactor.deflater is not None:
            batch = reactor.deflater.deflate(batch)
        shared = batch.shared
        if entry.state == GAP or conn.flags & CLOSE_SENT:
            return conn.replay_bytes
        if shared.first_seq and entry.next_seq < shared.first_seq + shared.count:
            if entry.next_seq > shared.first_seq:
                skip = entry.next_seq - shared.first_seq
            entry.next_seq = shared.first_seq + shared.count
            reactor.deliveries_ += shared.count - skip
            send_shared(reactor, conn, shared, shared.offsets[skip], self.channel, shared.first_seq + skip, True)
            if conn.replay_bytes > reactor.replay_limit // 2:
                conn.flags |= REPLAYING
        return conn.replay_bytes

    def in_flight(self, Connection connection not None):
        """Replayed bytes that wait for this connection's socket, of all its rooms."""
        return 0 if connection.conn == NULL else connection.conn.replay_bytes

    def set_live(self, Connection connection not None, next_seq):
        """Let broadcasts reach this connection, from ``next_seq`` on.

        Raises:
            KeyError: It is not in this channel.
        """
        cdef entry_t *entry = self.entry_of(connection)
        entry.next_seq = next_seq
        entry.state = LIVE
        entry.resets = self.channel.resets

    def set_silent(self, Connection connection not None):
        """Let broadcasts pass this connection by.

        Raises:
            KeyError: It is not in this channel.
        """
        self.entry_of(connection).state = SILENT

    def broadcast(self, Batch batch not None):
        """Send a batch to every live connection, after the batches that went before.

        Each gets the events from its own next seq on, together with those of earlier batches that have not
        reached it yet. Events without a seq go to the silent ones too, and pass by whoever has much waiting.
        """
        cdef shared_t *deflated = NULL
        if not batch.shared.first_seq and self.channel.jobs - self.channel.walked >= PLAIN_JOBS:
            return
        if self.channel.deflating and self.reactor.deflater is not None:
            deflated = (<Batch>self.reactor.deflater.deflate(batch)).shared
        add_job(self.reactor, self.channel, batch.shared, deflated, EVENTS if batch.shared.first_seq else PLAIN, 0)

    def reset(self, Batch notice not None, next_seq):
        """Send a notice to every connection that is live now, and let each go on at ``next_seq``."""
        self.channel.resets += 1
        add_job(self.reactor, self.channel, notice.shared, NULL, RESET, next_seq)
