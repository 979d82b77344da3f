"""What each snapshot and layer costs, from facts already read. Pure sums; unknown stays unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from snaptree.model.estate import DiskSnapshot, DomainLayers, MemorySnapshot, Snapshot
from snaptree.model.figures import NOTHING, Confidence, Figure, exact, total, unknown
from snaptree.model.tree import SnapshotTree

_NEEDS_ANALYSIS = "inside an image shared with other snapshots: needs an analysis of its clusters"


@dataclass(frozen=True, slots=True)
class SnapshotCost:
    """Bytes on the host. `written`: added compared with the parent. `frees`: back if only this one is deleted."""

    written: Figure
    frees: Figure
    memory: Figure


@dataclass(frozen=True, slots=True)
class DomainCosts:
    """Costs of one machine. `disk` counts every image once; `now` is what was written since the current snapshot."""

    disk: Figure
    memory: Figure
    now: Figure
    snapshots: Mapping[str, SnapshotCost]
    images: Mapping[str, Figure]
    """Bytes of every image that the machine needs, by path: hosts count an image shared by machines once."""


def host_disk(machines: Iterable[DomainCosts]) -> Figure:
    """Bytes of all images that these machines of one host need, each image counted once."""
    images: dict[str, Figure] = {}
    unknowns: list[Figure] = []
    for costs in machines:
        images.update(costs.images)
        if not costs.disk.is_known:
            unknowns.append(costs.disk)
    return total([*images.values(), *unknowns])


def domain_costs(tree: SnapshotTree, layers: DomainLayers) -> DomainCosts:
    """Work out every figure that layers alone can give (QCOW2.md: what is inside one image needs more)."""
    holders = _holders_of_layers(tree)
    snapshots = {snapshot.name: _snapshot_cost(snapshot, layers, holders) for snapshot in tree}
    live = {path for chain in layers.chains for path in chain.layers}
    frozen = {disk.frozen for snapshot in tree for disk in snapshot.disks if disk.frozen}
    images = {path: layer_bytes(layers, path) for path in sorted(live | frozen)}
    return DomainCosts(
        disk=total([*images.values(), *_chain_gaps(layers)]),
        memory=total(cost.memory for cost in snapshots.values()),
        now=_now_cost(layers, holders),
        snapshots=snapshots,
        images=images,
    )


def layer_bytes(layers: DomainLayers, path: str) -> Figure:
    """Bytes one image takes on the host's disk."""
    image = layers.images.get(path)
    return unknown("this image was not looked at") if image is None else image.allocated


def _chain_gaps(layers: DomainLayers) -> list[Figure]:
    return [unknown(chain.problem) for chain in layers.chains if chain.problem]


def _holders_of_layers(tree: SnapshotTree) -> dict[str, set[str]]:
    """Image -> snapshots whose content lies in it as its own layer (not merely below it)."""
    holders: dict[str, set[str]] = {}
    for snapshot in tree:
        for disk in snapshot.disks:
            if disk.frozen and disk.how in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL):
                holders.setdefault(disk.frozen, set()).add(snapshot.name)
    return holders


def _snapshot_cost(snapshot: Snapshot, layers: DomainLayers, holders: Mapping[str, set[str]]) -> SnapshotCost:
    parts: list[Figure] = []
    for disk in snapshot.disks:
        if disk.how is DiskSnapshot.EXTERNAL and disk.frozen and holders[disk.frozen] == {snapshot.name}:
            parts.append(layer_bytes(layers, disk.frozen))
        elif disk.how in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL):
            parts.append(unknown(_NEEDS_ANALYSIS))
    return SnapshotCost(
        written=total(parts) if parts else NOTHING,
        frees=unknown("needs an analysis of the image's clusters"),
        memory=_memory_cost(snapshot, layers),
    )


def _memory_cost(snapshot: Snapshot, layers: DomainLayers) -> Figure:
    if snapshot.memory is MemorySnapshot.NO:
        return NOTHING
    if snapshot.memory is MemorySnapshot.EXTERNAL:
        if snapshot.memory_file is None:
            return unknown("the snapshot names no memory file")
        return layers.memory_files.get(snapshot.memory_file, unknown("the memory file was not looked at"))
    for disk in snapshot.disks:
        image = layers.images.get(disk.frozen or "")
        if image is None or image.problem:
            continue
        for entry in image.internal_snapshots:
            if entry.name == snapshot.name and entry.vm_state_size:
                return Figure(entry.vm_state_size, Confidence.UPPER_BOUND, "size in the image's snapshot table")
    return unknown("no image that was read holds its saved memory")


def _now_cost(layers: DomainLayers, holders: Mapping[str, set[str]]) -> Figure:
    parts = []
    for chain in layers.chains:
        if chain.active is None:
            parts.append(unknown(chain.problem or "the disk has no file"))
        elif chain.active in holders:
            parts.append(unknown(_NEEDS_ANALYSIS))
        else:
            parts.append(layer_bytes(layers, chain.active))
    return total(parts) if parts else exact(0)
