"""What should be looked at on a machine or host, why it matters, and what cures it. `plans/check.py` finds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from snaptree.model.costs import DomainCosts
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Domain, DomainLayers, Host
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import Kind, Severity, Trouble
from snaptree.plans.intention import Delete, Prune, Recover
from snaptree.plans.operation import Operation, troubles_of_operation


@dataclass(frozen=True, slots=True)
class Observed:
    """One machine with everything that was read of it."""

    host: Host
    domain: Domain
    tree: SnapshotTree
    layers: DomainLayers
    costs: DomainCosts
    elsewhere: Elsewhere = ALONE
    unfinished: Operation | None = None
    """What was interrupted on it."""


@dataclass(frozen=True, slots=True)
class Cure:
    """What a machine's owner may want then: it is planned and shown like anything else before it is done."""

    uuid: str
    domain: str
    intention: Prune | Delete | Recover


@dataclass(frozen=True, slots=True)
class Advice:
    """One finding. Sentences are for administrators."""

    kind: Kind
    severity: Severity
    text: str
    """What is found."""
    why: str
    """Why it matters."""
    remedy: str = ""
    """What to do where no plan cures it, or to think of first where one does."""
    cure: Cure | None = None


@dataclass(frozen=True, slots=True)
class HostAdvice:
    """All findings of a host, the worst first."""

    host: tuple[Advice, ...] = ()
    """About what its machines share."""
    machines: Mapping[str, tuple[Advice, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By UUID, of every machine that was looked at."""


WHY: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        Kind.NOT_READ: "What is shown of it may be out of date, or missing.",
        Kind.INTERRUPTED: "Nothing else of the machine can be changed before that is settled.",
        Kind.BROKEN_CHAIN: "The guest can't read what lies there, and once stopped it may not start again.",
        Kind.MISSING_IMAGE: "Nobody can go back to what stands on it.",
        Kind.UNREADABLE_IMAGE: "What it holds is not known, so nothing that touches it can be planned.",
        Kind.DEEP_CHAIN: "Each layer slows the guest's reads. libvirt 10.8 to 11 starts no machine on more than 25.",
        Kind.DAMAGED_SNAPSHOT: "Nobody can say what a revert or a delete would lose.",
        Kind.HALF_DELETED: "Until that is completed, libvirt deletes nothing else there.",
        Kind.MIXTURE: "Nobody can go back to it, though it is listed as if.",
        Kind.DOUBTFUL: "Going back to it may bring something else than was there.",
        Kind.NO_CURRENT: "libvirt's own deletes crash its daemon in this state, or remove a layer in use.",
        Kind.STALE_SNAPSHOT: "Nobody can go back to it, though it is listed as if.",
        Kind.OLD_SNAPSHOTS: "What guests overwrote since is kept on the disk for that.",
        Kind.UNKNOWN_COST: "What deleting snapshots gives back can't be forecast.",
        Kind.FAST_GROWTH: "What a guest overwrites is kept as long as a snapshot holds it.",
        Kind.LOW_SPACE: "A guest whose image can't grow is paused, and so is every other one there.",
        Kind.ORPHAN: "It takes room that no figure of a machine counts.",
        Kind.SCHEDULE_FAILED: "What it was to take or to prune then, it did not, or not all of it.",
        Kind.SCHEDULE_NOT_RUN: "What it is to take is not taken, and what it is to prune stays.",
        Kind.SCHEDULE_NAMES: "Nothing is taken of a machine that is named otherwise.",
        Kind.SCHEDULE_HOURS: "What it takes is never pruned, so snapshots and layers become ever more.",
        Kind.POLICY_FILE: "None of its policies can be used, and none of its schedules runs.",
    }
)
REMEDIES: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        Kind.BROKEN_CHAIN: "Bring the image back to where it was, from a backup if need be, before the machine stops.",
        Kind.MISSING_IMAGE: "Bring the file back, from a backup if need be.",
        Kind.UNREADABLE_IMAGE: "Look at it with qemu-img check, or let SnapTree read it.",
        Kind.DAMAGED_SNAPSHOT: "Look at it with virsh snapshot-dumpxml.",
        Kind.HALF_DELETED: "Delete what is below it again.",
        Kind.MIXTURE: "Delete it: that completes it.",
        Kind.DOUBTFUL: "Look into it before anybody relies on it, and delete it if it is of no use.",
        Kind.NO_CURRENT: "Redefine the snapshot that the disks descend from as current: virsh snapshot-create"
        " --redefine --current, with the XML of snapshot-dumpxml --security-info.",
    }
)


def advice_on(trouble: Trouble, cure: Cure | None = None, *, remedy: str | None = None) -> Advice:
    """A trouble, why it matters, and what to do about it."""
    words = REMEDIES.get(trouble.kind, "") if remedy is None else remedy
    return Advice(trouble.kind, trouble.severity, trouble.text, WHY[trouble.kind], words, cure)


def advice_on_operation(unfinished: Operation | None) -> tuple[Advice, ...]:
    """What was interrupted on a machine is finished, or left as it is."""
    if unfinished is None:
        return ()
    plan = unfinished.plan
    return tuple(
        advice_on(trouble, Cure(plan.domain_uuid, plan.domain, Recover()))
        for trouble in troubles_of_operation(unfinished)
    )


def advice_on_failure(error: SnapTreeError | None) -> tuple[Advice, ...]:
    """A machine or its snapshots could not be read."""
    if error is None:
        return ()
    return (advice_on(Trouble(Severity.ERROR, error.summary, Kind.NOT_READ), remedy=error.hint),)


def counted(advice: Iterable[Advice]) -> bool:
    """Whether any of it is worse than good to know."""
    return any(each.severity > Severity.NOTE for each in advice)
