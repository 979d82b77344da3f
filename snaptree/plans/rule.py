"""What a rule is: a condition over a case, and the sentences to say when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from snaptree.model.estate import DiskSnapshot, DomainLayers, Host, Snapshot
from snaptree.model.tree import SnapshotTree
from snaptree.plans.facts import LIBVIRT_9_9, DeleteEffect, Facts, internal_images, is_external
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    Finding,
    ForgetMemory,
    ForkAtSnapshot,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    StateAfter,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.situation import Known, Situation
from snaptree.plans.wording import plain, quoted, shell_word, version

QEMU = "QEMU"
TEST = "TEST"
"""libvirt's mock driver, for thousands of machines at once: it has snapshots, but neither images nor QEMU."""

Evidence = Mapping[str, str]
"""What a rule found, in words, by the placeholder that its sentences use."""


def found(**words: str) -> Evidence:
    """Evidence, maybe with nothing to name."""
    return words


class Verdict(StrEnum):
    """What a rule does to a plan; the values stand on the page of rules."""

    REFUSE = "refuse"
    WARN = "warn"


@dataclass(frozen=True)
class Case:
    """One action in one situation, as rules judge it.

    `step` is what would be run; None when a window only asks whether the action makes sense. `batch` names all
    snapshots that the same plan deletes, `safety` the safety snapshot taken before a revert. `wants_memory` says that
    the user asked for the RAM, `before_safety` that a safety snapshot will come first, and the layers in use be kept.
    `obsolete` are files that the plan removes later, and that nobody needs any more at this step; `deleting` are all
    snapshots that it deletes, asked for or not. `places` are directories that the user named for new files.
    `takes_back` says that a revert is undone by this.
    """

    situation: Situation
    facts: Facts
    action: Action
    name: str | None = None
    step: Step | None = None
    batch: tuple[str, ...] = ()
    safety: str | None = None
    wants_memory: bool = False
    before_safety: bool = False
    obsolete: frozenset[str] = frozenset()
    deleting: frozenset[str] = frozenset()
    places: tuple[str, ...] = ()
    takes_back: bool = False

    @property
    def tree(self) -> SnapshotTree:
        """The machine's snapshots."""
        return self.situation.tree

    @property
    def layers(self) -> DomainLayers:
        """The machine's images."""
        return self.situation.layers

    @cached_property
    def snapshot(self) -> Snapshot | None:
        """The snapshot reverted to or deleted; None when taking one."""
        if self.name is None or self.action is Action.TAKE:
            return None
        return self.tree.snapshots.get(self.name)

    @property
    def current(self) -> Snapshot | None:
        """The current snapshot."""
        return None if self.tree.current is None else self.tree[self.tree.current]

    @property
    def is_active(self) -> bool:
        """Whether QEMU runs for this machine now."""
        return self.situation.domain.state.is_active

    @property
    def take(self) -> TakeSnapshot | None:
        """The step, if it takes a snapshot."""
        return self.step if isinstance(self.step, TakeSnapshot) else None

    @property
    def new_name(self) -> str | None:
        """The name that the step gives to a snapshot."""
        match self.step:
            case TakeSnapshot(name=name) | RenameSnapshot(new_name=name):
                return name
        return None

    @property
    def new_note(self) -> str:
        """What the step writes down about a snapshot; empty if nothing."""
        match self.step:
            case TakeSnapshot(description=note):
                return note
            case DescribeSnapshot(after=after, changed=changed) if "note" in changed:
                return after.note
        return ""

    @property
    def takes_external(self) -> bool:
        """Whether the step freezes a layer of any disk."""
        return self.take is not None and DiskSnapshot.EXTERNAL in self.take.disks.values()

    @property
    def takes_internal(self) -> bool:
        """Whether the step takes a snapshot inside the images."""
        return self.take is not None and DiskSnapshot.INTERNAL in self.take.disks.values()

    @cached_property
    def external(self) -> Snapshot | None:
        """The snapshot reverted to or deleted, if it is external."""
        return self.snapshot if self.snapshot is not None and is_external(self.snapshot) else None

    @cached_property
    def internal(self) -> Snapshot | None:
        """The snapshot reverted to or deleted, if it is internal."""
        return self.snapshot if self.snapshot is not None and not is_external(self.snapshot) else None

    @property
    def state_after(self) -> StateAfter:
        """In what state a revert ends."""
        if isinstance(self.step, RevertToSnapshot | ForkAtSnapshot):
            return self.step.state_after
        return StateAfter.AS_CAPTURED

    @property
    def forks(self) -> bool:
        """Whether this reverts by SnapTree's own steps, because libvirt itself can't to an external snapshot."""
        host = self.situation.host
        return (
            self.action is Action.REVERT
            and self.external is not None
            and not host.external_snapshots
            and host.libvirt_version < LIBVIRT_9_9
        )

    @cached_property
    def merge(self) -> MergeLayers | None:
        """The step, if it merges layers by a job of our own."""
        return self.step if isinstance(self.step, MergeLayers) else None

    @property
    def look(self) -> MakeLook | None:
        """The step, if it makes a machine to look at a snapshot."""
        return self.step if isinstance(self.step, MakeLook) else None

    @property
    def is_by_libvirt(self) -> bool:
        """Whether libvirt deletes the snapshot, and not we, piece by piece. So it is as long as nobody has planned."""
        return self.step is None or isinstance(self.step, DeleteSnapshot)

    @cached_property
    def effect(self) -> DeleteEffect:
        """What libvirt's own deleting does to files; nothing for other actions."""
        if self.action is not Action.DELETE or self.snapshot is None or not self.is_by_libvirt:
            return DeleteEffect()
        return self.facts.delete_effect(self.snapshot)

    @cached_property
    def unlinks(self) -> tuple[str, ...]:
        """Images that libvirt would unlink."""
        if self.action is Action.REVERT:
            if self.external is None or self.before_safety or self.forks:
                return ()
            return self.facts.unlinked_by_external_revert
        return (*(merge.overlay for merge in self.effect.merges), *self.effect.removes)

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """Images whose content, as others read it, libvirt would change."""
        if self.action is Action.REVERT and self.internal is not None:
            return tuple(self.facts.key(path) for path in internal_images(self.internal))
        return tuple(merge.into for merge in self.effect.merges)


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition under which an action is refused or warned about. Data: listed, printed and tested one by one.

    `reason` says what is so and why it matters, `remedy` what to do; both name what `condition` found.
    `since` is the first libvirt version it holds for, `until` the first for which it holds no more.
    `source` is how we know.
    """

    id: str
    actions: frozenset[Action]
    verdict: Verdict
    condition: Callable[[Case], Evidence | None]
    reason: str
    remedy: str
    source: str
    needs: Known = Known.EVERYTHING
    since: int = 0
    until: int | None = None
    drivers: frozenset[str] = frozenset({QEMU})
    has_choice: frozenset[Action] = frozenset()
    """Actions whose preview offers a way out: for these the window does not grey the button."""
    mended_by_safety_snapshot: bool = False
    """Taking a safety snapshot first removes the cause."""
    another_way: str = ""
    """What SnapTree does instead of libvirt's own delete, where this forbids that; empty if there is no other way."""

    def applies_to(self, action: Action, host: Host, known: Known, *, before_safety: bool = False) -> bool:
        """Whether this rule is about such an action on such a host at all, and enough is known to judge."""
        return (
            action in self.actions
            and not (before_safety and self.mended_by_safety_snapshot)
            and known >= self.needs
            and (not self.drivers or host.driver in self.drivers)
            and host.libvirt_version >= self.since
            and (self.until is None or host.libvirt_version < self.until)
        )

    def forbids(self, action: Action, *, by_libvirt: bool) -> bool:
        """Whether the action can't be done if this rule has something to say: in one step of libvirt's, or of ours."""
        if self.verdict is not Verdict.REFUSE:
            return False
        # Of libvirt's own delete, it may be that only this way of deleting is closed.
        return by_libvirt or action is not Action.DELETE or not self.another_way

    def judge(self, case: Case) -> Finding | None:
        """The finding, if the rule has something to say. It has to apply to such a case."""
        evidence = self.condition(case)
        return None if evidence is None else self.say(case, evidence)

    def say(self, case: Case, evidence: Evidence) -> Finding:
        """The finding in words, for planners that found out themselves."""
        words = {**_always_known(case), **evidence}
        return Finding(self.id, self.reason.format_map(words), self.remedy.format_map(words))


def _always_known(case: Case) -> dict[str, str]:
    return {
        "vm": plain(case.situation.domain.name),
        "vm_arg": shell_word(case.situation.domain.name),
        "libvirt": version(case.situation.host.libvirt_version),
        "snapshot": quoted(case.name or ""),
        "snapshot_arg": shell_word(case.name or ""),
        "driver": plain(case.situation.host.driver),
    }


def action_of(step: Step) -> Action:
    """What a step does, as rules are asked about it."""
    match step:
        case TakeSnapshot() | FreezeFileSystems() | ThawFileSystems():
            return Action.TAKE
        case RevertToSnapshot() | StopMachine() | DropManagedSave() | ForkAtSnapshot():
            return Action.REVERT
        case ForgetMemory():
            return Action.DROP_MEMORY
        case DescribeSnapshot():
            return Action.DESCRIBE
        case RenameSnapshot():
            return Action.RENAME
        case DeleteSnapshot() | EndOrphanedMerge() | MergeLayers() | RecordLayers() | RemoveLeftover():
            return Action.DELETE
        case CopyOut() | MakeLook() | StartLook():
            return Action.LOOK
        case RemoveLook():
            return Action.UNLOOK


def actions(*which: Action) -> frozenset[Action]:
    """The actions that a rule is about."""
    return frozenset(which)


def by_the_planner(_case: Case) -> Evidence | None:
    """The condition of a rule that nobody finds by looking at one step: the planner says it."""
    return None


def first(evidence: Iterable[Evidence]) -> Evidence | None:
    """The first finding, if there is any."""
    return next(iter(evidence), None)
