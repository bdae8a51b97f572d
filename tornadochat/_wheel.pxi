"""Part of ``Reactor``: the timer wheel, one look at each connection when its time has come."""


cdef void check_time(Reactor self, conn_t *conn, uint32_t now):
    """Ping, end, or look again later. Closes no connection but this one."""
    cdef uint32_t silent = now - conn.heard if now > conn.heard else 0
    if conn.flags & CLOSE_SENT:
        self.mark_broken(conn)
        unschedule(self, conn)
    elif conn.first != NULL and now >= conn.progress + self.stuck_after:
        self.start_close(conn, 1013, "the connection is stuck")
    elif conn.first != NULL:
        # What the socket takes the peer has read: it lives, or the time for stuck members ends it.
        conn.flags &= ~<uint32_t>PINGED
        schedule(self, conn, conn.progress + self.stuck_after)
    elif conn.flags & PINGED and silent >= self.ping_after + self.pong_after:
        self.mark_broken(conn)
        unschedule(self, conn)
    elif conn.flags & PINGED:
        schedule(self, conn, conn.heard + self.ping_after + self.pong_after)
    elif silent >= self.ping_after:
        conn.flags |= PINGED
        send_shared(self, conn, self.ping, 0, NULL, 0, False)
        schedule(self, conn, now + self.pong_after)
    else:
        schedule(self, conn, conn.heard + self.ping_after)


cdef void schedule(Reactor self, conn_t *conn, uint32_t due) noexcept nogil:
    """Let the wheel look at a connection at this second, or a turn of the wheel from now."""
    cdef uint32_t slot
    unschedule(self, conn)
    if due >= self.wheel_at + WHEEL_SLOTS:
        due = self.wheel_at + WHEEL_SLOTS - 1
    if due <= self.wheel_at:
        due = self.wheel_at + 1
    conn.due = due
    slot = due % WHEEL_SLOTS
    conn.wheel_previous = NULL
    conn.wheel_next = self.wheel[slot]
    if conn.wheel_next != NULL:
        conn.wheel_next.wheel_previous = conn
    self.wheel[slot] = conn


cdef void unschedule(Reactor self, conn_t *conn) noexcept nogil:
    if conn.due == 0:
        return
    if conn.wheel_previous != NULL:
        conn.wheel_previous.wheel_next = conn.wheel_next
    else:
        self.wheel[conn.due % WHEEL_SLOTS] = conn.wheel_next
    if conn.wheel_next != NULL:
        conn.wheel_next.wheel_previous = conn.wheel_previous
    conn.wheel_next = conn.wheel_previous = NULL
    conn.due = 0
