"""Part of ``Reactor``: what a socket is sent, and what waits where it does not take it."""


cdef void answer(Reactor self, conn_t *conn, shared_t *shared):
    """Send an answer or control frame; takes the reference over."""
    cdef uint32_t size
    if shared == NULL:
        self.mark_broken(conn)
        return
    size = <uint32_t>shared.size
    if conn.answer_bytes + size > self.max_answer and conn.first != NULL:
        shared_release(shared)
        drop_segments(self, conn, False)
        drop_answers(self, conn)
        self.start_close(conn, 1013, "answers are not being read")
        return
    send_shared(self, conn, shared, 0, NULL, 0, False)
    shared_release(shared)


cdef void drop_answers(Reactor self, conn_t *conn) noexcept nogil:
    """Forget the answers that are queued, but finish the frame in progress."""
    cdef segment_t *segment = conn.first
    cdef segment_t *following
    if segment == NULL:
        return
    if segment.begun:
        following = segment.next
        segment.next = NULL
        conn.last = segment
    else:
        following = segment
        conn.first = conn.last = NULL
    while following != NULL:
        segment = following
        following = segment.next
        forget(self, conn, segment)


cdef void forget(Reactor self, conn_t *conn, segment_t *segment) noexcept nogil:
    """Free one queued segment that is out of the queue."""
    cdef uint32_t size = segment.end - segment.start
    if segment.channel == NULL:
        conn.answer_bytes -= size
    else:
        conn.room_bytes -= size
        conn.replay_bytes -= size if segment.replayed else 0
        channel_release(segment.channel)
    shared_release(segment.shared)
    free(segment)


cdef void watch(Reactor self, conn_t *conn, bint writable) noexcept nogil:
    if writable != ((conn.flags & WRITABLE_WATCHED) != 0):
        conn.flags ^= WRITABLE_WATCHED
        ask_epoll(self, conn)


cdef void ask_epoll(Reactor self, conn_t *conn) noexcept nogil:
    cdef epoll_event event
    event.events = (0 if conn.flags & HELD else EPOLLIN) | (EPOLLOUT if conn.flags & WRITABLE_WATCHED else 0)
    event.data.u64 = event_data(conn)
    epoll_ctl(self.epoll, EPOLL_CTL_MOD, conn.fd, &event)


cdef void send_shared(
    Reactor self, conn_t *conn, shared_t *shared, uint32_t start, channel_t *channel, uint64_t first_seq, bint replayed
) noexcept nogil:
    """Send shared.data from ``start`` on: at once if nothing is queued, the rest when it can."""
    cdef ssize_t sent = 0
    if conn.fd < 0 or conn.flags & (BROKEN | SHUT):
        return
    if conn.first == NULL:
        sent = send(conn.fd, shared.data + start, shared.size - start, MSG_NOSIGNAL)
        if sent == <ssize_t>(shared.size - start):
            self.bytes_sent_ += sent
            return
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.mark_broken(conn)
                return
            sent = 0
        self.bytes_sent_ += sent
        conn.progress = now_s()
    if enqueue(self, conn, shared, start, <uint32_t>sent, channel, first_seq, replayed):
        self.mark_broken(conn)
        return
    watch(self, conn, True)
    if channel != NULL and conn.room_bytes > self.max_backlog:
        drop_segments(self, conn, False)


cdef void send_pieces(Reactor self, conn_t *conn, piece_t *pieces, int count, channel_t *channel) noexcept nogil:
    """The same for what a member gets of several batches, in one call."""
    cdef iovec[MAX_WALKED] parts
    cdef msghdr message
    cdef ssize_t sent = 0, size
    cdef int i
    if conn.fd < 0 or conn.flags & (BROKEN | SHUT):
        return
    if conn.first == NULL:
        memset(&message, 0, sizeof(message))
        for i in range(count):
            parts[i].iov_base = pieces[i].shared.data + pieces[i].start
            parts[i].iov_len = pieces[i].shared.size - pieces[i].start
        message.msg_iov, message.msg_iovlen = parts, count
        sent = sendmsg(conn.fd, &message, MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.mark_broken(conn)
                return
            sent = 0
        self.bytes_sent_ += sent
    for i in range(count):
        size = pieces[i].shared.size - pieces[i].start
        if sent >= size:
            sent -= size
            continue
        if conn.first == NULL:
            conn.progress = now_s()
        if enqueue(
            self, conn, pieces[i].shared, pieces[i].start, <uint32_t>sent, channel, pieces[i].first_seq, False
        ):
            self.mark_broken(conn)
            return
        sent = 0
    if conn.first != NULL:
        watch(self, conn, True)
        if conn.room_bytes > self.max_backlog:
            drop_segments(self, conn, False)


cdef int enqueue(
    Reactor self, conn_t *conn, shared_t *shared, uint32_t start, uint32_t sent, channel_t *channel,
    uint64_t first_seq, bint replayed
) noexcept nogil:
    """Keep a reference to what is still to be sent; 0, or -1 when there is no memory."""
    cdef segment_t *segment = <segment_t *>malloc(sizeof(segment_t))
    cdef uint32_t size
    if segment == NULL:
        return -1
    shared_retain(shared)
    segment.next = NULL
    segment.shared = shared
    segment.channel = channel
    segment.start = start + sent
    segment.end = <uint32_t>shared.size
    segment.first_seq = first_seq
    segment.replayed = replayed
    segment.begun = sent > 0
    size = segment.end - segment.start
    if channel == NULL:
        conn.answer_bytes += size
    else:
        channel.references += 1
        conn.room_bytes += size
        conn.replay_bytes += size if replayed else 0
    if conn.last == NULL:
        conn.first = segment
        if self.stuck_after < WHEEL_SLOTS and conn.due > conn.progress + self.stuck_after:
            schedule(self, conn, conn.progress + self.stuck_after)
    else:
        conn.last.next = segment
    conn.last = segment
    return 0


cdef int flush(Reactor self, conn_t *conn) noexcept nogil:
    """Write what is queued; 0 when all is out, 1 when some is left, -1 when the socket failed."""
    cdef iovec[MAX_IOV] parts
    cdef msghdr message
    cdef segment_t *segment
    cdef ssize_t sent
    cdef uint32_t size
    while conn.first != NULL:
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        segment = conn.first
        while segment != NULL and message.msg_iovlen < MAX_IOV:
            parts[message.msg_iovlen].iov_base = segment.shared.data + segment.start
            parts[message.msg_iovlen].iov_len = segment.end - segment.start
            message.msg_iovlen += 1
            segment = segment.next
        sent = sendmsg(conn.fd, &message, MSG_NOSIGNAL)
        if sent < 0:
            if errno == EAGAIN or errno == EINTR:
                return 1
            return -1
        self.bytes_sent_ += sent
        conn.progress = now_s()
        while conn.first != NULL:
            segment = conn.first
            size = segment.end - segment.start
            if <uint64_t>sent < size:
                if sent:
                    advance(self, conn, segment, <uint32_t>sent)
                break
            sent -= size
            conn.first = segment.next
            if conn.first == NULL:
                conn.last = NULL
            forget(self, conn, segment)
    return 0


cdef void advance(Reactor self, conn_t *conn, segment_t *segment, uint32_t sent) noexcept nogil:
    segment.start += sent
    segment.begun = 1
    if segment.channel == NULL:
        conn.answer_bytes -= sent
    else:
        conn.room_bytes -= sent
        conn.replay_bytes -= sent if segment.replayed else 0


cdef void drop_segments(Reactor self, conn_t *conn, bint answers_too) noexcept nogil:
    """Drop the queued room events behind the frame in progress, and note the gap; with
    ``answers_too`` the whole queue is freed and nothing is noted."""
    cdef segment_t *segment = conn.first
    cdef segment_t *following
    conn.first = conn.last = NULL
    while segment != NULL:
        following = segment.next
        segment.next = NULL
        if not answers_too and (segment.channel == NULL or cut(self, conn, segment)):
            if conn.last == NULL:
                conn.first = segment
            else:
                conn.last.next = segment
            conn.last = segment
        else:
            if not answers_too:
                self.drops_ += 1
                note_gap(self, conn, segment.channel, segment.first_seq)
            forget(self, conn, segment)
        segment = following


cdef bint cut(Reactor self, conn_t *conn, segment_t *segment) noexcept nogil:
    """End a segment behind the frame in progress; False where none has begun."""
    cdef shared_t *shared = segment.shared
    cdef uint32_t i = 0, dropped
    if not segment.begun:
        return False
    while i < shared.count and shared.offsets[i] < segment.start:
        i += 1
    if shared.offsets[i] < segment.end:
        dropped = segment.end - shared.offsets[i]
        segment.end = shared.offsets[i]
        conn.room_bytes -= dropped
        conn.replay_bytes -= dropped if segment.replayed else 0
        self.drops_ += 1
        note_gap(self, conn, segment.channel, shared.first_seq + i if shared.first_seq else 0)
    return True


cdef void note_gap(Reactor self, conn_t *conn, channel_t *channel, uint64_t seq) noexcept nogil:
    """The first event that is dropped in a room is where its next join continues."""
    cdef entry_t *entry
    if seq == 0:
        return
    entry = find_entry(conn, channel)
    if entry != NULL and entry.state != GAP:
        entry.state = GAP
        entry.next_seq = seq
        conn.flags |= GAPPED
