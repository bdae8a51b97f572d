"""``python -m bench.cluster``: one Redis against a Redis Cluster of three masters, under the same load.

Prints what a delivery costs the server and a message costs the store, how many operations of the store a message
takes, and how evenly they are spread. With two cores for everything this is the price of a cluster, not its gain:
what one Redis can hold is one core of one machine, and a cluster has as many of them as it has masters.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis

from bench.load import Load, Plan, Report, sources_for
from bench.processes import Unavailable, cpu_seconds, running_server
from bench.redis_cluster import running_cluster, running_redis
from bench.report import table

WARM_SECONDS = 2.0
HEADS = (
    *("store", "deliveries/s", "p50 ms", "p99 ms", "server CPU, µs a delivery", "store CPU, µs a message"),
    *("scripts a message", "commands a message", "busiest master"),
)


class Store(NamedTuple):
    """What one measurement runs on.

    Attributes:
        name: For people.
        url: For ``--redis``.
        pids: Its processes.
        clients: One to each of its masters.
    """

    name: str
    url: str
    pids: Sequence[int]
    clients: Sequence[redis.Redis]


class Cost(NamedTuple):
    """What a load cost.

    Attributes:
        store: Its name.
        report: What the members saw.
        server_us: CPU of the workers for each delivery.
        store_us: CPU of the store for each message.
        scripts: Scripts run for each message; below 1 where messages go together.
        commands: Commands for each message, those within the scripts included.
        largest_share: Of the scripts, at the busiest master.
    """

    store: str
    report: Report
    server_us: float
    store_us: float
    scripts: float
    commands: float
    largest_share: float


@contextmanager
def running_stores(folder: Path, masters: int) -> Iterator[Store]:
    """A single Redis, or a cluster without replicas."""
    if masters == 1:
        with running_redis(folder) as node:
            yield Store("one Redis", f"redis://{node.host}:{node.port}", [node.process.pid], [node.client])
        return
    with running_cluster(folder, masters=masters, replicas=0) as cluster:
        pids, clients = zip(*((node.process.pid, node.client) for node in cluster.nodes), strict=True)
        yield Store(f"a cluster of {masters} masters", cluster.url, pids, clients)


def measure(store: Store, folder: Path, plan: Plan, workers: int) -> Cost:
    """Put one load on a server with this store.

    Raises:
        RuntimeError: Not everybody joined, or something was lost.
    """
    with running_server(folder, f"--redis={store.url}", workers=workers) as server:
        plan.port = server.port
        with Load(plan) as load:
            joined = load.connect()
            if joined.joined != plan.rooms * plan.members:
                raise RuntimeError(f"{joined.joined} of {plan.rooms * plan.members} joined {joined.last_error}")
            load.send(WARM_SECONDS, plan.rate)
            before = [_counts(client) for client in store.clients]
            server_cpu, store_cpu = cpu_seconds(server.pids), cpu_seconds(store.pids)
            report = load.send(plan.seconds, plan.rate)
            server_cpu, store_cpu = cpu_seconds(server.pids) - server_cpu, cpu_seconds(store.pids) - store_cpu
            after = [_counts(client) for client in store.clients]
    if not report.exact:
        raise RuntimeError(f"not everything was delivered once: {report}")
    scripts = [now[0] - then[0] for then, now in zip(before, after, strict=True)]
    commands = sum(now[1] - then[1] for then, now in zip(before, after, strict=True))
    return Cost(
        store.name,
        report,
        server_cpu * 1e6 / report.delivered,
        store_cpu * 1e6 / report.sent,
        sum(scripts) / report.sent,
        commands / report.sent,
        max(scripts) / max(1, sum(scripts)),
    )


def _counts(client: redis.Redis) -> tuple[int, int]:
    """Scripts and commands that a server has run so far."""
    stats = client.info("commandstats")
    return (
        stats.get("cmdstat_evalsha", {}).get("calls", 0),
        sum(each["calls"] for name, each in stats.items() if name != "cmdstat_info"),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--rooms", type=int, default=1000)
    parser.add_argument("--members", type=int, default=5, help="of each room (default 5)")
    parser.add_argument("--rate", type=float, default=2000.0, help="messages a second (default 2,000)")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--masters", type=int, nargs="*", default=[1, 3], help="1 is a single Redis (default 1 3)")
    chosen = parser.parse_args(arguments)
    try:
        print(table(HEADS, [_row(masters, chosen) for masters in chosen.masters]))
    except Unavailable as error:
        print(f"nothing was measured: {error}")


def _row(masters: int, chosen: argparse.Namespace) -> Sequence[str]:
    plan = Plan(0, chosen.rooms, chosen.members, chosen.rate, chosen.seconds)
    plan.sources = sources_for(chosen.rooms * chosen.members)
    with tempfile.TemporaryDirectory() as name, running_stores(Path(name) / "store", masters) as store:
        cost = measure(store, Path(name) / "server", plan, chosen.workers)
    return (
        cost.store,
        f"{cost.report.delivered / chosen.seconds:,.0f}",
        *(f"{cost.report.p50_ms:.1f}", f"{cost.report.p99_ms:.1f}"),
        *(f"{cost.server_us:.1f}", f"{cost.store_us:.1f}"),
        *(f"{cost.scripts:.2f}", f"{cost.commands:.1f}", f"{cost.largest_share:.0%}"),
    )


if __name__ == "__main__":
    main()
