"""Pruning a long line of automatic snapshots of a running machine, against deleting the same one by one.

One by one is what virsh does: its own delete where libvirt deletes external snapshots (9.9 and later), and before that
what its users do: `blockcommit`, then the metadata, then the file. Bytes are those that QEMU wrote, as the kernel
counts them. How many it takes at least depends on how often the guest wrote where it had written before, so there are
two guests: one that keeps to few places, as a database and its log do, and one that writes all over its disk.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from snaptree.hosts.connection import Connection
from snaptree.hosts.layers import analysed
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Prune
from snaptree.plans.operation import OperationState
from snaptree.plans.planner import make_plan
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.plans.situation import Situation
from tests.benchmarks.change import Virsh
from tests.benchmarks.comparison import Comparison, Unit
from tests.benchmarks.estate import add_external, running_daemon, snapshot_number
from tests.kit.daemon import LibvirtDaemon

AIM: Final = 1 / 4
_POLL_SECONDS: Final = 0.01
_HOT_MIB: Final = (16, 64)
"""Where the guests write."""
_POLICY: Final = Policy(MappingProxyType({Period.LAST: 5, Period.DAILY: 3}), scope=Scope(by_hand=True))


@dataclass(frozen=True)
class _Pruned:
    """What it took."""

    seconds: float
    written: int
    """Bytes."""
    left: tuple[int, ...]
    """Of the snapshots that are left, the numbers, counted from 0."""


def measure(runs: int, layers: int, pieces: int) -> Iterator[Comparison]:
    """Yield comparisons for lines of so many layers, each of so many MiB, of which some seven snapshots are kept."""
    for hot in _HOT_MIB:
        yield from _measure(runs, _writes(layers, pieces, hot), f"{layers - 1} snapshots of {pieces} MiB, of {hot}")


def _measure(runs: int, writes: list[list[int]], what: str) -> Iterator[Comparison]:
    ours: list[_Pruned] = []
    theirs: list[_Pruned] = []
    for run in range(runs):
        with running_daemon() as daemon:
            sides = {"ours": _prune, "virshs": _delete_one_by_one}
            for name in sides if run % 2 else reversed(sides):
                _make(daemon, name, writes)
                (ours if name == "ours" else theirs).append(sides[name](daemon, name))
    (left,) = {each.left for each in (*ours, *theirs)}
    least = _least(writes, left)
    written = tuple(float(each.written) for each in ours)
    what = f"{what}, become {len(left)}"
    one_by_one = tuple(float(each.written) for each in theirs)
    yield Comparison(f"{what}: written", written, one_by_one, "virsh", AIM, Unit.MEMORY)
    yield Comparison(f"{what}: written", written, (float(least),) * runs, "libvirt at best", unit=Unit.MEMORY)
    seconds = tuple(each.seconds for each in ours), tuple(each.seconds for each in theirs)
    yield Comparison(f"{what}: time", *seconds, "virsh", AIM)


def _writes(layers: int, pieces: int, hot: int) -> list[list[int]]:
    """Where the guest wrote, in MiB, for each layer from the lowest."""
    chosen = random.Random(1)
    return [[chosen.randrange(hot) for _ in range(pieces)] for _ in range(layers)]


def _least(writes: list[list[int]], left: tuple[int, ...]) -> int:
    """The fewest bytes that libvirt's jobs write to get there while the machine runs.

    Layers up to one that is left become one file. Frozen ones can only be committed downwards: what those above the
    lowest hold is written once at least. What the active one lacks can be pulled into it as well. `left` are the
    numbers of the layers that snapshots froze which are left.
    """
    least, first, active = 0, 0, len(writes) - 1
    for last in (*left, active):
        ways = [len(set().union(*writes[first + 1 : last + 1]))]
        if last == active:
            ways.append(len(set().union(*writes[first:last]) - set(writes[last])))
        least += min(ways)
        first = last + 1
    return least << 20


def _make(daemon: LibvirtDaemon, name: str, writes: list[list[int]]) -> None:
    add_external(daemon, name, len(writes) - 1)
    domain = daemon.connection.handle.lookupByName(name)
    (chain,) = _situation(daemon.connection, domain).layers.chains
    for number, (layer, places) in enumerate(zip(reversed(chain.layers), writes, strict=True), start=1):
        commands = [word for place in places for word in ("-c", f"write -q -P {number} {place}M 1M")]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, layer], check=True)
    domain.create()


def _situation(connection: Connection, domain: Any) -> Situation:
    return read_situation(connection, domain.UUIDString())


def _prune(daemon: LibvirtDaemon, name: str) -> _Pruned:
    """All of it is counted: reading, analysing, planning and the run."""
    connection = Connection(daemon.uri)
    connection.open()
    try:
        domain = connection.handle.lookupByName(name)
        before, began = _written(name), time.perf_counter()
        plan = make_plan(Prune(_POLICY), _analysed(connection, domain))
        assert not plan.is_refused, plan.refusals
        operation = run_plan(connection, plan)
        seconds = time.perf_counter() - began
        if operation.state is not OperationState.DONE:
            raise RuntimeError(f"{operation.error}")
        return _ended(domain, name, seconds, before)
    finally:
        connection.close()


def _delete_one_by_one(daemon: LibvirtDaemon, name: str) -> _Pruned:
    """The oldest first, as somebody would who looks at a list."""
    domain = daemon.connection.handle.lookupByName(name)
    goes = make_plan(Prune(_POLICY), _situation(daemon.connection, domain)).snapshots
    tree = _situation(daemon.connection, domain).tree
    (chain,) = _situation(daemon.connection, domain).layers.chains
    stack = list(reversed(chain.layers))  # the base first
    frozen = dict(zip(sorted(tree.snapshots), stack, strict=False))
    virsh = Virsh(daemon.uri)
    try:
        before, began = _written(name), time.perf_counter()
        for snapshot in goes:
            if daemon.connection.host.external_snapshots:
                virsh.run(f"snapshot-delete {name} {snapshot}")
                continue
            base = frozen[snapshot]
            top = stack[stack.index(base) + 1]
            virsh.run(f"blockcommit {name} vda --base {base} --top {top} --wait")
            virsh.run(f"snapshot-delete {name} {snapshot} --metadata")
            Path(top).unlink()
            stack.remove(top)
            frozen = {each: base if layer == top else layer for each, layer in frozen.items()}
        return _ended(domain, name, time.perf_counter() - began, before)
    finally:
        virsh.close()


def _ended(domain: Any, name: str, seconds: float, before: int) -> _Pruned:
    left = sorted(snapshot_number(snapshot.getName()) for snapshot in domain.listAllSnapshots())
    ended = _Pruned(seconds, _written(name) - before, tuple(left))
    domain.destroy()
    return ended


def _analysed(connection: Connection, domain: Any) -> Situation:
    situation = _situation(connection, domain)
    return replace(situation, layers=analysed(connection, situation.layers))


def _written(name: str) -> int:
    """Bytes that a machine's QEMU handed to the kernel so far (proc(5), /proc/pid/io)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"guest={name},".encode() in (process / "cmdline").read_bytes():
                return int((process / "io").read_text().splitlines()[1].split()[1])
        except (OSError, ValueError):
            continue  # it ended
    raise RuntimeError(f"no QEMU runs {name}")
