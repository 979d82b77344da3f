"""Load and show a machine with very many snapshots, against virsh listing their names as a tree.

Ours begins in a painted window that is told of a host, and ends when the last row is in the model and painted, with
every detail of every snapshot read. virsh's is a whole process. Both connect first.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.comparison import Comparison, in_turn
from tests.benchmarks.estate import add_internal, running_daemon
from tests.benchmarks.window import TreePaints, connect_window, open_window, run_until
from tests.kit.daemon import LibvirtDaemon

AIM = 1.5
AIM_FIRST_SECONDS = 0.2


@dataclass(frozen=True)
class _Showing:
    """Seconds from being told of the host."""

    first: float
    complete: float
    costed: float


def measure(runs: int, sizes: tuple[int, ...]) -> Iterator[Comparison]:
    """Yield comparisons for one machine of each size."""
    for size in sizes:
        with running_daemon() as daemon:
            add_internal(daemon, "many", size)
            daemon.disconnect()  # virsh has just one connection, too
            showings, names = in_turn(lambda: _show(daemon), lambda: _virsh(daemon), runs)
        what = f"{size:,} snapshots"
        yield Comparison(
            f"{what}: all shown", tuple(showing.complete for showing in showings), tuple(names), "virsh --tree", AIM
        )
        yield Comparison(f"{what}: first rows", tuple(showing.first for showing in showings), aim=AIM_FIRST_SECONDS)
        yield Comparison(f"{what}: with all costs", tuple(showing.costed for showing in showings))


def _show(daemon: LibvirtDaemon) -> _Showing:
    with open_window() as session:
        paints = TreePaints(session.window)
        began = time.perf_counter()
        connect_window(session, daemon.uri)
        run_until(lambda: paints.costed is not None)
    assert paints.first is not None
    assert paints.complete is not None
    assert paints.costed is not None
    return _Showing(paints.first - began, paints.complete - began, paints.costed - began)


def _virsh(daemon: LibvirtDaemon) -> float:
    began = time.perf_counter()
    command = ["virsh", "--connect", daemon.uri, "snapshot-list", "many", "--tree"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
