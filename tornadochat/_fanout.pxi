"""Part of ``Reactor``: a batch on its way to everybody in its room."""


cdef void add_job(
    Reactor self, channel_t *channel, shared_t *shared, shared_t *deflated, uint8_t kind, uint64_t next_seq
):
    """Queue a batch behind those of its room, and walk as far as the budget allows."""
    cdef job_t *job = <job_t *>malloc(sizeof(job_t))
    cdef int64_t begin
    if job == NULL:
        raise MemoryError("no memory for a batch on its way")
    channel.jobs += 1
    shared_retain(shared)
    job.next = NULL
    job.shared = shared
    job.deflated = deflated
    if deflated != NULL:
        shared_retain(deflated)
    job.kind = kind
    job.next_seq = next_seq
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
    """Go on with a room's batches, in order; True once all are out."""
    cdef job_t *job
    cdef int looked = 0
    while channel.first_job != NULL:
        job = channel.first_job
        while channel.cursor < channel.size:
            if looked == SENDS_PER_LOOK:
                looked = 0
                if now_us() > until:
                    return False
            if channel.entries[channel.cursor].conn != NULL:
                deliver(self, channel, job, &channel.entries[channel.cursor])
                looked += 1
            channel.cursor += 1
        channel.cursor = 0
        channel.first_job = job.next
        if channel.first_job == NULL:
            channel.last_job = NULL
        if job.kind == EVENTS:
            channel.walked_seq = job.shared.first_seq + job.shared.count - 1
        channel.jobs -= 1
        free_job(job)
    compact(channel)
    return True


cdef void free_job(job_t *job) noexcept nogil:
    shared_release(job.shared)
    if job.deflated != NULL:
        shared_release(job.deflated)
    free(job)


cdef void deliver(Reactor self, channel_t *channel, job_t *job, entry_t *entry) noexcept nogil:
    """One member's share of a batch."""
    cdef shared_t *shared = job.shared
    cdef conn_t *conn = entry.conn
    cdef uint64_t skip = 0
    if conn.flags & CLOSE_SENT:
        return
    if job.deflated != NULL and conn.flags & DEFLATES:
        shared = job.deflated
    if job.kind == PLAIN:
        if conn.room_bytes + conn.answer_bytes <= PLAIN_BACKLOG:
            send_shared(self, conn, shared, 0, channel, 0, False)
    elif entry.state != LIVE:
        return
    elif job.kind == RESET:
        entry.next_seq = job.next_seq
        send_shared(self, conn, shared, 0, NULL, 0, False)
    elif entry.next_seq < shared.first_seq + shared.count:
        if entry.next_seq > shared.first_seq:
            skip = entry.next_seq - shared.first_seq
        entry.next_seq = shared.first_seq + shared.count
        self.deliveries_ += shared.count - skip
        send_shared(self, conn, shared, shared.offsets[skip], channel, shared.first_seq + skip, False)
