"""One trial of so many users on one system: do all of them join, and does everybody get everything in time?

The rule: everybody is joined, no connect failed, every message is delivered once, and the 95th percentile of
the delay of a delivery is below a second, while each user says one message a minute in a room of 50.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.load import CONNECTIONS_PER_PROCESS, Load, Plan, Report, sources_for
from bench.million import GENERATOR_FILES
from bench.processes import TICKS, cpu_seconds, pss_bytes
from bench.saturation import MAX_LATE_MS, MIN_SENT
from bench.systems import REST_SECONDS, TEXT_BYTES, Running, serving
from tornadochat.processes import raise_file_limit

ROOM = 50
MESSAGES_A_SECOND = 1 / 60  # of each user
MAX_P95_MS = 1000.0
# Who cannot take everybody in by then has failed.
CONNECT_SECONDS = 180.0
# So long they talk before anything counts, and are silent then: after a ramp compilers and collectors of garbage
# have work that has nothing to do with how many users are held.
WARM_SECONDS = 5.0
PAUSE_SECONDS = 3.0
# A delivery that has not come by then is lost; many times what p95 may be, so that late ones do not count as lost.
SETTLE_SECONDS = 5.0
# Of the cores: above that the machine was full, whoever filled it.
FULL = 0.97


@dataclass(frozen=True, slots=True)
class Trial:
    """What so many users found; delays in milliseconds, CPU in cores while messages were sent.

    Attributes:
        seconds: How long they talked.
        workers: Worker processes of the server.
        generators: Processes of the load generator.
        disconnected: Connections that had joined and were lost.
        wrong: Holes, repeats and error events.
        server_cores: Of all processes of the server but its store.
        busiest_generator: Cores of the busiest generator process.
        machine_cores: Of the machine's, all programs together.
        pss_bytes: Memory of all server processes above idle, store included, for each user, at the end.
        error: The last error that a connection was told.
    """

    users: int
    seconds: float
    workers: int
    generators: int
    joined: int
    failed: int
    connect_seconds: float
    sent: int = 0
    expected: int = 0
    delivered: int = 0
    disconnected: int = 0
    wrong: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    late_ms: float = 0.0
    server_cores: float = 0.0
    store_cores: float = 0.0
    generator_cores: float = 0.0
    busiest_generator: float = 0.0
    machine_cores: float = 0.0
    pss_bytes: float = 0.0
    error: str = ""


def complaint(trial: Trial) -> str:
    """What of the rule was not kept, in a few words; empty where all of it was."""
    if trial.failed:
        return f"{trial.failed:,} connects failed"
    if trial.joined + trial.disconnected < trial.users:
        return f"{trial.joined:,} of {trial.users:,} joined in {trial.connect_seconds:.0f} s"
    if trial.disconnected:
        return f"{trial.disconnected:,} users disconnected"
    if trial.sent < MIN_SENT * trial.users * MESSAGES_A_SECOND * trial.seconds:
        return "messages refused"
    if trial.delivered < trial.expected:
        return f"{1 - trial.delivered / trial.expected:.2%} of the deliveries lost"
    if trial.delivered != trial.expected or trial.wrong:
        return "deliveries wrong"
    if trial.p95_ms >= MAX_P95_MS:
        return f"p95 {trial.p95_ms:,.0f} ms"
    return ""


def whose_limit(trial: Trial, cores: int) -> str:
    """Whose limit it was where the rule was not kept, as far as the machine tells; empty for the server's own."""
    if trial.busiest_generator >= FULL:
        return "the generator's process was full"
    if trial.machine_cores >= FULL * cores:
        return (
            f"all {cores} cores were full: server {trial.server_cores:.2f}, store {trial.store_cores:.2f}, "
            f"generator {trial.generator_cores:.2f}"
        )
    if trial.late_ms > MAX_LATE_MS:
        return f"the generator sent up to {trial.late_ms:,.0f} ms late"
    return ""


def run(system: str, users: int, seconds: float, workers: int) -> Trial:
    """Start a system, fill its rooms, let the users talk, end it.

    Everything is bounded: the connects by ``CONNECT_SECONDS``, the talk by ``seconds``.

    Raises:
        Unavailable: It cannot run here.
        RuntimeError: It ended, or was not ready in time.
    """
    generators = -(-users // min(CONNECTIONS_PER_PROCESS, raise_file_limit() - GENERATOR_FILES))
    with serving(system, workers) as server:
        plan = Plan(
            port=server.port,
            rooms=users // ROOM,
            members=ROOM,
            text_bytes=TEXT_BYTES,
            processes=generators,
            sources=sources_for(users),
            dialect=server.dialect,
            whole_rooms=True,
        )
        time.sleep(REST_SECONDS)
        memory = _memory(server)
        with Load(plan) as load:
            opened = load.connect(CONNECT_SECONDS)
            if opened.joined == users:
                load.run(WARM_SECONDS, users * MESSAGES_A_SECOND)
                load.idle(PAUSE_SECONDS)
                return _talk(server, load, opened, seconds, workers, memory)
            return Trial(
                users=users,
                seconds=seconds,
                workers=workers,
                generators=generators,
                joined=opened.joined,
                failed=opened.failed,
                connect_seconds=opened.connect_seconds,
                disconnected=opened.closed,
                error=opened.last_error,
            )


def _talk(server: Running, load: Load, opened: Report, seconds: float, workers: int, memory: int) -> Trial:
    users = opened.joined
    store = [server.store] if server.store else []
    groups = {"server": [pid for pid in server.pids if pid not in store], "store": store, "generator": load.pids}
    before = {name: [cpu_seconds([pid]) for pid in pids] for name, pids in groups.items()}
    machine = machine_seconds()
    load.begin_count()
    load.run(seconds, users * MESSAGES_A_SECOND)
    machine = machine_seconds() - machine
    used = {
        name: [(cpu_seconds([pid]) - was) / seconds for pid, was in zip(pids, before[name], strict=True)]
        for name, pids in groups.items()
    }
    report = load.run(SETTLE_SECONDS, 0.0)
    return Trial(
        users=users,
        seconds=seconds,
        workers=workers,
        generators=len(load.pids),
        joined=report.joined,
        failed=report.failed,
        connect_seconds=opened.connect_seconds,
        sent=report.sent,
        expected=report.expected,
        delivered=report.delivered,
        disconnected=users - report.joined,
        wrong=report.errors + report.holes + report.repeats,
        p50_ms=report.p50_ms,
        p95_ms=report.p95_ms,
        p99_ms=report.p99_ms,
        late_ms=report.late_ms,
        server_cores=sum(used["server"]),
        store_cores=sum(used["store"]),
        generator_cores=sum(used["generator"]),
        busiest_generator=max(used["generator"]),
        machine_cores=machine / seconds,
        pss_bytes=(_memory(server) - memory) / users,
        error=report.last_error,
    )


def _memory(server: Running) -> int:
    return sum(pss_bytes(pid) for pid in server.pids)


def machine_seconds() -> float:
    """CPU time that all programs of the machine have used so far, the kernel's included."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS
