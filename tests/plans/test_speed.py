"""How long a merge is said to take, from how long others took."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import Consistency, Impact, MemorySnapshot
from snaptree.model.figures import exact, unknown
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import (
    Action,
    Forecast,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    Layer,
    MergeLayers,
    MergeWay,
    Plan,
    RecordLayers,
    RevertToSnapshot,
    StateAfter,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.speed import Speed, measured

MIB = 1 << 20


def done(
    copies: int | None,
    seconds: float,
    *,
    snapshots: int = 1,
    action: Action = Action.DELETE,
    state: OperationState = OperationState.DONE,
) -> Operation:
    figure = unknown("nobody knows") if copies is None else exact(copies)
    names = tuple(f"s{number}" for number in range(snapshots))
    plan = Plan(action, "test:///", "uuid", "vm", names, forecast=Forecast(copies=figure))
    return Operation(1, plan, state, started=1000.0, finished=1000.0 + seconds)


def test_nothing_is_said_without_experience() -> None:
    assert measured([]).seconds(1, exact(MIB)) is None
    assert measured([done(MIB, 0.3)]).seconds(1, exact(100 * MIB)) is None
    assert measured([done(MIB, 0.3)]).seconds(1, unknown("not read yet")) is None
    assert Speed(0.3, 1e6).seconds(0, exact(0)) is None


def test_other_operations_teach_nothing() -> None:
    others = [
        done(MIB, 50, action=Action.TAKE),
        done(MIB, 50, state=OperationState.FAILED),
        done(MIB, 50, state=OperationState.CANCELLED),
        done(None, 50),
    ]
    assert measured(others) == Speed()


def test_small_merges_take_a_time_each_and_large_ones_by_their_bytes() -> None:
    speed = measured([done(0, 0.5), done(MIB, 1.5, snapshots=3), done(200 * MIB, 2.5)])
    assert speed.seconds(4, exact(2 * MIB)) == pytest.approx(2.0)
    assert speed.seconds(1, exact(400 * MIB)) == pytest.approx(4.5)
    assert speed.seconds(10, exact(400 * MIB)) == pytest.approx(9.0)


@given(st.lists(st.tuples(st.integers(0, 1 << 45), st.floats(0, 1e6), st.integers(1, 500))), st.integers(0, 1 << 45))
def test_a_forecast_is_never_negative_nor_endless(history: list[tuple[int, float, int]], copies: int) -> None:
    speed = measured(done(number, seconds, snapshots=count) for number, seconds, count in history)
    seconds = speed.seconds(3, exact(copies))
    assert seconds is None or 0 < seconds < 1e15


def after(step: Step, seconds: float, state: OperationState = OperationState.DONE) -> Operation:
    plan = Plan(Action.REVERT, "test:///", "uuid", "vm", ("a",), steps=(StopMachine(), step))
    return Operation(1, plan, state, started=1000.0, finished=1002.0, step_seconds=(0.1, seconds))


def revert(memory: int = 0, *, is_internal: bool = False) -> RevertToSnapshot:
    return RevertToSnapshot("a", StateAfter.AS_CAPTURED, None, memory, is_internal)


def fork(memory: int = 0) -> ForkAtSnapshot:
    return ForkAtSnapshot("a", StateAfter.AS_CAPTURED, {}, {}, True, None, None, memory)


def test_reverts_teach_about_their_own_kind_only() -> None:
    speed = measured([after(revert(), 2.0), after(revert(is_internal=True), 5.0), after(fork(MIB), 7.0)])
    assert speed.seconds_of([revert()]) == pytest.approx(2.0)
    assert speed.seconds_of([revert(is_internal=True)]) == pytest.approx(5.0)
    assert speed.seconds_of([fork(MIB)]) == pytest.approx(7.0)
    assert speed.seconds_of([fork()]) is None, "without memory it is another thing"
    assert speed.seconds_of([revert(), fork()]) is None, "half known is not known"


def test_more_memory_takes_longer_and_less_not_much_shorter() -> None:
    speed = measured([after(revert(100 * MIB), 3.0), after(revert(100 * MIB), 3.0, OperationState.FAILED)])
    assert speed.seconds_of([revert(300 * MIB)]) == pytest.approx(9.0)
    assert speed.seconds_of([revert(10 * MIB)]) == pytest.approx(3.0)


def test_a_step_that_was_cut_short_teaches_nothing() -> None:
    assert measured([after(revert(), 2.0, OperationState.FAILED)]).seconds_of([revert()]) is None
    assert measured([replace(after(revert(), 2.0), step_seconds=(0.1,))]).seconds_of([revert()]) is None


def take(memory: int = 0, *, live: bool = False) -> TakeSnapshot:
    held = MemorySnapshot.EXTERNAL if memory else MemorySnapshot.NO
    overlays = {"vda": "/vm/a"}
    return TakeSnapshot("a", "", held, None, {}, overlays, Freeze.NO, Consistency.CRASH, None, False, memory, live)


def taken(step: TakeSnapshot, paused: float | None, wrote: int | None, uuid: str = "uuid") -> Operation:
    """A take of two seconds."""
    plan = Plan(Action.TAKE, "test:///", uuid, "vm", ("a",), steps=(step,))
    impact = Impact(2.0, paused=paused, wrote=wrote)
    return Operation(1, plan, OperationState.DONE, 1000.0, 1002.0, step_seconds=(2.0,), impact=impact)


def test_a_measured_pause_counts_and_not_the_time_that_the_step_took() -> None:
    speed = measured([taken(take(100 * MIB), 1.5, 30 * MIB), taken(take(100 * MIB, live=True), 0.1, 40 * MIB)])
    assert speed.pause_of([take(200 * MIB)]) == pytest.approx(3.0)
    assert speed.pause_of([take(200 * MIB, live=True)]) == pytest.approx(0.1), "most was saved while it ran on"
    assert speed.pause_of([FreezeFileSystems(required=True), take(), ThawFileSystems()]) == 0
    unmeasured = measured([taken(take(100 * MIB), None, None), taken(take(100 * MIB, live=True), None, None)])
    assert unmeasured.pause_of([take(100 * MIB)]) == pytest.approx(2.0)
    assert unmeasured.pause_of([take(100 * MIB, live=True)]) is None


def test_what_is_likely_written_goes_by_what_this_machine_wrote() -> None:
    ours = [taken(take(100 * MIB), 1.0, wrote) for wrote in (10 * MIB, 20 * MIB, 90 * MIB)]
    speed = measured([*ours, taken(take(100 * MIB), 1.0, 99 * MIB, "another")])
    assert speed.writes(take(200 * MIB), "uuid") == 40 * MIB
    assert speed.writes(take(), "uuid") is None, "a new layer is empty"
    assert speed.writes(take(200 * MIB), "a third") is None


def merge(way: MergeWay, *, live: bool = True, top: str = "/c") -> MergeLayers:
    stack = tuple(Layer(path, "qcow2") for path in (top, "/b", "/a"))
    return MergeLayers("vda", way, ("/b", "/a") if top == "/d" else (top, "/b"), stack, is_live=live)


def test_how_long_guests_stand_still_for_merges_is_learned_by_what_ends_them() -> None:
    record = RecordLayers({}, (), {}, {}, {}, ())
    over, below = merge(MergeWay.COMMIT), merge(MergeWay.COMMIT, top="/d")
    plan = Plan(Action.DELETE, "test:///", "uuid", "vm", ("a",), steps=(over, below, record))
    taught = Operation(
        1, plan, OperationState.DONE, 0.0, 9.0, step_seconds=(4.0, 4.0, 0.1), step_pauses=(0.3, 0.1, None)
    )
    speed = measured([taught, replace(taught, step_pauses=(None, None, None))])
    assert speed.pause_of([over, record]) == pytest.approx(0.3)
    assert speed.pause_of([below, merge(MergeWay.PULL), record]) == pytest.approx(0.2)
    assert measured([]).pause_of([over]) is None
    assert measured([]).pause_of([merge(MergeWay.COMMIT, live=False), record]) == 0, "no guest is there"
