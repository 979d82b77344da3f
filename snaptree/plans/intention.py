"""What a user wants, before anybody has asked whether it can be done."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from snaptree.plans.plan import Freeze, Plan, StateAfter, Undo

if TYPE_CHECKING:
    from snaptree.plans.policy import Policy


class Capture(StrEnum):
    """What a new snapshot shall hold."""

    DISKS = "disks"
    """Disks only, external overlays; crash-consistent unless frozen by the guest agent."""
    DISKS_AND_MEMORY = "disks-and-memory"
    """External overlays and the RAM in a file of its own."""
    INTERNAL = "internal"
    """Inside the qcow2 images; with the RAM if the machine runs."""
    BEST = "best"
    """As the machine's tree does it so far: internal stays internal; the RAM is saved if the machine is active."""


@dataclass(frozen=True, slots=True)
class Take:
    """Take a snapshot. `name` may be a template (naming.py); an empty one asks for one by date and time."""

    name: str = ""
    description: str = ""
    capture: Capture = Capture.BEST
    quiesce: Freeze = Freeze.NO
    excluded_disks: tuple[str, ...] = ()
    safety: bool = False
    live: bool = False
    """Let the guest run on while its RAM is saved."""
    layers_in: str = ""
    """Full path of the directory for new layers; empty: each beside what it stands on."""
    memory_in: str = ""
    """Full path of the directory for the saved RAM; empty: beside the first new layer."""
    group: str = ""
    """What it belongs to, if it is taken together with those of other machines."""
    schedule: str = ""
    """The schedule that takes it; empty for a person."""


@dataclass(frozen=True, slots=True)
class Revert:
    """Go back to a snapshot, by default after a safety snapshot of the present state."""

    snapshot: str
    take_safety_snapshot: bool = True
    state_after: StateAfter = StateAfter.AS_CAPTURED
    drop_managed_save: bool = False
    """Throw away the memory that a managed save put aside: with it there is no revert."""
    safety_group: str = ""
    """What the safety snapshot belongs to, if other machines are reverted together with this one."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete snapshots and merge what they hold; `subtree` adds everything that descends from them.

    Those that `leaves_out` names stay, asked for or not. `by_own_jobs` asks for merges that can be slowed down and
    stopped, which libvirt's own can't.
    """

    snapshots: tuple[str, ...]
    subtree: bool = False
    by_own_jobs: bool = False
    leaves_out: tuple[str, ...] = ()
    limit: int | None = None
    """Bytes to be copied per second at most; None for no limit."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Delete what a policy lets go. `kept` are snapshots that stay all the same, each with the reason."""

    policy: Policy
    kept: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    by_own_jobs: bool = False
    limit: int | None = None
    """As in `Delete`, both."""
    schedule: str = ""
    """The schedule that prunes; empty for a person."""


@dataclass(frozen=True, slots=True)
class DropMemory:
    """Keep what an external snapshot holds of the disks, and give up its saved memory."""

    snapshot: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Say something about snapshots. What is None stays as it was; who says it is the situation's user."""

    snapshots: tuple[str, ...]
    note: str | None = None
    pinned: bool | None = None
    known_good: bool | None = None


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a snapshot another name."""

    snapshot: str
    new_name: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Undo a finished plan, as its `Undo` says: first revert, then delete what had been taken for it."""

    undo: Undo


@dataclass(frozen=True, slots=True)
class Recover:
    """Finish what an interrupted operation left undone, or `leave` it as it is."""

    leave: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """Make a new machine that shows a snapshot's disks, and leave everything else as it is.

    An empty `machine` asks for a name. Its networks are unplugged unless they shall be connected.
    """

    snapshot: str
    machine: str = ""
    connect_networks: bool = False
    start: bool = False


@dataclass(frozen=True, slots=True)
class Unlook:
    """Remove a machine that was made to look at a snapshot, with the files that were made for it."""


Intention = Take | Revert | Delete | Prune | DropMemory | Describe | Rename | TakeBack | Recover | Look | Unlook


def places_of(intention: Intention) -> tuple[str, ...]:
    """Directories of the host that it names, and that have to be looked at before it is planned."""
    if not isinstance(intention, Take):
        return ()
    return tuple(dict.fromkeys(plain_path(place) for place in (intention.layers_in, intention.memory_in) if place))


def plain_path(place: str) -> str:
    """A directory that somebody named, as paths in it begin; empty stays empty."""
    return posixpath.normpath(place) if place else ""


def only_describes(intention: Intention) -> bool:
    """Whether it is about what is said of snapshots, and no more: then nobody has to look at images."""
    match intention:
        case Describe() | Rename():
            return True
        case TakeBack(undo=undo):
            return bool(undo.describe) or undo.rename is not None
    return False


def take_back(plan: Plan) -> tuple[str, Intention]:
    """What undoes a plan, and the machine that it is asked of, by UUID. Only of plans that have an `undo`."""
    undo = plan.undo
    assert undo is not None
    if undo.removes is not None:
        return undo.removes, Unlook()
    return plan.domain_uuid, TakeBack(undo)
