"""What each snapshot and layer costs, from facts already read. Pure sums; unknown stays unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from snaptree.model.estate import DiskSnapshot, DomainLayers, ImageKey, MemorySnapshot, Snapshot, SnapshotDisk, Space
from snaptree.model.figures import NOTHING, Confidence, Figure, exact, total, unknown
from snaptree.model.merging import ALONE, Elsewhere, LayerTree
from snaptree.model.tree import SnapshotTree

_NEEDS_ANALYSIS = "inside an image shared with other snapshots: needs an analysis of its clusters"
_NOT_RECORDED = "the snapshot does not say which image holds this disk"
_MANUAL = "a disk is snapshotted by other means than libvirt's"


@dataclass(frozen=True, slots=True)
class SelectionCost:
    """Bytes: what comes back if exactly some snapshots are deleted, and what has to be copied for that first.

    Less than nothing comes back where the layer at a fork has to be copied into each of its branches.
    """

    frees: Figure
    copies: Figure
    reusable: Figure
    """What images that hold snapshots can use again themselves, whether or not the host gets it back."""


@dataclass(frozen=True, slots=True)
class SnapshotCost:
    """Bytes on the host. `written`: added compared with the parent. `frees` and `copies`: if only this one goes."""

    written: Figure
    frees: Figure
    copies: Figure
    memory: Figure


@dataclass(frozen=True, slots=True)
class DomainCosts:
    """Costs of one machine. `disk` counts every image once; `now` is what was written since the current snapshot.

    Memory that is saved inside an image is part of `disk` too; memory in a file of its own is not.
    """

    disk: Figure
    memory: Figure
    now: Figure
    snapshots: Mapping[str, SnapshotCost]
    images: Mapping[ImageKey, Figure]
    """Bytes of every image that the machine needs: hosts count an image shared by machines once."""


def host_disk(machines: Iterable[DomainCosts]) -> Figure:
    """Bytes of all images that these machines of one host need, each image counted once."""
    images: dict[ImageKey, Figure] = {}
    unknowns: list[Figure] = []
    for costs in machines:
        images.update(costs.images)
        if not costs.disk.is_known:
            unknowns.append(costs.disk)
    return total([*images.values(), *unknowns])


def domain_costs(tree: SnapshotTree, layers: DomainLayers, elsewhere: Elsewhere = ALONE) -> DomainCosts:
    """Work out every figure that layers alone can give; what lies inside them is known once it was analysed."""
    layer_tree = LayerTree(tree, layers, elsewhere)
    holders = layer_tree.holders
    snapshots = {snapshot.name: _snapshot_cost(snapshot, layer_tree) for snapshot in tree}
    images = _needed_images(tree, layers)
    return DomainCosts(
        disk=total([*images.values(), *_chain_gaps(layers)]),
        memory=total(cost.memory for cost in snapshots.values()),
        now=_now_cost(tree, layers, holders),
        snapshots=snapshots,
        images=images,
    )


def layer_bytes(layers: DomainLayers, path: str) -> Figure:
    """Bytes one image takes on the host's disk."""
    image = layers.images.get(path)
    return unknown("this image was not looked at") if image is None else image.allocated


def _needed_images(tree: SnapshotTree, layers: DomainLayers) -> dict[ImageKey, Figure]:
    """Bytes of all that the disks and the snapshots stand on, down to the bottom. A file that is gone takes none."""
    waiting = [path for chain in layers.chains for path in chain.layers]
    waiting += [disk.frozen for snapshot in tree for disk in _held_disks(snapshot) if disk.frozen]
    paths: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in paths:
            continue
        paths.add(path)
        image = layers.images.get(path)
        if image is not None and image.backing is not None:
            waiting.append(image.backing)
    return {
        layers.key(path): layer_bytes(layers, path)
        for path in sorted(paths)
        if not ((image := layers.images.get(path)) is not None and image.is_missing)
    }


def _chain_gaps(layers: DomainLayers) -> list[Figure]:
    return [unknown(chain.problem) for chain in layers.chains if chain.problem]


_Holders = Mapping[ImageKey, frozenset[str]]


def _held_disks(snapshot: Snapshot) -> list[SnapshotDisk]:
    return [disk for disk in snapshot.disks if disk.how is not DiskSnapshot.NO]


def _snapshot_cost(snapshot: Snapshot, layer_tree: LayerTree) -> SnapshotCost:
    tree, layers, holders = layer_tree.tree, layer_tree.layers, layer_tree.holders
    selection = cost_of_deleting(layer_tree, (snapshot.name,))
    return SnapshotCost(
        written=total(_written_to_disk(snapshot, disk, tree, layers, holders) for disk in _held_disks(snapshot)),
        frees=selection.frees,
        copies=selection.copies,
        memory=_memory_cost(snapshot, layers),
    )


def _written_to_disk(
    snapshot: Snapshot, disk: SnapshotDisk, tree: SnapshotTree, layers: DomainLayers, holders: _Holders
) -> Figure:
    if disk.how is DiskSnapshot.MANUAL:
        return unknown(_MANUAL)
    if not disk.frozen:
        return unknown(_NOT_RECORDED)
    if disk.how is DiskSnapshot.INTERNAL:
        return _written_inside(snapshot, disk.frozen, tree, layers)
    if len(holders[layers.key(disk.frozen)]) > 1:
        return unknown(_NEEDS_ANALYSIS)
    return _written_since_held(disk.frozen, layers, holders)


# Inside images


def _written_inside(snapshot: Snapshot, path: str, tree: SnapshotTree, layers: DomainLayers) -> Figure:
    """What an internal snapshot holds in an image, and the nearest one above it in the tree does not."""
    sharing, number = layers.sharing.get(path), _number_inside(snapshot.name, path, layers)
    if sharing is None or number is None:
        return unknown(_NEEDS_ANALYSIS)
    above, parent = tree.parents[snapshot.name], None
    while above is not None and parent is None:
        if any(disk.frozen == path for disk in _internal_disks(tree[above])):
            parent = _number_inside(above, path, layers)
        above = tree.parents[above]
    of_whom = "that its parent has not" if parent is not None else "of the image that it holds"
    return _as_figure(sharing.written_to_disk(number, parent), path, layers, f"clusters {of_whom}", frozen=True)


def held_inside(layers: DomainLayers, path: str, name: str) -> Figure:
    """Bytes of a disk's data that an internal snapshot holds in its image: what a copy of it takes in.

    Data that is compressed there is larger in the copy.
    """
    sharing, number = layers.sharing.get(path), _number_inside(name, path, layers)
    if sharing is None or number is None:
        return unknown(_NEEDS_ANALYSIS)
    return exact(sharing.data(number).in_image, "clusters of data that the snapshot holds")


def _number_inside(name: str, path: str, layers: DomainLayers) -> int | None:
    """The number of a snapshot in an image's table; None if it is not there, or not alone of that name."""
    image = layers.images.get(path)
    return None if image is None else image.numbers.get(name)


def _internal_disks(snapshot: Snapshot) -> list[SnapshotDisk]:
    return [disk for disk in snapshot.disks if disk.how is DiskSnapshot.INTERNAL]


def _as_figure(space: Space, path: str, layers: DomainLayers, how: str, *, frozen: bool = False) -> Figure:
    """`frozen`: what was counted depends on snapshots alone, whose clusters nobody writes to while the machine runs."""
    if space.on_host is None:
        return Figure(space.in_image, Confidence.UPPER_BOUND, how)
    is_live = layers.images[path].allocated.confidence is Confidence.LIVE and not frozen
    return Figure(space.on_host, Confidence.LIVE if is_live else Confidence.EXACT, how)


def selection_cost(
    tree: SnapshotTree,
    layers: DomainLayers,
    names: Collection[str],
    elsewhere: Elsewhere = ALONE,
    kept: Collection[str] = (),
) -> SelectionCost:
    """What comes back if exactly these snapshots are deleted, saved memory included, and what is copied first.

    `kept` are paths of layers and memory files that stay all the same.
    """
    return cost_of_deleting(LayerTree(tree, layers, elsewhere), names, kept)


def cost_of_deleting(layer_tree: LayerTree, names: Collection[str], kept: Collection[str] = ()) -> SelectionCost:
    """As `selection_cost`, for who has the layers put in order already."""
    tree, layers = layer_tree.tree, layer_tree.layers
    outside = layer_tree.deleting(names, {layers.key(path) for path in kept})
    inside: dict[str, list[int]] = {}
    parts = [outside.frees]
    for name in names:
        snapshot = tree[name]
        if snapshot.memory is MemorySnapshot.EXTERNAL and snapshot.memory_file not in kept:
            parts.append(_memory_cost(snapshot, layers))
        for disk in _internal_disks(snapshot):
            if disk.frozen is not None and layers.key(disk.frozen) in outside.dropped:
                continue  # it goes with the whole image
            number = None if disk.frozen is None else _number_inside(name, disk.frozen, layers)
            if number is None or disk.frozen is None:
                parts.append(unknown(_NEEDS_ANALYSIS))
            else:
                inside.setdefault(disk.frozen, []).append(number)
    parts += [_freed_inside(path, numbers, layers) for path, numbers in inside.items()]
    reusable = (_reusable_inside(path, numbers, layers) for path, numbers in inside.items())
    return SelectionCost(total(parts), outside.copies, total(reusable))


def _reusable_inside(path: str, numbers: Collection[int], layers: DomainLayers) -> Figure:
    sharing = layers.sharing.get(path)
    if sharing is None:
        return unknown(_NEEDS_ANALYSIS)
    is_live = layers.images[path].allocated.confidence is Confidence.LIVE
    confidence = Confidence.LIVE if is_live else Confidence.EXACT
    return Figure(sharing.frees(numbers).in_image, confidence, "clusters that nobody else holds")


def _freed_inside(path: str, numbers: Collection[int], layers: DomainLayers) -> Figure:
    sharing = layers.sharing.get(path)
    if sharing is None:
        return unknown(_NEEDS_ANALYSIS)
    figure = _as_figure(sharing.frees(numbers), path, layers, "clusters that nobody else holds")
    if figure.confidence is Confidence.LIVE and not any(c.discards for c in layers.chains if c.active == path):
        # Off, qemu-img returns them. Running, QEMU does so only if the disk is told to.
        how = f"{figure.how}; the image uses them again, since the running disk does not pass discards on to the host"
        return Figure(figure.bytes, Confidence.UPPER_BOUND, how)
    return figure


def _written_since_held(path: str, layers: DomainLayers, holders: _Holders) -> Figure:
    """Bytes of a layer, and of those below that no snapshot holds any more, down to one that a snapshot holds.

    Where none below is held, what lies there was there before the first snapshot: it is not counted.
    """
    counted = [path]
    image = layers.images.get(path)
    while image is not None and image.backing is not None and image.backing not in counted:
        if layers.key(image.backing) in holders:
            return total(_without_internal(layers, one) for one in counted)
        counted.append(image.backing)
        image = layers.images.get(image.backing)
    return _without_internal(layers, path)


def _without_internal(layers: DomainLayers, path: str) -> Figure:
    """Bytes of a layer, unless it holds snapshots of its own that libvirt may not know of."""
    image = layers.images.get(path)
    return unknown(_NEEDS_ANALYSIS) if image is not None and image.internal_snapshots else layer_bytes(layers, path)


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
        sharing, number = layers.sharing.get(image.path), _number_inside(snapshot.name, image.path, layers)
        if sharing is not None and number is not None and image.internal_snapshots[number].vm_state_size:
            return _as_figure(sharing.memory(number), image.path, layers, "clusters of saved memory", frozen=True)
        for entry in image.internal_snapshots:
            if entry.name == snapshot.name and entry.vm_state_size:
                # The table may say anything; what lies in the image takes no more than the image.
                most = entry.vm_state_size if image.allocated.bytes is None else image.allocated.bytes
                size = min(entry.vm_state_size, most)
                return Figure(size, Confidence.UPPER_BOUND, "size in the image's snapshot table")
    return unknown("no image that was read holds its saved memory")


def _now_cost(tree: SnapshotTree, layers: DomainLayers, holders: _Holders) -> Figure:
    """What was written to the disks that the current snapshot holds, and to those that came after it."""
    how = {disk.target: disk.how for disk in tree[tree.current].disks} if tree.current is not None else {}
    parts = []
    for chain in layers.chains:
        if how.get(chain.target) is DiskSnapshot.NO:
            continue
        if how.get(chain.target) is DiskSnapshot.MANUAL:
            parts.append(unknown(_MANUAL))
        elif chain.active is None:
            parts.append(unknown(chain.problem or "the disk has no file"))
        elif how.get(chain.target) is DiskSnapshot.INTERNAL and chain.active in layers.sharing:
            parts.append(_now_inside(chain.active, tree, layers))
        elif layers.key(chain.active) in holders:
            parts.append(unknown(_NEEDS_ANALYSIS))
        else:
            parts.append(_written_since_held(chain.active, layers, holders))
    return total(parts)


def _now_inside(path: str, tree: SnapshotTree, layers: DomainLayers) -> Figure:
    """What the present state holds in an image, and the current snapshot does not."""
    number = None if tree.current is None else _number_inside(tree.current, path, layers)
    if number is None:
        return unknown(_NEEDS_ANALYSIS)
    sharing = layers.sharing[path]
    space = sharing.written_to_disk(sharing.present, number)
    return _as_figure(space, path, layers, "clusters that the current snapshot has not")
