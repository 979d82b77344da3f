"""Planning what becomes of an operation that was interrupted: it is finished, or left as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import NOTHING
from snaptree.plans import rules
from snaptree.plans.delete import add_deletions
from snaptree.plans.draft import Draft
from snaptree.plans.intention import Recover
from snaptree.plans.merge import layer_tree_of
from snaptree.plans.naming import part_of
from snaptree.plans.operation import Operation, StepFound, StepState, half_deleted
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    EndOrphanedMerge,
    Finding,
    Forecast,
    ForgetMemory,
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
    Step,
    TakeSnapshot,
)
from snaptree.plans.plan_words import describe_step, steps_in_brief
from snaptree.plans.rule import Case, action_of
from snaptree.plans.rules_plan import CANNOT_FINISH, FINISHED_ALREADY, GROUP_IS_TORN, HALF_DONE, LEFT_UNDONE
from snaptree.plans.situation import Situation
from snaptree.plans.step_costs import StepCosts
from snaptree.plans.wording import files_named, plain, quoted

_ITS_OWN_TRACES = frozenset(
    {
        "block-job-running",
        "block-job-while-paused",
        "orphaned-delete-job",
        "finish-interrupted-delete",
        "merged-layer-has-overlays",
    }
)
"""Rules that speak of what an interrupted delete or merge left behind itself."""
_JUDGED = (
    TakeSnapshot
    | RevertToSnapshot
    | DeleteSnapshot
    | MergeLayers
    | ForgetMemory
    | DescribeSnapshot
    | RenameSnapshot
    | MakeLook
)
"""Steps that rules have something to say about, also where others come before them."""
_NOT_LOOKED_AT = StepFound(StepState.NOT_BEGUN)


def plan_recovery(intention: Recover, situation: Situation) -> Plan:
    """Plan to finish what was interrupted, or to leave it as it is. Raises SnapTreeError if nothing was.

    `situation.found` says how far the first step is that is not known to be done; none after it has begun.
    """
    operation = situation.unfinished
    if operation is None:
        raise SnapTreeError(
            f"Nothing that was done to {plain(situation.domain.name)} was interrupted.",
            hint="See 'snaptree history' for what was done.",
        )
    if intention.leave:
        plan = _leave(operation, situation)
    elif situation.group_is_torn and not _holds_what_nobody_recorded(operation, situation):
        plan = _take_back_torn(operation, situation)
    else:
        plan = replace(_finish(operation, situation), group=operation.plan.group)
    # The chains are those that its steps left behind, half-way perhaps: each step looks for itself.
    return replace(plan, recovers=operation.id, expected_chains=MappingProxyType({}))


def is_torn(plan: Plan, steps_begun: int, steps_done: int) -> bool:
    """Whether layers were merged, or may be, of which libvirt was not told yet; or copies made for no machine yet.

    A pull that was cut short has changed nothing that anybody sees. A commit has begun to overwrite what is deleted.
    """
    unrecorded: list[Step] = []
    for step in plan.steps[:steps_done]:
        unrecorded = [] if isinstance(step, RecordLayers) else [*unrecorded, step]
    merged = any(isinstance(step, MergeLayers) for step in unrecorded) or any(
        isinstance(step, MergeLayers) and step.way is MergeWay.COMMIT for step in plan.steps[steps_done:steps_begun]
    )
    copied = any(isinstance(step, CopyOut) for step in plan.steps[:steps_done])
    rest = plan.steps[steps_done:]
    return (merged and any(isinstance(step, RecordLayers) for step in rest)) or (
        copied and any(isinstance(step, MakeLook) for step in rest)
    )


# Finishing


def _finish(operation: Operation, situation: Situation) -> Plan:
    plan, done = operation.plan, operation.steps_done
    found = situation.found or _NOT_LOOKED_AT
    situation = replace(situation, unfinished=None, found=None)
    if found.state is StepState.HALF_WAY and isinstance(half_done := plan.steps[done], TakeSnapshot):
        situation = _before_taking(situation, half_done)
    draft = Draft(Action.FINISH, situation)
    costs = StepCosts(layer_tree_of(draft.start))
    ready = list(plan.steps[:done])
    if found.state is not StepState.DONE and ready and isinstance(ready[-1], FreezeFileSystems):
        draft.add_unjudged(ready.pop())  # whatever was frozen is thawed by now
    for number, step in enumerate(plan.steps[done:], start=done):
        state = found.state if number == done else StepState.NOT_BEGUN
        before = draft.situation
        left: tuple[Step, ...] = (step,)
        if state is StepState.CHANGED:
            draft.refuse(CANNOT_FINISH.say(_case(draft, step), {"problem": found.says}))
        elif state is StepState.DONE:
            # It stays in the plan: what is there is checked, and noted where that is missing.
            ready.append(step)
            draft.add_done(step)
            left = ()
        elif state is StepState.HALF_WAY:
            draft.warn(_half_done(draft, step, found))
            if found.orphans:
                draft.add_unjudged(EndOrphanedMerge(found.orphans))
            if found.instead:
                left = found.instead
                for instead in found.instead:
                    draft.add_unjudged(instead)
            else:
                _add_half_done(draft, step, plan)
        elif isinstance(step, _JUDGED):
            draft.add(_judged(draft, step, plan))
        else:
            draft.add_unjudged(step)
        if draft.is_refused:
            break
        for each in left:
            costs.add(each, before, draft.situation)
    if ready:
        draft.warn(FINISHED_ALREADY.say(_case(draft, ready[0]), {"steps": steps_in_brief(ready)}))
    if situation.group_is_torn:
        draft.warn(_torn(draft, _take_of(plan), "Delete it afterwards, if it is of no use by itself."))
    return draft.plan(plan.snapshots, costs.forecast(situation.speed), plan.undo)


def _before_taking(situation: Situation, step: TakeSnapshot) -> Situation:
    """As it was before the disks were switched to the layers of a step that goes on from there."""
    layers, overlays = situation.layers, step.overlays
    below = {
        chain.target: chain.layers[1]
        for chain in layers.chains
        if len(chain.layers) > 1 and chain.active == overlays.get(chain.target)
    }
    chains = [replace(chain, layers=chain.layers[1:]) if chain.target in below else chain for chain in layers.chains]
    disks = [
        replace(disk, path=(path := below[disk.target]), format=layers.images[path].format)
        if disk.target in below
        else disk
        for disk in situation.disks
    ]
    return replace(
        situation,
        layers=replace(layers, chains=tuple(chains)),
        disks=tuple(disks),
        existing_files=situation.existing_files - {*overlays.values()},
    )


def _half_done(draft: Draft, step: Step, found: StepFound) -> Finding:
    return HALF_DONE.say(
        _case(draft, step), {"step": describe_step(step), "problem": found.says, "remedy": "It is completed."}
    )


def _judged(draft: Draft, step: Step, plan: Plan) -> Case:
    """The case as it was when the plan was made, in the situation of now."""
    removed = {each.path for each in plan.steps if isinstance(each, RemoveLeftover)}
    deleted = {each.name for each in plan.steps if isinstance(each, DeleteSnapshot)}
    forgotten = {name for each in plan.steps if isinstance(each, RecordLayers) for name in each.forgotten}
    return draft.case(
        step,
        batch=plan.snapshots if plan.action in (Action.DELETE, Action.PRUNE) else (),
        safety=_safety(plan),
        obsolete=frozenset(removed),
        deleting=frozenset(deleted | forgotten),
    )


def _add_half_done(draft: Draft, step: Step, plan: Plan) -> None:
    """Add a step that goes on, if nothing but its own traces is in the way."""
    if isinstance(step, DeleteSnapshot | MergeLayers):
        problems = rules.refusals(_judged(draft, step, plan))
        draft.refuse(*(problem for problem in problems if problem.rule not in _ITS_OWN_TRACES))
    if not draft.is_refused:
        draft.add_unjudged(step)


def _safety(plan: Plan) -> str | None:
    return next((step.name for step in plan.steps if isinstance(step, TakeSnapshot) and step.safety), None)


# What was to be taken of several machines, and was not of all of them


def _take_of(plan: Plan) -> TakeSnapshot:
    return next(step for step in plan.steps if isinstance(step, TakeSnapshot))


def _holds_what_nobody_recorded(operation: Operation, situation: Situation) -> bool:
    """Whether disks write to the layers of a snapshot that libvirt does not list: that is recorded first."""
    step = _take_of(operation.plan)
    is_in_use = any(chain.active in step.overlays.values() for chain in situation.layers.chains)
    return is_in_use and step.name not in situation.tree


def _take_back_torn(operation: Operation, situation: Situation) -> Plan:
    """Delete what was taken of this machine, or remove what taking it left: all or none."""
    plan, found = operation.plan, situation.found or _NOT_LOOKED_AT
    step = _take_of(plan)
    taken = plan.steps.index(step) < operation.steps_done or found.state is StepState.DONE
    draft = Draft(Action.FINISH, replace(situation, unfinished=None, found=None))
    forecast = Forecast(NOTHING, NOTHING, NOTHING, 0.0)
    if taken and step.name in situation.tree:
        draft.warn(_torn(draft, step, "So it is deleted again. Leave it as it is to keep it."))
        forecast = add_deletions(draft, (step.name,))
        return draft.plan(plan.snapshots, forecast, None)
    draft.warn(_torn(draft, step, "Of this machine nothing was."))
    if found.state is StepState.HALF_WAY:
        made = {*step.overlays.values(), step.memory_file}
        for path in sorted(situation.existing_files & made):
            draft.add_unjudged(RemoveLeftover(path, "what was interrupted left it behind"))
    return draft.plan(plan.snapshots, forecast, None)


def _torn(draft: Draft, step: TakeSnapshot, remedy: str) -> Finding:
    return GROUP_IS_TORN.say(_case(draft, step), {"name": quoted(step.name), "remedy": remedy})


# Leaving


def _leave(operation: Operation, situation: Situation) -> Plan:
    plan, done = operation.plan, operation.steps_done
    found = situation.found or _NOT_LOOKED_AT
    draft = Draft(Action.LEAVE, replace(situation, unfinished=None, found=None))
    ready, rest = list(plan.steps[:done]), list(plan.steps[done:])
    if rest and found.state is StepState.DONE:
        ready.append(rest.pop(0))
    if ready:
        draft.warn(FINISHED_ALREADY.say(_case(draft, ready[0]), {"steps": steps_in_brief(ready)}))
    is_merged = any(isinstance(step, MergeLayers) for step in ready)
    if rest and found.state in (StepState.HALF_WAY, StepState.CHANGED):
        step = rest.pop(0)
        words = {"step": describe_step(step), "problem": found.says, "remedy": _if_left(step, is_merged)}
        draft.warn(HALF_DONE.say(_case(draft, step), words))
    if rest:
        remedy = _if_left_undone(rest, is_merged)
        draft.warn(LEFT_UNDONE.say(_case(draft, rest[0]), {"steps": steps_in_brief(rest), "remedy": remedy}))
    draft.add_unjudged(*_marks_of_mixtures(operation, situation))
    return draft.plan(plan.snapshots, Forecast(NOTHING, NOTHING, NOTHING, 0.0), None)


def _marks_of_mixtures(operation: Operation, situation: Situation) -> Iterator[DescribeSnapshot]:
    """Steps by which everybody learns what is of no use any more. Of its own deletes libvirt has marks itself."""
    if not any(isinstance(step, MergeLayers) for step in operation.plan.steps[: operation.steps_begun]):
        return
    for name in half_deleted(operation):
        if (snapshot := situation.tree.snapshots.get(name)) is not None and not snapshot.annotations.half_deleted:
            yield DescribeSnapshot(name, snapshot.remarks, replace(snapshot.remarks, half_deleted=True))


def _if_left(step: Step, is_merged: bool) -> str:
    """What it means to leave a step half done. `is_merged`: there are merges of which libvirt does not know yet."""
    match step:
        case TakeSnapshot():
            files = [plain(path) for path in (*step.overlays.values(), step.memory_file) if path is not None]
            return f"Look at {' and '.join(files)} before you go on." if files else ""
        case CopyOut():
            return f"What was copied so far can be removed: {plain(part_of(step.path))}."
        case MakeLook():
            return f"Nothing needs the files that were made for it: {files_named(step.disks.values())}."
        case RemoveLook():
            return "Some of its files are gone, so it is of no use any more: remove it."
        case DeleteSnapshot():
            return (
                f"{quoted(step.name)} may be damaged: do not revert to it. All other snapshots are what they were;"
                " deleting it again completes it."
            )
        case ForgetMemory():
            return f"{quoted(step.name)} may be listed as {quoted(step.stand_in)}; its disks are what they were."
        case EndOrphanedMerge():
            return "Do not resume the machine: its QEMU was started for the merge only."
        case MergeLayers(way=MergeWay.PULL):
            return f"All snapshots show what they showed; {plain(step.merged)} may take more room than before."
        case MergeLayers():
            others = "" if is_merged else " All other snapshots are what they were."
            return (
                f"What is to be deleted may be overwritten in part on disk {plain(step.target)}: it is of no use any"
                f" more.{others}"
            )
        case RenameSnapshot():
            return (
                f"libvirt may list both {quoted(step.name)} and {quoted(step.new_name)}, which hold the same. To rename"
                " it once more finishes that; until then virsh must delete neither."
            )
        case _:
            return _if_left_undone([step], is_merged)


def _if_left_undone(steps: Sequence[Step], is_merged: bool) -> str:
    """What it means to leave steps undone; files that stay are told of together."""
    said = [_step_left_undone(step, is_merged) for step in steps]
    if paths := [step.path for step in steps if isinstance(step, RemoveLeftover)]:
        verb, them = ("stays", "it") if len(paths) == 1 else ("stay", "them")
        said.append(f"{files_named(paths)} {verb}, though nothing needs {them}.")
    return " ".join(dict.fromkeys(filter(None, said)))


def _step_left_undone(step: Step, is_merged: bool) -> str:
    match step:
        case RecordLayers() if is_merged:
            return "libvirt still takes the content of merged layers to be where it was: do not revert to snapshots."
        case MakeLook(disks=disks, bases=bases) if copies := [disks[target] for target in disks if target not in bases]:
            return f"What was copied for it stays, though nothing needs it: {files_named(copies)}."
        case RemoveLook():
            return "The machine stays, and can be removed later."
        case _:
            return ""


# Words


def _case(draft: Draft, step: Step) -> Case:
    return Case(draft.situation, draft.facts, action_of(step), getattr(step, "name", None), step)
