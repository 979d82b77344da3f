"""Plans as text: the sentence of each step, the JSON that scripts read, and the lossless record of the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeVar

from snaptree.model.estate import Consistency, DiskSnapshot, Mark, MemorySnapshot, Remarks
from snaptree.model.figures import Confidence, Figure
from snaptree.model.settings import SettingChange
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    Finding,
    Forecast,
    ForgetMemory,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    Layer,
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
    Undo,
)
from snaptree.plans.wording import files_named, listed, plain, quoted, snapshots_named

RECORD_VERSION = 1

_Value = TypeVar("_Value")

_KINDS: Mapping[type[Step], str] = MappingProxyType(
    {
        FreezeFileSystems: "freeze",
        TakeSnapshot: "take",
        ThawFileSystems: "thaw",
        RevertToSnapshot: "revert",
        StopMachine: "stop",
        DropManagedSave: "drop-managed-save",
        ForkAtSnapshot: "fork",
        DeleteSnapshot: "delete",
        EndOrphanedMerge: "end-orphaned-merge",
        MergeLayers: "merge-layers",
        RecordLayers: "record-layers",
        ForgetMemory: "forget-memory",
        RemoveLeftover: "remove-leftover",
        DescribeSnapshot: "describe",
        RenameSnapshot: "rename",
        CopyOut: "copy-out",
        MakeLook: "make-look",
        StartLook: "start-look",
        RemoveLook: "remove-look",
    }
)

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


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The document of `--json`: integers are bytes and seconds, null is what nobody can say (DESIGN, section 7)."""
    forecast = plan.forecast
    return {
        "action": plan.action.value,
        "domain": plan.domain,
        "snapshots": list(plan.snapshots),
        "steps": [_step_to_record(step) | {"says": describe_step(step)} for step in plan.steps],
        "forecast": {
            "copies": forecast.copies.bytes,
            "frees": forecast.frees.bytes,
            "peak_extra": forecast.peak_extra.bytes,
            "seconds": forecast.seconds,
            "pause_seconds": forecast.pause_seconds,
            "likely_extra": forecast.likely_extra,
            "growth_per_day": forecast.growth,
            "free": forecast.free,
            "confidence": {
                "copies": forecast.copies.confidence.value,
                "frees": forecast.frees.confidence.value,
                "peak_extra": forecast.peak_extra.confidence.value,
            },
        },
        "warnings": [{"rule": warning.rule, "reason": warning.reason} for warning in plan.warnings],
        "refusals": [
            {"rule": refusal.rule, "reason": refusal.reason, "remedy": refusal.remedy} for refusal in plan.refusals
        ],
        "settings": [asdict(change) for change in plan.settings],
        "undo": plan.undo is not None,
    }


def plan_to_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values from which `plan_from_record` makes an equal one."""
    return {
        "version": RECORD_VERSION,
        "action": plan.action.value,
        "host_uri": plan.host_uri,
        "domain_uuid": plan.domain_uuid,
        "domain": plan.domain,
        "snapshots": list(plan.snapshots),
        "steps": [_step_to_record(step) for step in plan.steps],
        "forecast": asdict(plan.forecast),
        "warnings": [asdict(finding) for finding in plan.warnings],
        "refusals": [asdict(finding) for finding in plan.refusals],
        "undo": None if plan.undo is None else _undo_to_record(plan.undo),
        "expected_chains": {target: list(layers) for target, layers in plan.expected_chains.items()},
        "settings": [asdict(change) for change in plan.settings],
        "recovers": plan.recovers,
        "group": plan.group,
        "schedule": plan.schedule,
    }


def plan_from_record(record: Mapping[str, Any]) -> Plan:
    """The plan that `plan_to_record` wrote down. Raises ValueError, KeyError or TypeError for anything else."""
    if record["version"] != RECORD_VERSION:
        raise ValueError(f"a plan recorded in version {record['version']}, not {RECORD_VERSION}")
    forecast = record["forecast"]
    undo = record["undo"]
    return Plan(
        action=Action(record["action"]),
        host_uri=record["host_uri"],
        domain_uuid=record["domain_uuid"],
        domain=record["domain"],
        snapshots=tuple(record["snapshots"]),
        steps=tuple(_step_from_record(step) for step in record["steps"]),
        forecast=Forecast(
            copies=_figure(forecast["copies"]),
            frees=_figure(forecast["frees"]),
            peak_extra=_figure(forecast["peak_extra"]),
            seconds=forecast["seconds"],
            pause_seconds=forecast["pause_seconds"],
            likely_extra=forecast.get("likely_extra"),
            growth=forecast.get("growth"),
            free=forecast.get("free"),
        ),
        warnings=tuple(Finding(**finding) for finding in record["warnings"]),
        refusals=tuple(Finding(**finding) for finding in record["refusals"]),
        undo=None if undo is None else _undo_from_record(undo),
        expected_chains=MappingProxyType(
            {target: tuple(layers) for target, layers in record["expected_chains"].items()}
        ),
        settings=tuple(SettingChange(**change) for change in record.get("settings", ())),  # first journals: none
        recovers=record.get("recovers"),  # plans recorded by the first journals have none
        group=record.get("group", ""),
        schedule=record.get("schedule", ""),
    )


def _undo_to_record(undo: Undo) -> dict[str, Any]:
    return {
        "text": undo.text,
        "revert_to": undo.revert_to,
        "delete": list(undo.delete),
        "describe": [_step_to_record(step) for step in undo.describe],
        "rename": None if undo.rename is None else list(undo.rename),
        "removes": undo.removes,
    }


def _undo_from_record(record: Mapping[str, Any]) -> Undo:
    rename = record.get("rename")  # undos recorded by the first journals have neither this
    return Undo(
        record["text"],
        record["revert_to"],
        tuple(record["delete"]),
        tuple(_describe_from_record(step) for step in record.get("describe", ())),  # nor this
        None if rename is None else (rename[0], rename[1]),
        record.get("removes"),  # nor this
    )


def _figure(record: Mapping[str, Any]) -> Figure:
    return Figure(record["bytes"], Confidence(record["confidence"]), record["how"])


def _step_to_record(step: Step) -> dict[str, Any]:
    kind = {"kind": _KINDS[type(step)]}
    match step:
        case TakeSnapshot():
            return kind | {
                "name": step.name,
                "description": step.description,
                "memory": step.memory.value,
                "memory_file": step.memory_file,
                "disks": {target: how.value for target, how in step.disks.items()},
                "overlays": dict(step.overlays),
                "quiesce": step.quiesce.value,
                "consistency": step.consistency.value,
                "expected_current": step.expected_current,
                "safety": step.safety,
                "memory_bytes": step.memory_bytes,
                "live": step.live,
                "group": step.group,
                "schedule": step.schedule,
            }
        case FreezeFileSystems():
            return kind | {"required": step.required, "seconds": step.seconds}
        case RevertToSnapshot():
            return kind | {
                "name": step.name,
                "state_after": step.state_after.value,
                "expected_current": step.expected_current,
                "memory_bytes": step.memory_bytes,
                "is_internal": step.is_internal,
            }
        case StopMachine() | DropManagedSave() | ThawFileSystems():
            return kind
        case ForkAtSnapshot():
            return kind | {
                "name": step.name,
                "state_after": step.state_after.value,
                "bases": {target: asdict(layer) for target, layer in step.bases.items()},
                "overlays": dict(step.overlays),
                "owns_overlays": step.owns_overlays,
                "memory_file": step.memory_file,
                "expected_current": step.expected_current,
                "memory_bytes": step.memory_bytes,
            }
        case DeleteSnapshot():
            return kind | {
                "name": step.name,
                "expected_children": list(step.expected_children),
                "merges": step.merges,
            }
        case EndOrphanedMerge():
            return kind | {"targets": list(step.targets)}
        case MergeLayers():
            return kind | {
                "target": step.target,
                "way": step.way.value,
                "layers": list(step.layers),
                "stack": [asdict(layer) for layer in step.stack],
                "is_live": step.is_live,
            }
        case RecordLayers():
            return kind | {
                "moved": {path: asdict(layer) for path, layer in step.moved.items()},
                "removed": list(step.removed),
                "parents": dict(step.parents),
                "overlays": {name: dict(overlays) for name, overlays in step.overlays.items()},
                "revert_overlays": {name: dict(overlays) for name, overlays in step.revert_overlays.items()},
                "forgotten": list(step.forgotten),
            }
        case ForgetMemory():
            return kind | {"name": step.name, "stand_in": step.stand_in, "memory_file": step.memory_file}
        case RemoveLeftover():
            return kind | {"path": step.path, "why": step.why}
        case DescribeSnapshot():
            return kind | {"name": step.name, "before": asdict(step.before), "after": asdict(step.after)}
        case RenameSnapshot():
            return kind | {
                "name": step.name,
                "new_name": step.new_name,
                "parent": step.parent,
                "children": list(step.children),
                "revert_overlays": {name: dict(overlays) for name, overlays in step.revert_overlays.items()},
            }
        case CopyOut():
            return kind | {
                "snapshot": step.snapshot,
                "target": step.target,
                "source": asdict(step.source),
                "base": None if step.base is None else asdict(step.base),
                "path": step.path,
                "copies": step.copies,
            }
        case MakeLook():
            return kind | {
                "snapshot": step.snapshot,
                "machine": step.machine,
                "uuid": step.uuid,
                "disks": dict(step.disks),
                "bases": {target: asdict(layer) for target, layer in step.bases.items()},
                "connect_networks": step.connect_networks,
                "nvram": step.nvram,
            }
        case StartLook():
            return kind | {"machine": step.machine, "uuid": step.uuid}
        case RemoveLook():
            return kind | {"files": list(step.files)}


def _step_from_record(record: Mapping[str, Any]) -> Step:
    match record["kind"]:
        case "take":
            return TakeSnapshot(
                name=record["name"],
                description=record["description"],
                memory=MemorySnapshot(record["memory"]),
                memory_file=record["memory_file"],
                disks=MappingProxyType({target: DiskSnapshot(how) for target, how in record["disks"].items()}),
                overlays=MappingProxyType(dict(record["overlays"])),
                quiesce=_freeze(record["quiesce"]),
                consistency=Consistency(record["consistency"]),
                expected_current=record["expected_current"],
                safety=record["safety"],
                memory_bytes=record.get("memory_bytes", 0),
                live=record.get("live", False),
                group=record.get("group", ""),
                schedule=record.get("schedule", ""),
            )
        case "freeze":
            return FreezeFileSystems(record["required"], record["seconds"])
        case "thaw":
            return ThawFileSystems()
        case "revert":
            return RevertToSnapshot(
                record["name"],
                StateAfter(record["state_after"]),
                record["expected_current"],
                record.get("memory_bytes", 0),
                record.get("is_internal", False),
            )
        case "stop":
            return StopMachine()
        case "drop-managed-save":
            return DropManagedSave()
        case "fork":
            return ForkAtSnapshot(
                name=record["name"],
                state_after=StateAfter(record["state_after"]),
                bases=_frozen({target: Layer(**layer) for target, layer in record["bases"].items()}),
                overlays=_frozen(record["overlays"]),
                owns_overlays=record["owns_overlays"],
                memory_file=record["memory_file"],
                expected_current=record["expected_current"],
                memory_bytes=record["memory_bytes"],
            )
        case "delete":
            return DeleteSnapshot(record["name"], tuple(record["expected_children"]), record["merges"])
        case "end-orphaned-merge":
            return EndOrphanedMerge(tuple(record["targets"]))
        case "merge-layers":
            return MergeLayers(
                target=record["target"],
                way=MergeWay(record["way"]),
                layers=tuple(record["layers"]),
                stack=tuple(Layer(**layer) for layer in record["stack"]),
                is_live=record["is_live"],
            )
        case "record-layers":
            return RecordLayers(
                moved=_frozen({path: Layer(**layer) for path, layer in record["moved"].items()}),
                removed=tuple(record["removed"]),
                parents=_frozen(record["parents"]),
                overlays=_frozen_twice(record["overlays"]),
                revert_overlays=_frozen_twice(record["revert_overlays"]),
                forgotten=tuple(record["forgotten"]),
            )
        case "forget-memory":
            return ForgetMemory(record["name"], record["stand_in"], record["memory_file"])
        case "remove-leftover":
            return RemoveLeftover(record["path"], record["why"])
        case "describe":
            return _describe_from_record(record)
        case "rename":
            return RenameSnapshot(
                name=record["name"],
                new_name=record["new_name"],
                parent=record["parent"],
                children=tuple(record["children"]),
                revert_overlays=_frozen_twice(record["revert_overlays"]),
            )
        case "copy-out":
            return CopyOut(
                snapshot=record["snapshot"],
                target=record["target"],
                source=Layer(**record["source"]),
                base=None if record["base"] is None else Layer(**record["base"]),
                path=record["path"],
                copies=record["copies"],
            )
        case "make-look":
            return MakeLook(
                snapshot=record["snapshot"],
                machine=record["machine"],
                uuid=record["uuid"],
                disks=_frozen(record["disks"]),
                bases=_frozen({target: Layer(**layer) for target, layer in record["bases"].items()}),
                connect_networks=record["connect_networks"],
                nvram=record["nvram"],
            )
        case "start-look":
            return StartLook(record["machine"], record["uuid"])
        case "remove-look":
            return RemoveLook(tuple(record["files"]))
        case kind:
            raise ValueError(f"a step of an unknown kind: {kind}")


def _freeze(record: str | bool) -> Freeze:
    """What was asked for; at first plans said yes or no."""
    if isinstance(record, bool):
        return Freeze.REQUIRED if record else Freeze.NO
    return Freeze(record)


def _frozen(mapping: Mapping[str, _Value]) -> Mapping[str, _Value]:
    return MappingProxyType(dict(mapping))


def _frozen_twice(mapping: Mapping[str, Mapping[str, _Value]]) -> Mapping[str, Mapping[str, _Value]]:
    return _frozen({key: _frozen(values) for key, values in mapping.items()})


def _describe_from_record(record: Mapping[str, Any]) -> DescribeSnapshot:
    return DescribeSnapshot(record["name"], _remarks(record["before"]), _remarks(record["after"]))


def _remarks(record: Mapping[str, Any]) -> Remarks:
    marks = _mark(record["pinned"]), _mark(record["known_good"])
    return Remarks(record["note"], *marks, record.get("half_deleted", False))


def _mark(record: Mapping[str, Any] | None) -> Mark | None:
    return None if record is None else Mark(record["by"], record["at"])
