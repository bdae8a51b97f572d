"""Part of ``_reactor``: who is in a channel, in C. Needs no GIL and knows no sockets."""

cdef void channel_release(channel_t *channel) noexcept nogil:
    channel.references -= 1
    if channel.references == 0:
        free(channel.entries)
        free(channel)


cdef inline membership_t *find_membership(conn_t *conn, channel_t *channel) noexcept nogil:
    cdef uint32_t i
    for i in range(conn.room_count):
        if conn.rooms[i].channel == channel:
            return &conn.rooms[i]
    return NULL


cdef inline entry_t *find_entry(conn_t *conn, channel_t *channel) noexcept nogil:
    cdef membership_t *membership = find_membership(conn, channel)
    return &channel.entries[membership.index] if membership != NULL else NULL


cdef int enter(channel_t *channel, conn_t *conn, uint64_t next_seq, uint8_t state) noexcept nogil:
    """Add a member; 0, or -1 when there is no memory."""
    cdef uint32_t capacity
    cdef void *grown
    if channel.size == channel.capacity:
        capacity = channel.capacity * 2 if channel.capacity else FIRST_ENTRIES
        grown = realloc(channel.entries, capacity * sizeof(entry_t))
        if grown == NULL:
            return -1
        channel.entries = <entry_t *>grown
        channel.capacity = capacity
    if conn.room_count == conn.room_capacity:
        capacity = conn.room_capacity * 2 if conn.room_capacity else FIRST_ROOMS
        grown = realloc(conn.rooms, capacity * sizeof(membership_t))
        if grown == NULL:
            return -1
        conn.rooms = <membership_t *>grown
        conn.room_capacity = capacity
    conn.rooms[conn.room_count].channel = channel
    conn.rooms[conn.room_count].index = channel.size
    conn.room_count += 1
    channel.entries[channel.size].conn = conn
    channel.entries[channel.size].next_seq = next_seq
    channel.entries[channel.size].state = state
    channel.entries[channel.size].resets = channel.resets
    channel.size += 1
    channel.deflating += conn.flags & DEFLATES != 0
    return 0


cdef void move_entry(channel_t *channel, uint32_t source, uint32_t target) noexcept nogil:
    cdef membership_t *membership
    if source != target:
        channel.entries[target] = channel.entries[source]
        membership = find_membership(channel.entries[target].conn, channel)
        membership.index = target


cdef void shrink_entries(channel_t *channel) noexcept nogil:
    """Give memory back once three quarters are unused."""
    cdef uint32_t capacity = channel.capacity // 2
    cdef void *less
    if channel.size * 4 <= channel.capacity and capacity >= FIRST_ENTRIES:
        less = realloc(channel.entries, capacity * sizeof(entry_t))
        if less != NULL:
            channel.entries = <entry_t *>less
            channel.capacity = capacity


cdef void remove_entry(channel_t *channel, uint32_t index) noexcept nogil:
    """Take a member out: at once, or as a tombstone while a walk is under way."""
    if channel.first_job != NULL:
        channel.entries[index].conn = NULL
        channel.tombstones += 1
        return
    channel.size -= 1
    move_entry(channel, channel.size, index)
    shrink_entries(channel)


cdef void compact(channel_t *channel) noexcept nogil:
    """Close the holes that members left during a walk; the others keep their order."""
    cdef uint32_t i, kept = 0
    if channel.tombstones == 0:
        return
    for i in range(channel.size):
        if channel.entries[i].conn != NULL:
            move_entry(channel, i, kept)
            kept += 1
    channel.size = kept
    channel.tombstones = 0
    shrink_entries(channel)


cdef void leave_channel(conn_t *conn, channel_t *channel) noexcept nogil:
    cdef membership_t *membership = find_membership(conn, channel)
    if membership == NULL:
        return
    cdef uint32_t index = membership.index
    channel.deflating -= conn.flags & DEFLATES != 0
    conn.room_count -= 1
    membership[0] = conn.rooms[conn.room_count]
    remove_entry(channel, index)


cdef void forget_membership(conn_t *conn, channel_t *channel) noexcept nogil:
    """The channel is going away: take it out of a member's rooms."""
    cdef membership_t *membership = find_membership(conn, channel)
    if membership != NULL:
        conn.room_count -= 1
        membership[0] = conn.rooms[conn.room_count]
