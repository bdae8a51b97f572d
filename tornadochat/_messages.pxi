"""Part of ``_fastframe``: the one command that comes by the thousand, without a general JSON parser.

Only what needs no thought is taken: one flat object, the four members of a ``send`` once each, texts of
printable ASCII without escapes. Everything else is left to ``protocol.parse_command``, which knows all
rules and words all errors.
"""

cdef enum:
    MAX_ID = 64             # see ``protocol.ID``
    MIN_ID = 16
    MAX_ROOM = 64           # see ``text_rules.MAX_ROOM_CHARS``

ctypedef const unsigned char *chars
ctypedef const char *plain_chars

# What the four members of a ``send`` are called; their order in ``plain_send``.
cdef const char **SEND_KEYS = ["type", "room", "id", "text"]
cdef size_t[4] SEND_KEY_SIZES = [4, 4, 2, 4]


cdef inline const unsigned char *skip_space(const unsigned char *at, const unsigned char *end) noexcept nogil:
    """RFC 8259 section 2: space, tab, line feed, carriage return."""
    while at < end and (at[0] == 32 or 9 <= at[0] <= 10 or at[0] == 13):
        at += 1
    return at


cdef inline const unsigned char *plain_string(
    const unsigned char *at, const unsigned char *end, const unsigned char **start
) noexcept nogil:
    """The quote that ends a string of printable ASCII without escapes, NULL where it is no such."""
    if at >= end or at[0] != 34:
        return NULL
    at += 1
    start[0] = at
    while at < end and 32 <= at[0] < 127 and at[0] != 34 and at[0] != 92:
        at += 1
    return at if at < end and at[0] == 34 else NULL


cdef inline int send_key(const unsigned char *at, size_t size) noexcept nogil:
    cdef int key
    for key in range(4):
        if size == SEND_KEY_SIZES[key] and memcmp(at, SEND_KEYS[key], size) == 0:
            return key
    return -1


cdef inline bint is_id(const unsigned char *at, size_t size) noexcept nogil:
    cdef size_t i
    if size < MIN_ID or size > MAX_ID:
        return False
    for i in range(size):
        if not (48 <= at[i] <= 57 or 65 <= at[i] <= 90 or 97 <= at[i] <= 122 or at[i] == 45 or at[i] == 95):
            return False
    return True


cdef inline bint is_label(const unsigned char *at, size_t size) noexcept nogil:
    """Whether a room's name is in its normal form already."""
    return 0 < size <= MAX_ROOM and at[0] != 32 and at[size - 1] != 32


cdef bint find_members(
    const unsigned char *at, const unsigned char *end, chars *values, size_t *sizes
) noexcept nogil:
    """The four members of a ``send``; False where the payload is anything else."""
    cdef const unsigned char *start = NULL
    cdef const unsigned char *stop
    cdef int found = 0, key
    at = skip_space(at, end)
    if at >= end or at[0] != 123:
        return False
    while True:
        stop = plain_string(skip_space(at + 1, end), end, &start)
        if stop == NULL:
            return False
        key = send_key(start, stop - start)
        if key < 0 or found & (1 << key):
            return False
        found |= 1 << key
        at = skip_space(stop + 1, end)
        if at >= end or at[0] != 58:
            return False
        stop = plain_string(skip_space(at + 1, end), end, &values[key])
        if stop == NULL:
            return False
        sizes[key] = stop - values[key]
        at = skip_space(stop + 1, end)
        if at < end and at[0] == 125:
            return found == 15 and skip_space(at + 1, end) == end
        if at >= end or at[0] != 44:
            return False


cdef inline bint is_blank(const unsigned char *at, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if at[i] != 32:
            return False
    return True


def plain_send(bytes payload not None, size_t max_text):
    """Room, id and text of a ``send`` that needs no thought.

    Args:
        payload: One text message, UTF-8.
        max_text: Characters and bytes of a text, at most.

    Returns:
        ``(room, id, text)``, valid by every rule of ``protocol``; None for whatever the general parser must
        look at, a ``send`` or not.
    """
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(payload)
    cdef chars[4] values
    cdef size_t[4] sizes
    if not find_members(data, data + PyBytes_GET_SIZE(payload), values, sizes):
        return None
    if sizes[0] != 4 or memcmp(values[0], b"send", 4) != 0 or not is_label(values[1], sizes[1]):
        return None
    if not is_id(values[2], sizes[2]) or sizes[3] > max_text or is_blank(values[3], sizes[3]):
        return None
    return ascii_string(values[1], sizes[1]), ascii_string(values[2], sizes[2]), ascii_string(values[3], sizes[3])


cdef inline str ascii_string(const unsigned char *at, size_t size):
    return PyUnicode_DecodeASCII(<const char *>at, size, NULL)


cdef const char *plain_text(str text, Py_ssize_t *size):
    """The characters of a text that JSON needs no escape for; NULL where it is no such."""
    cdef const char *data
    cdef Py_ssize_t i
    if not PyUnicode_IS_ASCII(text):
        return NULL
    data = PyUnicode_AsUTF8AndSize(text, size)
    for i in range(size[0]):
        if data[i] < 32 or data[i] == 127 or data[i] == 34 or data[i] == 92:
            return NULL
    return data


cdef inline char *put(char *at, const char *data, size_t size) noexcept nogil:
    memcpy(at, data, size)
    return at + size


def plain_message(str room not None, str message_id not None, str user_id not None, str name not None,
                  str text not None, uint64_t ts_ms):
    """The body of a message whose texts need no escape, see ``protocol.message_body``; else None."""
    cdef Py_ssize_t[5] sizes
    cdef plain_chars[5] parts
    cdef char *at
    cdef uint64_t left = ts_ms
    cdef int digits = digits_of(ts_ms), i
    cdef size_t total = 79 + digits  # what stands between the parts
    cdef bytes body
    parts[0], parts[1] = plain_text(room, &sizes[0]), plain_text(message_id, &sizes[1])
    parts[2], parts[3] = plain_text(user_id, &sizes[2]), plain_text(name, &sizes[3])
    parts[4] = plain_text(text, &sizes[4])
    for i in range(5):
        if parts[i] == NULL:
            return None
        total += sizes[i]
    body = PyBytes_FromStringAndSize(NULL, total)
    at = PyBytes_AS_STRING(body)
    at = put(put(at, b'{"type":"message","room":"', 26), parts[0], sizes[0])
    at = put(put(at, b'","id":"', 8), parts[1], sizes[1])
    at = put(put(at, b'","user":{"id":"', 16), parts[2], sizes[2])
    at = put(put(at, b'","name":"', 10), parts[3], sizes[3])
    at = put(put(at, b'"},"text":"', 11), parts[4], sizes[4])
    at = put(at, b'","ts":', 7)
    for i in range(digits):
        at[digits - 1 - i] = <char>(48 + left % 10)
        left //= 10
    at[digits] = 125
    return body


# Commands to the store -----------------------------------------------------------------------------

def pack_arguments(list arguments not None):
    """Bulk strings of RESP, one behind the other, without the array's head.

    Args:
        arguments: ``bytes`` or ``str``, which is sent as UTF-8.

    Raises:
        TypeError: One is neither.
    """
    cdef Py_ssize_t total = 0, size, count = PyList_GET_SIZE(arguments), i
    cdef const char *data
    cdef char *at
    cdef object argument
    cdef bytes packed
    for i in range(count):
        size = argument_of(arguments[i], &data)
        total += size + digits_of(size) + 5
    packed = PyBytes_FromStringAndSize(NULL, total)
    at = PyBytes_AS_STRING(packed)
    for i in range(count):
        size = argument_of(arguments[i], &data)
        at = put_length(at, b"$", size)
        at = put(put(at, data, size), b"\r\n", 2)
    return packed


def pack_message(str user_id not None, str message_id not None, str fingerprint not None, bytes body not None):
    """The three arguments that one message has in ``publish.lua``, as ``pack_arguments`` gives them: user and id
    with a space between, the fingerprint, the body."""
    cdef Py_ssize_t[4] sizes
    cdef const char *user
    cdef const char *name
    cdef const char *mark
    cdef const char *data
    cdef char *at
    cdef bytes packed
    sizes[0], sizes[1] = argument_of(user_id, &user), argument_of(message_id, &name)
    sizes[2], sizes[3] = argument_of(fingerprint, &mark), argument_of(body, &data)
    cdef Py_ssize_t who = sizes[0] + 1 + sizes[1]
    cdef Py_ssize_t total = who + sizes[2] + sizes[3] + digits_of(who) + digits_of(sizes[2]) + digits_of(sizes[3]) + 15
    packed = PyBytes_FromStringAndSize(NULL, total)
    at = put_length(PyBytes_AS_STRING(packed), b"$", who)
    at = put(put(put(at, user, sizes[0]), b" ", 1), name, sizes[1])
    at = put_length(put(at, b"\r\n", 2), b"$", sizes[2])
    at = put_length(put(put(at, mark, sizes[2]), b"\r\n", 2), b"$", sizes[3])
    put(put(at, data, sizes[3]), b"\r\n", 2)
    return packed


cdef Py_ssize_t argument_of(object argument, const char **data) except -1:
    cdef Py_ssize_t size
    if type(argument) is bytes:
        data[0] = PyBytes_AS_STRING(argument)
        return PyBytes_GET_SIZE(argument)
    if type(argument) is not str:
        raise TypeError("an argument of a command is bytes or str")
    data[0] = PyUnicode_AsUTF8AndSize(argument, &size)
    return size


cdef inline char *put_length(char *at, const char *kind, size_t size) noexcept nogil:
    """``$12\\r\\n`` or ``*12\\r\\n``."""
    cdef int digits = digits_of(size), i
    at[0] = kind[0]
    for i in range(digits):
        at[digits - i] = <char>(48 + size % 10)
        size //= 10
    at[digits + 1] = 13
    at[digits + 2] = 10
    return at + digits + 3
