"""Part of ``Reactor``: batches on their way to everybody in their room.

A room's walk goes round and round its members while there is something to send, as a lift does or a carousel. A
batch gets on where the walk is, and off where that has been with everybody; each member gets all that is on the
walk in one call. So a batch takes one lap of a room however much goes on in it, where one that waited for the end
of the lap before would take two, and what comes faster than that is sent together.
"""


cdef inline bint may_get_on(channel_t *channel) noexcept nogil:
    """Whether a batch can get on a walk that is under way. A reset goes alone; and where many have left, the walk
    has to end before their places are free again."""
    return (
        channel.jobs == channel.walked and channel.walked < MAX_WALKED and channel.last_job.kind != RESET
        and channel.tombstones <= channel.size // 2
    )


cdef inline void get_on(channel_t *channel, job_t *job) noexcept nogil:
    job.begin, job.lap = channel.cursor, channel.lap
    channel.walked += 1


cdef void begin_walk(channel_t *channel) noexcept nogil:
    """What waited gets on: as many batches as may go together."""
    cdef job_t *job = channel.first_job
    compact(channel)
    channel.cursor = 0
    get_on(channel, job)
    while job.kind != RESET and job.next != NULL and job.next.kind != RESET and channel.walked < MAX_WALKED:
        job = job.next
        get_on(channel, job)


cdef void add_job(
    Reactor self, channel_t *channel, shared_t *shared, shared_t *deflated, uint8_t kind, uint64_t next_seq
):
    """Let a batch get on its room's walk, or wait for it, and walk as far as the budget allows."""
    cdef job_t *job = <job_t *>malloc(sizeof(job_t))
    cdef int64_t begin
    if job == NULL:
        raise MemoryError("no memory for a batch on its way")
    shared_retain(shared)
    job.next = NULL
    job.shared = shared
    job.deflated = deflated
    if deflated != NULL:
        shared_retain(deflated)
    job.kind = kind
    job.next_seq = next_seq
    job.resets = channel.resets
    if channel.first_job != NULL and kind != RESET and may_get_on(channel):
        get_on(channel, job)
    channel.jobs += 1
    if channel.last_job == NULL:
        channel.first_job = job
    else:
        channel.last_job.next = job
    channel.last_job = job
    if channel.walking:
        return
    begin = now_us()
    if begin - self.last_walk_us > LOOP_TURN_US:
        self.spent_us = 0
    if self.spent_us < WALK_BUDGET_US:
        run_jobs(self, channel, WALK_BUDGET_US - self.spent_us)
        self.last_walk_us = now_us()
        self.spent_us += self.last_walk_us - begin
        if self.spent_us > self.longest_hold:
            self.longest_hold = self.spent_us
    if channel.first_job != NULL and not channel.walking:
        leave_for_later(self, channel)
    if self.depth == 0:
        self.bury()


cdef void leave_for_later(Reactor self, channel_t *channel):
    channel.walking = True
    channel.next_walk = NULL
    channel.references += 1
    if self.last_walk == NULL:
        self.first_walk = channel
        self.poller.work_left = True
        if self.on_work_left is not None:
            self.on_work_left()
    else:
        self.last_walk.next_walk = channel
    self.last_walk = channel


cdef int walk_on(Reactor self, int64_t until) except -1:
    """Go on with unfinished walks, a slice of each in turn; then all rest for as long as those took that more than
    one batch is on. So a room which is told more than it can be told at once does not fill its worker, and half as
    many calls for each member carry twice as much. A single batch alone is no cause to rest."""
    cdef int64_t at = now_us(), now, crowded = 0
    cdef bint several
    while self.first_walk != NULL and at < until:
        several = self.first_walk.walked > 1
        walk_left(self)
        now = now_us()
        crowded += now - at if several else 0
        at = now
    self.poller.rest_until_us = at + min(crowded, <int64_t>WALK_BUDGET_US)  # less than the process was stopped
    return 0


cdef int walk_left(Reactor self) except -1:
    """Go on with the walk that waits longest, for one slice."""
    cdef channel_t *channel = self.first_walk
    self.first_walk = channel.next_walk
    if self.first_walk == NULL:
        self.last_walk = NULL
    run_jobs(self, channel, WALK_SLICE_US)  # still marked as walking: what comes meanwhile queues
    if channel.first_job != NULL:
        channel.next_walk = NULL
        if self.last_walk == NULL:
            self.first_walk = channel
        else:
            self.last_walk.next_walk = channel
        self.last_walk = channel
    else:
        channel.walking = False
        channel_release(channel)
    return 0


cdef void run_jobs(Reactor self, channel_t *channel, int64_t budget_us):
    cdef int64_t until = now_us() + budget_us
    channel.references += 1
    with nogil:
        walk(self, channel, until)
    self.close_broken()
    channel_release(channel)


cdef bint walk(Reactor self, channel_t *channel, int64_t until) noexcept nogil:
    """Go on with a room's batches; True once all are out."""
    cdef int looked = 0
    while channel.first_job != NULL:
        if channel.walked == 0:
            begin_walk(channel)
        while channel.walked and channel.cursor < channel.size:
            if looked == SENDS_PER_LOOK:
                looked = 0
                if now_us() > until:
                    return False
            if channel.entries[channel.cursor].conn != NULL:
                deliver(self, channel, &channel.entries[channel.cursor])
                looked += 1
            channel.cursor += 1
            if channel.cursor == channel.size:
                channel.cursor = 0
                channel.lap += 1
            get_off(channel)
        if channel.size == 0:
            channel.lap += 1
            get_off(channel)
    compact(channel)
    return True


cdef inline void get_off(channel_t *channel) noexcept nogil:
    """End the batches that the walk has been with to everybody."""
    cdef job_t *job = channel.first_job
    while channel.walked and job.lap != channel.lap and job.begin <= channel.cursor:
        channel.first_job = job.next
        if channel.first_job == NULL:
            channel.last_job = NULL
        if job.kind == EVENTS:
            channel.walked_seq = job.shared.first_seq + job.shared.count - 1
        channel.jobs -= 1
        channel.walked -= 1
        free_job(job)
        job = channel.first_job


cdef void free_job(job_t *job) noexcept nogil:
    shared_release(job.shared)
    if job.deflated != NULL:
        shared_release(job.deflated)
    free(job)


cdef void deliver(Reactor self, channel_t *channel, entry_t *entry) noexcept nogil:
    """One member's share of what is on the walk."""
    cdef piece_t[MAX_WALKED] pieces
    cdef job_t *job = channel.first_job
    cdef conn_t *conn = entry.conn
    cdef uint32_t i
    cdef int count = 0
    if conn.flags & CLOSE_SENT:
        return
    for i in range(channel.walked):
        count += take_piece(self, job, entry, &pieces[count])
        job = job.next
    if count == 1:
        # A reset is no event of the room that could be dropped.
        channel = NULL if channel.first_job.kind == RESET else channel
        send_shared(self, conn, pieces[0].shared, pieces[0].start, channel, pieces[0].first_seq, False)
    elif count:
        send_pieces(self, conn, pieces, count, channel)


cdef inline bint take_piece(Reactor self, job_t *job, entry_t *entry, piece_t *piece) noexcept nogil:
    """What a member gets of a batch; False where that is nothing."""
    cdef conn_t *conn = entry.conn
    cdef uint64_t skip = 0
    piece.shared = job.deflated if job.deflated != NULL and conn.flags & DEFLATES else job.shared
    piece.start, piece.first_seq = 0, 0
    if job.kind == PLAIN:
        return conn.room_bytes + conn.answer_bytes <= PLAIN_BACKLOG
    if entry.state != LIVE:
        return False
    if job.kind == RESET and job.resets > entry.resets:
        entry.next_seq, entry.resets = job.next_seq, job.resets
        return True
    if job.kind == RESET or job.resets < entry.resets:
        return False
    if entry.next_seq >= piece.shared.first_seq + piece.shared.count:
        return False
    if entry.next_seq > piece.shared.first_seq:
        skip = entry.next_seq - piece.shared.first_seq
    entry.next_seq = piece.shared.first_seq + piece.shared.count
    self.deliveries_ += piece.shared.count - skip
    piece.start, piece.first_seq = piece.shared.offsets[skip], piece.shared.first_seq + skip
    return True
