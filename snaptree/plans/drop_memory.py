"""Planning to give up the saved memory of a snapshot, and keep the rest of it."""

from __future__ import annotations

from snaptree.model.figures import NOTHING, Figure, unknown
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import memory_file_of
from snaptree.plans.intention import DropMemory
from snaptree.plans.naming import free_name
from snaptree.plans.plan import Action, Forecast, ForgetMemory, Plan, RemoveLeftover
from snaptree.plans.situation import Situation
from snaptree.plans.speed import A_MOMENT
from snaptree.plans.wording import quoted

_STAND_IN = "without-memory"


def plan_drop_memory(intention: DropMemory, situation: Situation) -> Plan:
    """Plan to let a snapshot hold the disks only. There is no undo. Raises VanishedError if it is gone."""
    snapshot = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.DROP_MEMORY, situation)
    file = memory_file_of(snapshot) or ""
    stand_in = free_name(_STAND_IN, lambda name: name not in situation.tree)
    draft.add(draft.case(ForgetMemory(snapshot.name, stand_in, file)))
    frees: Figure = NOTHING
    if file not in situation.missing_files:
        draft.add_unjudged(RemoveLeftover(file, f"the saved memory of {quoted(snapshot.name)}"))
        frees = situation.layers.memory_files.get(file, unknown("the memory file was not looked at"))
    return draft.plan(
        (snapshot.name,), Forecast(NOTHING, frees, NOTHING, seconds=2 * A_MOMENT, pause_seconds=0.0), None
    )
