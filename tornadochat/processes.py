"""What a process can be told about its parent, its descriptors and its listening sockets (Linux).

Used by ``supervisor`` and ``embedded``; knows nothing of the chat.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
# Less unused memory than this is needed again at once.
MIN_UNUSED_BYTES = 4 << 20


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Let this process get a signal when its parent dies, however it dies (prctl(2)).

    Called in the child right after the fork; ``parent`` is the process that forked it, so that a
    parent which died in between is noticed too. Elsewhere than on Linux nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class _Mallinfo(ctypes.Structure):
    """What mallinfo2(3) tells; glibc 2.33 and newer."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")),
        *((name, ctypes.c_size_t) for name in ("fsmblks", "used", "free", "keepcost")),
    )


def give_memory_back() -> int:
    """Return what malloc holds unused to the system, where that is much; how many bytes it was.

    glibc gives back by itself only what lies at the end of its heap, so that a worker stayed as large as
    its busiest minute. Takes about 0.15 ms for each MiB, in which nobody can allocate. Without glibc
    nothing happens.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Mallinfo
        info = libc.mallinfo2()
        if info.free < max(MIN_UNUSED_BYTES, info.used // 2):
            return 0
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return 0
    return int(info.free)


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return soft  # a hard limit of "unlimited" may be above what the kernel grants
    return hard


def listen_backlog() -> int:
    """Connections that may wait to be accepted: what the kernel grants (net.core.somaxconn), which is
    where thousands who come back at once wait while a worker is replaced."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return 1024
