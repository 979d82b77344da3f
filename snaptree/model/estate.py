"""What an estate is made of: hosts, their virtual machines, snapshots, disks and layers. Frozen values only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from snaptree.model.figures import Figure


class DomainState(StrEnum):
    """libvirt's virDomainState in words; also the `state` recorded in a snapshot."""

    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutdown"
    OFF = "shutoff"
    CRASHED = "crashed"
    SUSPENDED = "pmsuspended"
    DISK_ONLY = "disk-snapshot"
    """Only in snapshots: the machine ran, but only its disks were captured."""
    UNKNOWN = "unknown"

    @property
    def is_active(self) -> bool:
        """Whether a QEMU process exists for a domain in this state."""
        return self not in (DomainState.OFF, DomainState.CRASHED, DomainState.UNKNOWN, DomainState.DISK_ONLY)


@dataclass(frozen=True, slots=True)
class Host:
    """One libvirt connection and what its libvirt can do. Versions are libvirt's integers (11.3.0 = 11003000)."""

    uri: str
    hostname: str
    driver: str
    """`QEMU` or `TEST`: virConnectGetType."""
    libvirt_version: int
    hypervisor_version: int
    read_only: bool
    is_local: bool
    """The images' paths are paths on this computer."""
    external_snapshots: bool
    """External revert and full external delete exist: `<externalSnapshot/>` in the capabilities (libvirt 9.9)."""
    internal_revert_broken: bool = False
    """libvirt 11.2.0 and 11.3.0 as released cannot revert internal snapshots (GitLab #771); distributions fixed it."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One virtual machine as a list shows it; everything here costs one cheap call for all of them."""

    uuid: str
    name: str
    state: DomainState
    is_persistent: bool
    snapshot_count: int | None = None
    has_managed_save: bool = False


class DiskSnapshot(StrEnum):
    """How a snapshot holds a disk (`<disk snapshot=...>`)."""

    NO = "no"
    INTERNAL = "internal"
    EXTERNAL = "external"
    MANUAL = "manual"


class MemorySnapshot(StrEnum):
    """Where a snapshot holds the RAM (`<memory snapshot=...>`)."""

    NO = "no"
    INTERNAL = "internal"
    EXTERNAL = "external"


class SnapshotKind(StrEnum):
    """Internal (in a qcow2), external (a frozen layer and an overlay), or some of each."""

    INTERNAL = "internal"
    EXTERNAL = "external"
    MIXED = "mixed"


class Consistency(StrEnum):
    """What a reverted guest finds: see DESIGN, "Words"."""

    MEMORY = "memory"
    FILESYSTEM = "filesystem"
    CRASH = "crash"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """One disk in a snapshot.

    `frozen` is the image that was active when the snapshot was taken (the disk's source in the
    snapshot's `<domain>`): the layer that holds the snapshot's content. `overlay` is the image that took
    over, for external ones. Either is None where the disk is no file, or the snapshot's XML lacks it.
    """

    target: str
    how: DiskSnapshot
    frozen: str | None = None
    overlay: str | None = None
    frozen_format: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """That somebody marked a snapshot: who, and when, in seconds since 1970, UTC. Empty and 0 if nobody knows."""

    by: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Remarks:
    """What people said about a snapshot, and may say otherwise later."""

    note: str = ""
    pinned: Mark | None = None
    known_good: Mark | None = None
    half_deleted: bool = False
    """As `Annotations.half_deleted`: SnapTree itself says so."""
    doubtful: bool = False
    """As `Annotations.doubtful`, likewise."""


@dataclass(frozen=True, slots=True)
class Impact:
    """What taking a snapshot did to the machine, as measured. Seconds and bytes; None where it was not measured."""

    seconds: float
    """From the first step to the last."""
    paused: float | None = None
    """How long the guest stood still."""
    frozen: float | None = None
    """How long its file systems were frozen."""
    wrote: int | None = None
    """Bytes that new layers and saved memory took on the host's disk."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """What SnapTree itself wrote into a snapshot's XML (DESIGN, section 5)."""

    pinned: Mark | None = None
    """To be kept, whatever is pruned."""
    known_good: Mark | None = None
    """Somebody saw the machine work well at this point."""
    consistency: Consistency | None = None
    taken_by: str = ""
    safety: bool = False
    """Taken by SnapTree before a revert, so that the revert can be undone."""
    impact: Impact | None = None
    group: str = ""
    """What snapshots of several machines have in common that were taken together; empty for one by itself."""
    schedule: str = ""
    """The schedule that took it; empty for one that a person took."""
    half_deleted: bool = False
    """A delete of it was cut short when it had begun to overwrite it, and was left like that: it is of no use."""
    doubtful: bool = False
    """A layer that it stands on seems to have been written to after it was taken, and nothing but this mark tells."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A point in a domain's history, as its XML tells it. `created` is seconds since 1970, UTC."""

    name: str
    parent: str | None
    created: int
    state: DomainState
    description: str = ""
    memory: MemorySnapshot = MemorySnapshot.NO
    memory_file: str | None = None
    nominal_memory: int | None = None
    """RAM of the machine when the snapshot was taken, in bytes: what the guest had, not what is on disk."""
    disks: tuple[SnapshotDisk, ...] = ()
    revert_overlays: tuple[tuple[str, str], ...] = ()
    """`<revertDisks>`: (target, overlay) in use since this snapshot was reverted to."""
    annotations: Annotations = Annotations()
    delete_in_progress: bool = False
    """A delete of one of its children was interrupted: `<snapshotDeleteInProgress/>`."""
    problem: str = ""
    """Why its XML could not be read in full; the rest of the fields are then what could be."""

    @property
    def remarks(self) -> Remarks:
        """What people said about it."""
        marks = self.annotations
        return Remarks(self.description, marks.pinned, marks.known_good, marks.half_deleted, marks.doubtful)

    def with_remarks(self, remarks: Remarks) -> Snapshot:
        """The same snapshot, of which this is said."""
        marks = replace(
            self.annotations,
            pinned=remarks.pinned,
            known_good=remarks.known_good,
            half_deleted=remarks.half_deleted,
            doubtful=remarks.doubtful,
        )
        return replace(self, description=remarks.note, annotations=marks)

    @property
    def kind(self) -> SnapshotKind:
        """Internal, external or mixed, by its memory and disks."""
        external = self.memory is MemorySnapshot.EXTERNAL or any(
            disk.how is DiskSnapshot.EXTERNAL for disk in self.disks
        )
        internal = self.memory is MemorySnapshot.INTERNAL or any(
            disk.how is DiskSnapshot.INTERNAL for disk in self.disks
        )
        if external:
            return SnapshotKind.MIXED if internal else SnapshotKind.EXTERNAL
        return SnapshotKind.INTERNAL

    @property
    def consistency(self) -> Consistency:
        """What a revert gives, from what is recorded; libvirt does not record whether a guest was frozen."""
        if self.annotations.consistency is not None:
            return self.annotations.consistency
        if self.memory is not MemorySnapshot.NO:
            return Consistency.MEMORY
        if self.state is DomainState.OFF:
            return Consistency.OFFLINE
        if self.state is DomainState.DISK_ONLY:
            return Consistency.CRASH
        return Consistency.UNKNOWN


@dataclass(frozen=True, slots=True)
class InternalSnapshot:
    """An entry of a qcow2 image's snapshot table. `vm_state_size` is nominal, in bytes."""

    id: str
    name: str
    vm_state_size: int
    created: int


@dataclass(frozen=True, slots=True)
class Image:
    """One image file or volume: a layer. Sizes are bytes."""

    path: str
    format: str
    allocated: Figure
    """Bytes it takes on the host's disk (st_blocks), never its apparent size."""
    virtual_size: int | None = None
    backing: str | None = None
    """The layer below as an absolute path or libvirt-style name; None at the bottom."""
    backing_format: str | None = None
    internal_snapshots: tuple[InternalSnapshot, ...] = ()
    has_bitmaps: bool = False
    identity: tuple[int, int] | None = None
    """(device, inode) for a local file: two paths may be one image."""
    problem: str = ""
    """Why it can't be read, empty if it could."""
    is_missing: bool = False
    numbers: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """The place in the snapshot table of each name that is there once."""

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.internal_snapshots]
        numbers = {name: number for number, name in enumerate(names)}
        if len(numbers) < len(names):
            counts = Counter(names)
            numbers = {name: number for name, number in numbers.items() if counts[name] == 1}
        object.__setattr__(self, "numbers", numbers)


class Space(Protocol):
    """Bytes that some clusters of an image take."""

    @property
    def in_image(self) -> int:
        """What the image can use again once they are free."""

    @property
    def on_host(self) -> int | None:
        """What they take on the host's file system, None if that is not known."""


class ClusterSharing(Protocol):
    """Which internal snapshots of an image hold which of its clusters. Snapshots are numbered as in its table."""

    @property
    def present(self) -> int:
        """The number that stands for the present state."""

    def written_to_disk(self, holder: int, parent: int | None) -> Space:
        """What a holder has and its parent has not, saved memory left out; all that it has if there is no parent."""

    def data(self, holder: int) -> Space:
        """What a holder has of the guest's disk, without the tables that lead to it."""

    def frees(self, snapshots: Collection[int]) -> Space:
        """What becomes free if all these snapshots are deleted."""

    def memory(self, holder: int) -> Space:
        """Saved memory that would be gone with this snapshot."""


class MergeBytes(Protocol):
    """What making one layer of several writes, in bytes: at least and at most, where zeros or the host decide."""

    @property
    def copies_least(self) -> int:
        """Of the guest's bytes that are written as data."""

    @property
    def copies_most(self) -> int:
        """Of the guest's bytes that are written as data."""

    @property
    def growth_least(self) -> int:
        """What the file that is merged into grows by; below zero if zeros make room in it."""

    @property
    def growth_most(self) -> int:
        """What the file that is merged into grows by."""


class LayerOverlaps(Protocol):
    """What the layers of a disk hold of it, one upon another. Layers are named by path, bytes are the guest's."""

    def data(self, layer: str) -> int:
        """What a layer itself defines as data."""

    def visible(self, layer: str, top: str) -> int:
        """How much of a layer's data a reader of `top` sees, which is that layer or stands on it."""

    def merge(self, bottom: str, top: str, into: str) -> MergeBytes:
        """What it takes to make one layer of those from `bottom` to `top` that shows what `top` shows.

        It is made in the file of `into`: what is above that is committed into it, then what is below is pulled.
        """


ImageKey = tuple[int, int] | str
"""An image's identity where it is known, else its path: one image has one, whatever paths lead to it."""


@dataclass(frozen=True, slots=True)
class DiskChain:
    """The layers that a disk of the running (or stopped) machine stands on now, active layer first."""

    target: str
    layers: tuple[str, ...]
    problem: str = ""
    discards: bool = False
    """While the machine runs, what an image frees is given back to the host (`discard='unmap'`)."""

    @property
    def active(self) -> str | None:
        """The layer that takes the guest's writes."""
        return self.layers[0] if self.layers else None


@dataclass(frozen=True, slots=True)
class LooksAt:
    """What a machine was made for: to look at a snapshot of another one, without reverting that."""

    snapshot: str
    domain: str
    """The other machine's name when this one was made."""
    domain_uuid: str
    files: tuple[str, ...] = ()
    """What was made for it, and goes with it."""


@dataclass(frozen=True, slots=True)
class DomainLayers:
    """Everything known about the images of one domain: the live chains and every image that a snapshot names."""

    chains: tuple[DiskChain, ...] = ()
    images: Mapping[str, Image] = field(default_factory=lambda: MappingProxyType({}))
    memory_files: Mapping[str, Figure] = field(default_factory=lambda: MappingProxyType({}))
    """Saved-RAM files of external snapshots: bytes allocated, by path."""
    memory_compressions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """How each of these files is written, by libvirt's names (`raw`, `zstd`, ...), where they could be looked into."""
    sharing: Mapping[str, ClusterSharing] = field(default_factory=lambda: MappingProxyType({}))
    """By path, for images with internal snapshots, if their clusters were analysed."""
    drops_memory: bool = False
    """The machine runs, and not since a revert: of memory that its QEMU saved last, the present state holds none,
    though its image may not say so yet."""
    overlaps: Mapping[str, LayerOverlaps] = field(default_factory=lambda: MappingProxyType({}))
    """By path, for images that stand on others or below them, if they were analysed. Layers of one disk have one."""
    is_running: bool = False
    """Whether a QEMU holds the chains."""
    looks_at: LooksAt | None = None
    """Whose layers it was put on, if it was made to look at a snapshot."""

    @property
    def depth(self) -> int:
        """How many layers the deepest disk stands on, its active one included."""
        return max((len(chain.layers) for chain in self.chains), default=0)

    def key(self, path: str) -> ImageKey:
        """What tells an image from others, by whichever path it is asked for."""
        image = self.images.get(path)
        return path if image is None or image.identity is None else image.identity
