"""Plans in words: the sentence of each step, and the heading of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from snaptree.model.estate import Consistency, MemorySnapshot
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
    MergeWay,
    Plan,
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
from snaptree.plans.wording import files_named, listed, plain, quoted, snapshots_named

_MOST_STEPS: Final = 4
"""Steps that stand in a sentence."""
_STATES_AFTER = {
    StateAfter.AS_CAPTURED: "",
    StateAfter.RUNNING: " and let the machine run",
    StateAfter.PAUSED: " and leave the machine paused",
    StateAfter.OFF: " and leave the machine off",
}


def describe_step(step: Step) -> str:
    """One step in words, for previews, progress and the journal."""
    match step:
        case FreezeFileSystems():
            can = "" if step.required else ", if it can"
            return f"Let the guest agent freeze the file systems{can}, for {step.seconds:g} seconds at most"
        case ThawFileSystems():
            return "Let the guest agent thaw the file systems"
        case TakeSnapshot():
            what = "safety snapshot" if step.safety else "snapshot"
            return f"Take the {what} {quoted(step.name)} ({_how_taken(step)})"
        case RevertToSnapshot():
            return f"Revert to {quoted(step.name)}{_STATES_AFTER[step.state_after]}"
        case StopMachine():
            return "Turn the machine off at once, like pulling the plug"
        case DropManagedSave():
            return "Throw away the memory that the managed save put aside"
        case ForkAtSnapshot():
            overlays = files_named(step.overlays.values())
            return f"Revert to {quoted(step.name)} on new layers ({overlays}){_STATES_AFTER[step.state_after]}"
        case DeleteSnapshot():
            return f"Delete {quoted(step.name)}" + (" and merge its layer" if step.merges else "")
        case EndOrphanedMerge():
            disks = listed(plain(target) for target in step.targets)
            return f"Stop the merge of disk {disks} that nobody finishes, and end the paused QEMU left behind"
        case MergeLayers():
            return _describe_merge(step)
        case RecordLayers():
            forget = f", and forget {snapshots_named(reversed(step.forgotten))}" if step.forgotten else ""
            return f"Record in libvirt where the layers are now{forget}"
        case ForgetMemory():
            return f"Record in libvirt that {quoted(step.name)} holds the disks only"
        case RemoveLeftover():
            return f"Remove {plain(step.path)}: {plain(step.why)}"
        case DescribeSnapshot():
            return describe_remarks(step, quoted(step.name))
        case RenameSnapshot():
            return f"Rename {quoted(step.name)} to {quoted(step.new_name)}"
        case CopyOut():
            return f"Copy {quoted(step.snapshot)} out of {plain(step.source.path)} into {plain(step.path)}"
        case MakeLook():
            new = [path for target, path in step.disks.items() if target in step.bases]
            on_layers = f" on new layers ({files_named(new)})" if new else ""
            return f"Make the machine {quoted(step.machine)} with the disks of {quoted(step.snapshot)}{on_layers}"
        case StartLook():
            return f"Start {quoted(step.machine)}"
        case RemoveLook():
            files = f" and its files ({files_named(step.files)})" if step.files else ""
            return f"Remove the machine{files}"


def steps_in_words(steps: Iterable[Step]) -> list[tuple[str, str]]:
    """Steps in words, each with its number: `3.`; `4–9.` where files go one after the other for one reason."""
    lines = []
    for _, group in groupby(enumerate(steps, start=1), key=_kept_apart):
        numbers, together = zip(*group, strict=True)
        if len(together) == 1:
            lines.append((f"{numbers[0]}.", describe_step(together[0])))
            continue
        paths = [step.path for step in together if isinstance(step, RemoveLeftover)]
        why = next(step.why for step in together if isinstance(step, RemoveLeftover))
        lines.append((f"{numbers[0]}–{numbers[-1]}.", f"Remove {files_named(paths)}: {plain(why)}"))
    return lines


def steps_in_brief(steps: Iterable[Step]) -> str:
    """Steps in words, one after the other; of many the first, and how many there are besides."""
    steps = tuple(steps)
    if len(lines := steps_in_words(steps)) <= _MOST_STEPS:
        return "; ".join(text for _, text in lines)
    first = [describe_step(step) for step in steps[: _MOST_STEPS - 1]]
    return "; ".join([*first, f"and {len(steps) - len(first):,} more steps"])


def _kept_apart(numbered: tuple[int, Step]) -> object:
    number, step = numbered
    return step.why if isinstance(step, RemoveLeftover) else number


def what_is_said(plan: Plan, names: str) -> str:
    """What a plan says otherwise of snapshots, as a heading."""
    step = next((step for step in plan.steps if isinstance(step, DescribeSnapshot)), None)
    return f"Describe {names}" if step is None else describe_remarks(step, names)


def describe_remarks(step: DescribeSnapshot, names: str) -> str:
    """What a step says otherwise, of it and of others like it: “Pin “a” and mark “a” as known good”."""
    said = listed(phrase.format(names=names) for phrase in _phrases(step))
    return f"{said[:1].upper()}{said[1:]}" or f"Leave what is said about {names} as it is"


def _phrases(step: DescribeSnapshot) -> Iterator[str]:
    before, after = step.before, step.after
    if before.pinned != after.pinned:
        yield "unpin {names}" if after.pinned is None else "pin {names}"
    if before.known_good != after.known_good:
        yield "take the mark “known good” off {names}" if after.known_good is None else "mark {names} as known good"
    if before.half_deleted != after.half_deleted:
        yield "mark {names} as half deleted" if after.half_deleted else "take the mark “half deleted” off {names}"
    if before.doubtful != after.doubtful:
        yield "mark {names} as doubtful" if after.doubtful else "take the mark “doubtful” off {names}"
    if before.note != after.note:
        yield (
            "change the note of {names}"
            if after.note and before.note
            else ("write a note on {names}" if after.note else "remove the note of {names}")
        )


def describe_plan(plan: Plan, *, machine: str = "", named: Callable[[str], str] = plain) -> str:
    """What a plan does, as a heading: `Delete “a” and “b”`, with its machine `Delete “a” and “b” of web-01`.

    What a schedule runs names it. `named` makes the names of snapshots fit for where they are shown.
    """
    by = f" (schedule “{named(plan.schedule)}”)" if plan.schedule else ""
    return f"{_what_it_does(plan, machine, named)}{by}"


def _what_it_does(plan: Plan, machine: str, named: Callable[[str], str]) -> str:
    names = listed(f"“{named(name)}”" for name in plan.snapshots) or "a snapshot"
    of, on = (f" of {machine}", f" on {machine}") if machine else ("", "")
    match plan.action:
        case Action.TAKE:
            return f"Take {names}{of}"
        case Action.REVERT:
            return f"Revert {machine} to {names}" if machine else f"Revert to {names}"
        case Action.DELETE:
            return f"Delete {names}{of}"
        case Action.PRUNE:
            count = len(plan.snapshots)
            if not count and machine:
                return f"Prune {machine}"
            return f"Prune {count:,} {'snapshot' if count == 1 else 'snapshots'}{of}"
        case Action.DROP_MEMORY:
            return f"Drop the memory of {names}{of}"
        case Action.DESCRIBE:
            return f"{what_is_said(plan, names)}{of}"
        case Action.RENAME:
            return f"{describe_step(plan.steps[0]) if plan.steps else f'Rename {names}'}{of}"
        case Action.LOOK:
            return f"Look at {names}{of}"
        case Action.UNLOOK:
            return f"Remove {machine or 'the machine'}"
        case Action.UNDO:
            return f"Undo{on}"
        case Action.FINISH:
            return f"Finish what was interrupted{on}"
        case Action.LEAVE:
            return f"Leave what was interrupted{on}"


def _describe_merge(step: MergeLayers) -> str:
    others = [path for path in step.layers if path != step.merged]
    direction = "down" if step.way is MergeWay.COMMIT else "up"
    where = "" if step.is_live else ", in a paused helper machine"
    return f"Merge {files_named(others)} {direction} into {plain(step.merged)} (disk {plain(step.target)}{where})"


def _how_taken(step: TakeSnapshot) -> str:
    where = "new layer" if step.overlays else "inside the image"
    match step.consistency:
        case Consistency.MEMORY:
            what = "disks and memory, while the guest runs on" if step.live else "disks and memory"
        case Consistency.FILESYSTEM:
            what = "disks only, file systems frozen"
        case Consistency.CRASH if step.memory is not MemorySnapshot.NO:
            what = "memory, without all disks that it belongs to"
        case Consistency.CRASH:
            what = "disks only, as after a power cut"
        case _:
            what = "disks"
    return f"{what}, {where}"
