"""Plans: what would happen, as one frozen value that window and terminal show and the runner carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType

from snaptree.model.estate import Consistency, DiskSnapshot, MemorySnapshot, Remarks
from snaptree.model.figures import Figure, unknown
from snaptree.model.merging import MergeWay as MergeWay
from snaptree.model.settings import SettingChange


class Action(StrEnum):
    """What the user asked for; the values stand in JSON and in the journal."""

    TAKE = "take"
    REVERT = "revert"
    DELETE = "delete"
    PRUNE = "prune"
    """Delete what a policy lets go."""
    DROP_MEMORY = "drop-memory"
    DESCRIBE = "describe"
    """Its note and its marks."""
    RENAME = "rename"
    LOOK = "look"
    UNLOOK = "unlook"
    UNDO = "undo"
    FINISH = "finish"
    """What an interrupted operation had left to do."""
    LEAVE = "leave"
    """Nothing: an interrupted operation is left as it is."""


class StateAfter(StrEnum):
    """The state a revert ends in."""

    AS_CAPTURED = "as-captured"
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Freeze(StrEnum):
    """Whether the guest agent freezes the file systems while the disks are taken; the values stand in the journal."""

    NO = "no"
    IF_POSSIBLE = "if-possible"
    """Where they can't be frozen, the disks are taken as they are: crash-consistent."""
    REQUIRED = "required"


FREEZE_SECONDS = 10.0
"""How long file systems are frozen at most. Windows gives its own up after ten seconds, too (VSS)."""


@dataclass(frozen=True, slots=True)
class FreezeFileSystems:
    """Let the guest agent freeze all file systems, for `seconds` at most: after that they are thawed in any case."""

    required: bool
    """Without them nothing is taken."""
    seconds: float = FREEZE_SECONDS


@dataclass(frozen=True, slots=True)
class ThawFileSystems:
    """Let the guest agent thaw the file systems; whether they were frozen until then is noted with the snapshot."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take one snapshot. `disks` maps each disk's target to how it is held; `overlays` to the file that takes over."""

    name: str
    description: str
    memory: MemorySnapshot
    memory_file: str | None
    disks: Mapping[str, DiskSnapshot]
    overlays: Mapping[str, str]
    quiesce: Freeze
    """What was asked for: the steps before and after this one do it."""
    consistency: Consistency
    """What is expected. What came of it is noted with the snapshot."""
    expected_current: str | None
    """The current snapshot when the plan was made: the new one's parent."""
    safety: bool = False
    memory_bytes: int = 0
    """RAM that is saved, nominally; 0 where none is. How long that takes depends on it."""
    live: bool = False
    """The guest runs on while its RAM is saved, but for a moment at the end."""
    group: str = ""
    """The group that it belongs to; empty for one by itself."""
    schedule: str = ""
    """The schedule that takes it; empty for a person."""


@dataclass(frozen=True, slots=True)
class RevertToSnapshot:
    """Make the machine what it was at a snapshot. What is in use now and in no snapshot is lost."""

    name: str
    state_after: StateAfter
    expected_current: str | None
    memory_bytes: int = 0
    """RAM that is loaded, nominally; 0 where none is."""
    is_internal: bool = False
    """It lies inside the images: QEMU copies it within them."""


@dataclass(frozen=True, slots=True)
class StopMachine:
    """End the machine's QEMU at once, like pulling the plug. What the next step needs is looked for before."""


@dataclass(frozen=True, slots=True)
class DropManagedSave:
    """Throw away the memory that a managed save put aside. It is lost for good."""


@dataclass(frozen=True, slots=True)
class DeleteSnapshot:
    """Let libvirt delete one snapshot, merging its layer where it has one.

    `expected_children` are those at planning time; a stranger among them at run time stops the plan.
    `merges` says that data is copied, so that a progress bar is worth drawing.
    """

    name: str
    expected_children: tuple[str, ...]
    merges: bool


@dataclass(frozen=True, slots=True)
class ForgetMemory:
    """Let libvirt take a snapshot for one of the disks only. Its memory file is not touched, but named no more.

    libvirt does not let a snapshot change from one with memory to one without. So it is recorded anew, without, under
    the name of a stand-in, which takes its place in the tree; and once more under its own name. At any moment libvirt
    has one of the two on record.
    """

    name: str
    stand_in: str
    memory_file: str


@dataclass(frozen=True, slots=True)
class RemoveLeftover:
    """Remove a file that a delete leaves behind, once nothing refers to it any more."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class EndOrphanedMerge:
    """Stop the merge that nobody finishes, and end the paused QEMU that libvirt had started for it.

    That is what a daemon leaves behind that dies while it deletes a snapshot of a machine that is off.
    """

    targets: tuple[str, ...]
    """The disks that it merged."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A file of a stack, and the format by which QEMU has to open it."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class ForkAtSnapshot:
    """Go back to an external snapshot by SnapTree's own steps, where libvirt has no such revert (before 9.9).

    The machine, which is off, gets the snapshot's definition, on new layers over those that the snapshot froze. What
    the machine stood on is left as it is.
    """

    name: str
    state_after: StateAfter
    bases: Mapping[str, Layer]
    """Disk -> the layer that its new one stands on."""
    overlays: Mapping[str, str]
    """Disk -> the file of its new layer."""
    owns_overlays: bool
    """The snapshot has no children, so libvirt is told that the new layers are those that took over from it."""
    memory_file: str | None
    expected_current: str | None
    memory_bytes: int = 0
    """RAM that is loaded, nominally; 0 where none is."""


@dataclass(frozen=True, slots=True)
class MergeLayers:
    """Make one layer of several that stand on each other, by a block job of our own: to be stopped and slowed down.

    The merged one shows what the top one of them showed. Until the others are removed, they still show the same, but
    for those below the top one after a commit: whoever stands on these would see its data.
    """

    target: str
    """The machine's disk."""
    way: MergeWay
    layers: tuple[str, ...]
    """From the top down, two or more."""
    stack: tuple[Layer, ...]
    """What QEMU opens, from the top down to the bottom: `layers` in it, and what is above and below."""
    is_live: bool
    """The machine's own QEMU does it; else that of a paused helper, which opens `stack` as its disk."""

    @property
    def merged(self) -> str:
        """The file that holds all of it afterwards."""
        return self.layers[0] if self.way is MergeWay.PULL else self.layers[-1]

    @property
    def goes_over(self) -> bool:
        """Whether the disk itself is committed: at the end it goes over to the layer below (QEMU's pivot)."""
        return self.way is MergeWay.COMMIT and self.layers[0] == self.stack[0].path

    @property
    def stack_after(self) -> tuple[Layer, ...]:
        """The stack once it is merged."""
        gone = set(self.layers) - {self.merged}
        return tuple(layer for layer in self.stack if layer.path not in gone)


@dataclass(frozen=True, slots=True)
class RecordLayers:
    """Let libvirt know what merges did: where content lies now, who descends from whom, which snapshots are no more.

    Nothing but libvirt's records changes, and doing it twice does nothing more.
    """

    moved: Mapping[str, Layer]
    """File -> the layer that shows by now what it showed, for the machine's disks and its snapshots alike."""
    removed: tuple[str, ...]
    """Files that go next: nothing may name them any more."""
    parents: Mapping[str, str | None]
    """Snapshot -> its parent from now on, for those whose parent is forgotten."""
    overlays: Mapping[str, Mapping[str, str]]
    """Snapshot -> disk -> the layer that took over from it, where that is another one now."""
    revert_overlays: Mapping[str, Mapping[str, str]]
    """Snapshot -> disk -> the layer in use since it was reverted to; of those named here, all that there are."""
    forgotten: tuple[str, ...]
    """Snapshots whose content is gone, children before parents."""


@dataclass(frozen=True, slots=True)
class DescribeSnapshot:
    """Say something else about a snapshot. Of its note and marks only what differs in `before` and `after` changes."""

    name: str
    before: Remarks
    """What was said when this was planned."""
    after: Remarks

    @property
    def changed(self) -> tuple[str, ...]:
        """The fields of `Remarks` that it changes."""
        every = (field.name for field in fields(Remarks))
        return tuple(name for name in every if getattr(self.before, name) != getattr(self.after, name))

    def disputed(self, said: Remarks) -> tuple[str, ...]:
        """Those of them which somebody else has changed, given what is said now."""
        return tuple(
            name
            for name in self.changed
            if getattr(said, name) not in (getattr(self.before, name), getattr(self.after, name))
        )

    def applied_to(self, said: Remarks) -> Remarks:
        """What is said after it, if this was said before it."""
        return replace(said, **{name: getattr(self.after, name) for name in self.changed})

    @property
    def turned_round(self) -> DescribeSnapshot:
        """The step that takes this one back."""
        return DescribeSnapshot(self.name, self.after, self.before)


@dataclass(frozen=True, slots=True)
class RenameSnapshot:
    """Give an external snapshot another name: libvirt learns of it under the new one, then forgets the old one."""

    name: str
    new_name: str
    parent: str | None
    children: tuple[str, ...]
    revert_overlays: Mapping[str, Mapping[str, str]]
    """Snapshot -> disk -> the layer in use since it was reverted to: of this one, by its new name, and of its parent.
    libvirt may drop them meanwhile."""

    @property
    def records(self) -> RecordLayers:
        """What libvirt shall have on record once it knows the new name."""
        return RecordLayers(
            moved=MappingProxyType({}),
            removed=(),
            parents=MappingProxyType(dict.fromkeys(self.children, self.new_name)),
            overlays=MappingProxyType({}),
            revert_overlays=self.revert_overlays,
            forgotten=(self.name,),
        )


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Copy what an internal snapshot holds of a disk into an image of its own. Where it lies is only read."""

    snapshot: str
    target: str
    source: Layer
    base: Layer | None
    """What the source stands on; the copy will, too."""
    path: str
    copies: int | None = None
    """Bytes, if that is known."""


@dataclass(frozen=True, slots=True)
class MakeLook:
    """Define a machine that shows a snapshot's disks and is marked as doing so. It writes to files of its own."""

    snapshot: str
    machine: str
    uuid: str
    disks: Mapping[str, str]
    """Disk -> the file that it writes to."""
    bases: Mapping[str, Layer]
    """Disk -> the layer that a new one stands on. Disks without are copies, which are there by then."""
    connect_networks: bool
    nvram: str | None
    """The copy of the machine's UEFI variables. None: it has none, or they are made anew from the firmware's."""


@dataclass(frozen=True, slots=True)
class StartLook:
    """Start the machine that was made."""

    machine: str
    uuid: str


@dataclass(frozen=True, slots=True)
class RemoveLook:
    """Remove the machine itself, which is off and was made to look at a snapshot: its files, then its definition."""

    files: tuple[str, ...]
    """Its own, each before what it stands on."""


Step = (
    FreezeFileSystems
    | TakeSnapshot
    | ThawFileSystems
    | RevertToSnapshot
    | StopMachine
    | DropManagedSave
    | ForkAtSnapshot
    | DeleteSnapshot
    | EndOrphanedMerge
    | MergeLayers
    | RecordLayers
    | ForgetMemory
    | RemoveLeftover
    | DescribeSnapshot
    | RenameSnapshot
    | CopyOut
    | MakeLook
    | StartLook
    | RemoveLook
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that spoke: a refusal if the plan can't run because of it, otherwise a warning."""

    rule: str
    """The rule's stable id, as in JSON, documentation and tests."""
    reason: str
    remedy: str = ""

    @property
    def says_finality(self) -> bool:
        """Whether it says that this can't be undone."""
        return "can't be undone" in self.reason


_NOT_FORECAST = unknown("not forecast yet")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan will cost. Bytes on the host; seconds; None or unknown where nobody can say."""

    copies: Figure = _NOT_FORECAST
    frees: Figure = _NOT_FORECAST
    peak_extra: Figure = _NOT_FORECAST
    seconds: float | None = None
    pause_seconds: float | None = None
    likely_extra: int | None = None
    """Of `peak_extra`, going by what the like took on this machine before; None where there was none."""
    growth: int | None = None
    """Bytes that the machine's disks grow by each day afterwards, as they did of late. Only of takes."""
    free: int | None = None
    """Bytes free where it goes, where that is least. Only of takes."""

    def at(self, limit: int | None) -> Forecast:
        """The same where no more than so many bytes are copied per second; None for as many as can be."""
        if limit is None or not self.copies.bytes:
            return self
        return replace(self, seconds=max(self.seconds or 0.0, self.copies.bytes / limit))


@dataclass(frozen=True, slots=True)
class Undo:
    """How a finished plan is taken back: revert to `revert_to`, delete what was taken for it, say what was said.

    Or remove the machine that it made: `removes` is that one's UUID.
    """

    text: str
    revert_to: str | None = None
    delete: tuple[str, ...] = ()
    describe: tuple[DescribeSnapshot, ...] = ()
    """What was said before and since, to be said as before again. What others changed since is left alone."""
    rename: tuple[str, str] | None = None
    """The name that a snapshot has since, and the one it had before."""
    removes: str | None = None

    @property
    def loses_something(self) -> bool:
        """Whether what it deletes is gone for good, and nothing that was goes back in its place."""
        return bool(self.delete) and self.revert_to is None


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, or refusals and no steps; with forecast and warnings. Carries what the runner re-checks."""

    action: Action
    host_uri: str
    domain_uuid: str
    domain: str
    snapshots: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    forecast: Forecast = Forecast()
    warnings: tuple[Finding, ...] = ()
    refusals: tuple[Finding, ...] = ()
    undo: Undo | None = None
    expected_chains: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Layers of each disk (target -> paths, active first) when the plan was made."""
    settings: tuple[SettingChange, ...] = ()
    """What of the machine's settings a revert changes back, from what is set now."""
    recovers: int | None = None
    """The journal's number of the interrupted operation that this one finishes or leaves. Each of its steps asks first
    whether it is done already."""
    group: str = ""
    """What it has in common with the plans for other machines that it is run together with; empty for one by itself."""
    schedule: str = ""
    """The schedule that runs it; empty for a person."""

    @property
    def is_refused(self) -> bool:
        """Whether a rule forbids running this."""
        return bool(self.refusals)

    @property
    def only_describes(self) -> bool:
        """Whether nothing but what is said about snapshots changes: by it, or by what it takes back."""
        return self.action in (Action.DESCRIBE, Action.RENAME, Action.UNDO) and all(
            isinstance(step, DescribeSnapshot | RenameSnapshot) for step in self.steps
        )

    @property
    def asks_first(self) -> bool:
        """Whether somebody has to agree to it. What is said about a snapshot is taken back as easily as it was said."""
        return not self.only_describes or (self.action is Action.RENAME and self.undo is None)

    @property
    def loses_present_state(self) -> bool:
        """Whether a warning says that what the machine did last is gone for good."""
        return any(warning.rule == "present-state-is-lost" for warning in self.warnings)

    @property
    def warns_of_finality(self) -> bool:
        """Whether a warning says already that this can't be undone."""
        return any(warning.says_finality for warning in self.warnings)
