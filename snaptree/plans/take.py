"""Planning to take a snapshot."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from dataclasses import replace
from types import MappingProxyType

from snaptree.model.costs import domain_costs
from snaptree.model.estate import Consistency, DiskSnapshot, DomainState, MemorySnapshot
from snaptree.model.figures import NOTHING, Confidence, Figure, total
from snaptree.model.growth import growth_of
from snaptree.plans import rules
from snaptree.plans.describe import clean_note
from snaptree.plans.draft import Draft
from snaptree.plans.facts import Facts, is_external, is_part_of_memory, takes_writes
from snaptree.plans.intention import Capture, Take, places_of, plain_path
from snaptree.plans.naming import (
    DEFAULT_TEMPLATE,
    SAFETY_TEMPLATE,
    NameFields,
    is_template,
    memory_path,
    overlay_path,
    suggest_name,
)
from snaptree.plans.plan import (
    Action,
    DeleteSnapshot,
    Forecast,
    Freeze,
    FreezeFileSystems,
    Plan,
    TakeSnapshot,
    ThawFileSystems,
    Undo,
)
from snaptree.plans.rule import QEMU, Case, Evidence, found
from snaptree.plans.rules_plan import ANOTHER_KIND, NO_UNDO_OF_TAKE
from snaptree.plans.rules_take import EMPTY_OVERLAY_BYTES
from snaptree.plans.situation import Situation
from snaptree.plans.wording import plain, quoted


def plan_take(intention: Take, situation: Situation) -> Plan:
    """Plan one snapshot; deleting it again is the undo, where libvirt could do that."""
    draft = Draft(Action.TAKE, situation)
    step, instead_of = _choose(intention, situation)
    if instead_of is not None:
        draft.warn(ANOTHER_KIND.say(draft.case(step), instead_of))
    if step.consistency is Consistency.FILESYSTEM:
        draft.add_unjudged(FreezeFileSystems(required=step.quiesce is Freeze.REQUIRED))
    wants_memory = intention.capture is Capture.DISKS_AND_MEMORY
    draft.add(draft.case(step, wants_memory=wants_memory, places=places_of(intention)))
    if step.consistency is Consistency.FILESYSTEM:
        draft.add_unjudged(ThawFileSystems())
    undo = None
    if not draft.is_refused:
        delete = draft.case(DeleteSnapshot(step.name, (), merges=bool(step.overlays)), batch=(step.name,))
        if problems := rules.refusals(delete):
            draft.warn(NO_UNDO_OF_TAKE.say(delete, {"problem": problems[0].reason}))
        else:
            undo = Undo(
                f"Delete {quoted(step.name)} again; {plain(situation.domain.name)} keeps what it did since.",
                delete=(step.name,),
            )
    plan = replace(draft.plan((step.name,), forecast_take(step, situation), undo), schedule=intention.schedule)
    return plan if plan.is_refused else replace(plan, forecast=_with_surroundings(plan.forecast, step, situation))


def _with_surroundings(forecast: Forecast, step: TakeSnapshot, situation: Situation) -> Forecast:
    """Add the room that there is, how much of it goes each day, and what a guest that runs on makes of the time."""
    costs = domain_costs(situation.tree, situation.layers)
    growth = growth_of(situation.tree, costs, situation.now)
    images = [disk.path for disk in situation.disks if step.disks.get(disk.target) is DiskSnapshot.INTERNAL]
    files = [*step.overlays.values(), step.memory_file, *images]
    free = [situation.free_bytes.get(posixpath.dirname(file)) for file in files if file]
    seconds, speed = forecast.seconds, situation.speed
    if step.live and situation.dirty_rate is not None and speed.saving_rate is not None:
        seconds = speed.seconds_while_written(step, forecast.likely_extra, situation.dirty_rate)
    return replace(
        forecast,
        seconds=seconds,
        growth=None if growth is None else growth.bytes_per_day,
        free=None if not free or None in free else min(each for each in free if each is not None),
    )


def take_step(intention: Take, situation: Situation) -> TakeSnapshot:
    """The step that fits an intention: kind, name, and every new file named.

    Best is the first of these that no rule refuses:

    - the kind of the current snapshot. An external one on an internal one can neither be deleted nor the internal one
      reverted to, and an internal one keeps the external one below it from being merged: mixed trees are traps;
    - with no current snapshot, internal, unless someone else stands on the active layer: internal ones can be
      reverted to on every libvirt and deleted in any order, and no chain of layers grows;
    - the other kind.

    The RAM is saved whenever there is any: only then does a revert give the machine back as it was.
    """
    return _choose(intention, situation)[0]


def _choose(intention: Take, situation: Situation) -> tuple[TakeSnapshot, Evidence | None]:
    """The step; and if it is of another kind than the current snapshot, what is so and why."""
    if intention.capture is not Capture.BEST:
        return _step(intention, situation, intention.capture), None
    facts = Facts(situation)
    external = Capture.DISKS_AND_MEMORY if situation.domain.state.is_active else Capture.DISKS
    if intention.quiesce is not Freeze.NO:
        external = Capture.DISKS
    order = [external, Capture.INTERNAL]
    if _prefers_internal(intention, situation, facts):
        order.reverse()
    steps = [_step(intention, situation, capture) for capture in order]
    usual, other = (Case(situation, facts, Action.TAKE, step.name, step, places=places_of(intention)) for step in steps)
    if not (problems := rules.refusals(usual)) or rules.refusals(other):
        return steps[0], None
    if situation.tree.current is None:
        return steps[1], None
    kinds = {True: "inside the images", False: "on new layers"}
    kind, refused = kinds[other.takes_internal], kinds[usual.takes_internal]
    return steps[1], found(kind=kind, refused=refused, problem=problems[0].reason)


def _prefers_internal(intention: Take, situation: Situation, facts: Facts) -> bool:
    if situation.host.driver != QEMU:
        return True
    if intention.quiesce is not Freeze.NO or intention.live or intention.excluded_disks or places_of(intention):
        return False
    current = situation.tree.current
    if current is not None:
        return not is_external(situation.tree[current])
    if facts.has_external:
        return False
    return not any(facts.others_above(layer) or facts.dependants.get(layer) for layer in facts.active)


def _step(intention: Take, situation: Situation, capture: Capture) -> TakeSnapshot:
    is_active = situation.domain.state.is_active
    how = DiskSnapshot.INTERNAL if capture is Capture.INTERNAL else DiskSnapshot.EXTERNAL
    held = [disk for disk in situation.disks if takes_writes(disk) and disk.target not in intention.excluded_disks]
    if how is DiskSnapshot.EXTERNAL:
        # libvirt would give a floppy a layer too; nobody wants that.
        held = [disk for disk in held if disk.device != "floppy"]
    saves_memory = is_active and capture in (Capture.INTERNAL, Capture.DISKS_AND_MEMORY)
    snapshot_names = tuple(situation.tree.snapshots)
    places = {disk.target: disk.path for disk in held if disk.path} if how is DiskSnapshot.EXTERNAL else {}

    layers_in, memory_in = plain_path(intention.layers_in), plain_path(intention.memory_in)

    frozen = {
        target: {disk.frozen for each in situation.tree for disk in each.disks if disk.target == target and disk.frozen}
        for target in places
    }

    def overlays_named(name: str, layers: Collection[str] = ()) -> dict[str, str]:
        return _apart(
            {
                target: overlay_path(path, name, snapshot_names, layers_in, frozen=frozen[target], layers=layers)
                for target, path in places.items()
            }
        )

    def is_free(name: str) -> bool:
        paths = overlays_named(name).values()
        memory = {memory_path(path, memory_in) for path in paths}
        return situation.existing_files.isdisjoint({*paths, *memory})

    template = intention.name or (SAFETY_TEMPLATE if intention.safety else DEFAULT_TEMPLATE)
    name = intention.name
    if is_template(template):
        kind = _word_for(intention, how, saves_memory=saves_memory)
        fields = NameFields(situation.domain.name, situation.now, situation.user, kind)
        name = suggest_name(template, fields, situation.tree.snapshots.keys(), is_free)
    overlays = overlays_named(name, situation.layers.images)
    memory = MemorySnapshot.NO
    if saves_memory:
        memory = MemorySnapshot.INTERNAL if how is DiskSnapshot.INTERNAL else MemorySnapshot.EXTERNAL
    has_memory_file = memory is MemorySnapshot.EXTERNAL and bool(overlays)
    hows = {disk.target: how if disk in held else DiskSnapshot.NO for disk in situation.disks}
    hows |= dict.fromkeys(intention.excluded_disks, DiskSnapshot.NO)
    return TakeSnapshot(
        name=name,
        description=clean_note(intention.description),
        memory=memory,
        memory_file=memory_path(next(iter(overlays.values())), memory_in) if has_memory_file else None,
        disks=MappingProxyType(hows),
        overlays=MappingProxyType(overlays),
        quiesce=intention.quiesce,
        consistency=_consistency(situation, intention, saves_memory=saves_memory),
        expected_current=situation.tree.current,
        safety=intention.safety,
        memory_bytes=situation.memory_bytes if saves_memory else 0,
        live=intention.live,
        group=intention.group,
        schedule=intention.schedule,
    )


def _word_for(intention: Take, how: DiskSnapshot, *, saves_memory: bool) -> str:
    """What a template's {kind} becomes."""
    if how is DiskSnapshot.INTERNAL:
        return "internal"
    if saves_memory:
        return "live" if intention.live else "memory"
    return "frozen" if intention.quiesce is Freeze.REQUIRED else "disks"  # what may not be frozen is not called so


def _apart(overlays: dict[str, str]) -> dict[str, str]:
    """Disks whose files differ in suffix or directory only may get overlays that differ by the disk's name."""
    paths = list(overlays.values())
    return {
        target: path if paths.count(path) == 1 else f"{path}.{posixpath.basename(target)}"
        for target, path in overlays.items()
    }


def _consistency(situation: Situation, intention: Take, *, saves_memory: bool) -> Consistency:
    if saves_memory:
        # A guest that goes on with a disk of another time damages it: of use are the disks that were held.
        left_out = any(disk.target in intention.excluded_disks for disk in situation.disks if is_part_of_memory(disk))
        return Consistency.CRASH if left_out else Consistency.MEMORY
    quiesce = intention.quiesce
    if not situation.domain.state.is_active:
        return Consistency.OFFLINE
    if quiesce is not Freeze.NO and situation.domain.state is DomainState.RUNNING and situation.has_agent:
        return Consistency.FILESYSTEM
    return Consistency.CRASH


def empty_layer() -> Figure:
    """What a new layer takes."""
    return Figure(EMPTY_OVERLAY_BYTES, Confidence.UPPER_BOUND, "an empty layer")


def forecast_take(step: TakeSnapshot, situation: Situation) -> Forecast:
    """Nothing is copied or freed; new layers and the RAM take room."""
    extra = [empty_layer() for _ in step.overlays]
    if step.live:
        layers = sum(layer.bytes or 0 for layer in extra)
        again = "all of the machine's RAM, and once more what the guest changes meanwhile"
        extra = [Figure(layers + situation.memory_bytes, Confidence.LIVE, again)]
    elif step.memory is not MemorySnapshot.NO:
        extra.append(
            Figure(situation.memory_bytes, Confidence.UPPER_BOUND, "all of the machine's RAM; less where it is empty")
        )
    likely = situation.speed.writes(step, situation.domain.uuid)
    return Forecast(copies=NOTHING, frees=NOTHING, peak_extra=total(extra), likely_extra=likely)
