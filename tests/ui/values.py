"""Machines made of plain values, as a host would report them, for what needs no host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from snaptree.jobs.host_backend import CostReading, HostStatus, Phase, TreeReading
from snaptree.model.costs import domain_costs
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import (
    Annotations,
    DiskChain,
    DiskSnapshot,
    Domain,
    DomainLayers,
    DomainState,
    Host,
    Image,
    InternalSnapshot,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import Figure, exact
from snaptree.model.tree import SnapshotTree
from snaptree.ui.machine import Machine, MachineId
from tests.model.overlaps import UnitOverlaps

URI = "qemu:///system"
NOW = int(time.time())
DAY = 86400
MIB = 2**20

HOST = Host(URI, "kvm-01", "QEMU", 11003000, 10000002, read_only=False, is_local=True, external_snapshots=True)
CONNECTED = HostStatus(URI, Phase.CONNECTED, HOST)

HOSTILE_NAMES = (
    "<b>x</b>",
    'it\'s "quoted" & <i>more</i>',
    "two\nlines",
    "\N{RIGHT-TO-LEFT OVERRIDE}exe.gnp",
    "x" * 255,
    "\N{PARTY POPPER} emoji",
    "שלום",
    "a&b",
    "%s {} $name [*]",
    "<img src='file:///etc/passwd'>",
    "two words & \N{RIGHT-TO-LEFT OVERRIDE} é",
)


def snapshot(
    name: str,
    parent: str | None = None,
    *,
    days: float = 1,
    note: str = "",
    memory: bool = False,
    internal: bool = False,
    annotations: Annotations | None = None,
    state: DomainState = DomainState.DISK_ONLY,
    problem: str = "",
) -> Snapshot:
    """One of disk vda; an external one froze `<parent>.qcow2`, or `disk.qcow2` without a parent."""
    if internal:
        disk = SnapshotDisk("vda", DiskSnapshot.INTERNAL, "/vm/disk.qcow2")
        where = MemorySnapshot.INTERNAL
    else:
        disk = SnapshotDisk("vda", DiskSnapshot.EXTERNAL, f"/vm/{parent or 'disk'}.qcow2", f"/vm/{name}.qcow2")
        where = MemorySnapshot.EXTERNAL
    return Snapshot(
        name,
        parent,
        created=int(NOW - days * DAY),
        state=DomainState.RUNNING if memory else state,
        description=note,
        memory=where if memory else MemorySnapshot.NO,
        memory_file=f"/vm/{name}.mem" if memory and not internal else None,
        disks=(disk,),
        annotations=annotations or Annotations(),
        problem=problem,
    )


def chain(count: int, prefix: str = "s") -> list[Snapshot]:
    """A straight line of external snapshots, the oldest first: s1, s2, ..."""
    return [
        snapshot(f"{prefix}{number}", f"{prefix}{number - 1}" if number > 1 else None, days=count - number + 1)
        for number in range(1, count + 1)
    ]


def layers_for(tree: SnapshotTree, sizes: Mapping[str, Figure] = MappingProxyType({})) -> DomainLayers:
    """Images for a tree of external snapshots, 1 MiB each unless `sizes` (by snapshot or "disk") says otherwise."""
    line = [] if tree.current is None else [tree.current, *tree.ancestors(tree.current)]
    paths = [f"/vm/{name}.qcow2" for name in line] + ["/vm/disk.qcow2"]
    every = {disk.frozen for snapshot in tree for disk in snapshot.disks if disk.frozen} | set(paths)
    backing = {f"/vm/{name}.qcow2": f"/vm/{parent or 'disk'}.qcow2" for name, parent in tree.parents.items()}
    inside: dict[str, list[InternalSnapshot]] = {}
    for number, snapshot in enumerate(tree):
        for disk in snapshot.disks:
            if disk.how is DiskSnapshot.INTERNAL and disk.frozen:
                inside.setdefault(disk.frozen, []).append(InternalSnapshot(str(number), snapshot.name, 0, 0))
    images = {
        path: Image(
            path,
            "qcow2",
            sizes.get(path.removeprefix("/vm/").removesuffix(".qcow2"), exact(MIB)),
            backing=backing.get(path),
            internal_snapshots=tuple(inside.get(path, ())),
        )
        for path in every
    }
    memory = {snapshot.memory_file: exact(5 * MIB) for snapshot in tree if snapshot.memory_file}
    return DomainLayers((DiskChain("vda", tuple(paths)),), MappingProxyType(images), MappingProxyType(memory))


def analysed(layers: DomainLayers) -> DomainLayers:
    """Every layer owns 16 units of 64 KiB; the next one on it covers half of them."""
    below = {path: image.backing if image.backing in layers.images else None for path, image in layers.images.items()}
    depths: dict[str, int] = {}
    for top in layers.images:
        line: list[str] = []
        path: str | None = top
        while path is not None and path not in depths:
            line.append(path)
            path = below[path]
        lowest = 0 if path is None else depths[path] + 1
        depths |= {each: lowest + number for number, each in enumerate(reversed(line))}
    units = {path: frozenset(range(8 * depth, 8 * depth + 16)) for path, depth in depths.items()}
    return replace(layers, overlaps=dict.fromkeys(layers.images, UnitOverlaps(units, below)))


def costs_for(tree: SnapshotTree, layers: DomainLayers | None = None) -> CostReading:
    layers = layers or layers_for(tree)
    return CostReading(layers, domain_costs(tree, layers))


def machine(
    snapshots: Iterable[Snapshot] | None = (),
    current: str | None = None,
    *,
    name: str = "web-01",
    uuid: str = "",
    state: DomainState = DomainState.RUNNING,
    host: HostStatus = CONNECTED,
    layers: DomainLayers | None = None,
    with_costs: bool = True,
    complete: bool = True,
    error: SnapTreeError | None = None,
) -> Machine:
    """A machine; without `current` its last snapshot is. `snapshots=None`: nothing was read yet."""
    every = None if snapshots is None else list(snapshots)
    tree = None
    if every is not None:
        tree = SnapshotTree.build(every, current or (every[-1].name if every else None))
    return Machine(
        MachineId(host.uri, uuid or name),
        host,
        Domain(uuid or name, name, state, is_persistent=True, snapshot_count=None if tree is None else len(tree)),
        None if tree is None else TreeReading(tree, complete),
        costs_for(tree, layers) if tree is not None and with_costs else None,
        error,
    )
