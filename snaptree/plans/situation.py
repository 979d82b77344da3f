"""All that a planner may know: one machine's state, read in one go, with what else on the host touches it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from snaptree.model.estate import Domain, DomainLayers, Host, ImageKey
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.settings import SettingChange
from snaptree.model.tree import SnapshotTree
from snaptree.plans.operation import Operation, StepFound
from snaptree.plans.speed import NOT_MEASURED, Speed
from snaptree.plans.wording import machines_named, plain

if TYPE_CHECKING:
    from collections.abc import Mapping


class Known(IntEnum):
    """How much of a situation was read. More includes less."""

    TREE = 0
    """The host, the machine and its snapshots."""
    LAYERS = 1
    """Their images too."""
    EVERYTHING = 2
    """And whatever else on the host touches them: what a plan needs."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the machine as defined now. `path` is None for anything that is not a file."""

    target: str
    device: str
    """`disk`, `cdrom`, `floppy` or `lun`."""
    type: str
    """`file`, `block`, `network`, `volume`, ...; empty drives are `file` without a path."""
    format: str
    path: str | None
    bus: str = ""
    read_only: bool = False
    transient: bool = False
    shareable: bool = False
    is_encrypted: bool = False
    records_chain: bool = False
    """Its `<disk>` lists the layers below (`<backingStore>`); asked of `recorded_disks` only."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A consistent picture of one domain for planning. Everything here was read; nothing is assumed.

    What was not read has its default, and `known` says so: rules that need more keep quiet.
    """

    host: Host
    domain: Domain
    tree: SnapshotTree
    layers: DomainLayers
    disks: tuple[Disk, ...] = ()
    dependants: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Image path -> names of *other* domains that read it, be it through a chain or in a snapshot of theirs."""
    unreadable_domains: tuple[str, ...] = ()
    """Other domains whose chains could not be read: nobody can say that they don't depend on an image here."""
    overlays_on: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Image path -> images known on this host (this domain's included) whose backing file it is."""
    block_jobs: tuple[str, ...] = ()
    """Targets of disks with a running block job."""
    checkpoints: tuple[str, ...] = ()
    has_pflash: bool = False
    """The firmware keeps its variables in flash (UEFI)."""
    nvram_format: str | None = None
    has_agent: bool = False
    """A guest agent channel is configured and connected."""
    recorded_disks: Mapping[str, tuple[Disk, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Snapshot -> the disks of the machine as that snapshot recorded it (its `<domain>`), CD-ROMs included.
    A snapshot that is not here is taken to have had the disks that the machine has now."""
    settings: Mapping[str, tuple[SettingChange, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Snapshot -> what changes when the machine gets the settings of that snapshot. One that is not here did not say
    what the machine looked like."""
    existing_files: frozenset[str] = frozenset()
    """Files in the directories of this machine's images, as far as they can be listed."""
    missing_files: frozenset[str] = frozenset()
    """Saved-memory files that snapshots name and that do not exist."""
    takes_new_layers: frozenset[str] = frozenset()
    """Directories of this machine's images in which SnapTree itself can make layers."""
    why_not_copied: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Image with internal snapshots -> why SnapTree can't copy one out of it, as a clause. Of others it can."""
    shared_devices: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Snapshot -> what its machine had, in words, that two machines can't have at once."""
    nvram: str | None = None
    """The file of the UEFI variables."""
    copies_nvram: bool = False
    """SnapTree can read that file, and write beside it."""
    machine_names: frozenset[str] = frozenset()
    """Of all machines of the host."""
    free_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Directory -> bytes free for it, where that is known."""
    places: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    """Directory that was asked for -> whether it is there. One that is not here can't be looked at."""
    dirty_rate: int | None = None
    """Bytes of its RAM that the guest changes each second; None if that was not measured."""
    images_let_go: bool = False
    """QEMU is paused and has let go of its images since its memory was saved or loaded, until it resumes. Only known
    where a plan itself leads to it."""
    unnamed_layers: frozenset[str] = frozenset()
    """Layers that libvirt makes and names when the plan that led here is run: what they are called here is a guess."""
    speed: Speed = NOT_MEASURED
    """How long changes took on this host."""
    unfinished: Operation | None = None
    """The operation on this machine that was interrupted and is neither finished nor left as it is."""
    found: StepFound | None = None
    """What is there now of the first of its steps that is not known to be done. Only looked for to recover it."""
    group_is_torn: bool = False
    """It was to take a snapshot together with those of other machines, and not all of them were taken."""
    half_deleted: frozenset[str] = frozenset()
    """Snapshots that a delete had begun to overwrite, and that were left as they were."""
    running_elsewhere: Operation | None = None
    """What another program of this user's is doing to this machine."""
    memory_bytes: int = 0
    """RAM of the machine now, in bytes."""
    user: str = ""
    """Who asks: as whom this program runs. Empty if nobody knows."""
    now: int = 0
    """Seconds since 1970, UTC, when this was read."""
    known: Known = Known.EVERYTHING


def elsewhere(
    layers: DomainLayers,
    dependants: Mapping[str, frozenset[str]],
    unreadable_domains: tuple[str, ...],
    overlays_on: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> Elsewhere:
    """Put what is known of other machines into the model's words; files that nobody knows of count like machines."""
    users: dict[ImageKey, frozenset[str]] = {}

    def add(path: str, names: frozenset[str]) -> None:
        users[layers.key(path)] = users.get(layers.key(path), frozenset()) | names

    for named, names in dependants.items():
        add(named, names)
    of_machines = set(users)  # whose overlays these may be
    ours = {layers.key(path) for path in layers.images}
    for base, overlays in overlays_on.items():
        strangers = frozenset(plain(overlay) for overlay in overlays if layers.key(overlay) not in ours)
        path: str | None = None if layers.key(base) in of_machines else base
        seen: set[str] = set()
        while strangers and path is not None and path not in seen:
            seen.add(path)
            add(path, strangers)
            image = layers.images.get(path)
            path = None if image is None else image.backing
    unknown = ""
    if unreadable_domains:
        machines = machines_named(unreadable_domains)
        unknown = f"the disks of {machines} can't be followed, so nobody knows whether they stand on these layers"
    return Elsewhere(MappingProxyType(users), unknown)


def glance(
    host: Host,
    domain: Domain,
    tree: SnapshotTree,
    layers: DomainLayers | None = None,
    unfinished: Operation | None = None,
    elsewhere: Elsewhere = ALONE,
) -> Situation:
    """What a window has at hand without asking the host: enough for `rules.why_not`, not for a plan that is run."""
    layers_read = DomainLayers() if layers is None else layers
    users = {path: names for path in layers_read.images if (names := elsewhere.users.get(layers_read.key(path)))}
    return Situation(
        host=host,
        domain=domain,
        tree=tree,
        layers=layers_read,
        dependants=MappingProxyType(users),
        unfinished=unfinished,
        known=Known.TREE if layers is None else Known.LAYERS,
    )
