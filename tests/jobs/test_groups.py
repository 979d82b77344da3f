"""Several machines changed together behind the window: what it is told of each, also where one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from snaptree.hosts.journal import Journal
from snaptree.plans.group import GroupPlan
from snaptree.plans.group_planning import plan_group_take
from snaptree.plans.intention import Capture, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Action, Plan, TakeSnapshot
from tests.jobs.conftest import Listener
from tests.kit.machines import EmbeddedHost, Machine

pytestmark = pytest.mark.qemu


class Interposing(Journal):
    """A journal that puts something in the way of the second machine, once the first one is taken; or holds all up."""

    in_the_way: Path | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_begin = threading.Event()
        self.may_begin.set()

    def begin(self, plan: Plan, *, undoes: int | None = None) -> Operation:
        assert self.may_begin.wait(30)
        return super().begin(plan, undoes=undoes)

    def step_is_done(self, operation: int, number: int, *, paused: float | None = None) -> None:
        super().step_is_done(operation, number, paused=paused)
        if self.in_the_way is not None:
            self.in_the_way.mkdir(exist_ok=True)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Interposing]:
    journal = Interposing(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


@pytest.fixture
def listener(listen: Callable[..., Listener], host: EmbeddedHost, journal: Journal) -> Listener:
    return listen(host.uri, journal=journal)


def planned(listener: Listener, machines: tuple[Machine, ...]) -> GroupPlan:
    answers: list[object] = []
    make = partial(plan_group_take, Take("together", capture=Capture.DISKS))
    listener.backend.planner.plan_group([machine.uuid for machine in machines], make, answers.append)
    listener.until(lambda: answers)
    (plan,) = answers
    assert isinstance(plan, GroupPlan), plan
    return plan


def run(listener: Listener, plan: GroupPlan) -> None:
    listener.backend.run_group(plan)
    listener.until(lambda: all(operation.state.is_over for operation in listener.backend.operations()))


def test_what_was_taken_back_of_others_is_told_and_nothing_stays_to_be_finished(
    listener: Listener, host: EmbeddedHost, journal: Interposing
) -> None:
    pair = host.make_machine(), host.make_machine()
    listener.open()
    plan = planned(listener, pair)
    (step,) = (step for step in plan.members[1].steps if isinstance(step, TakeSnapshot))
    journal.in_the_way = Path(step.overlays["vda"])
    run(listener, plan)
    journal.in_the_way.rmdir()
    first, second, back = listener.backend.operations()
    assert first.state is OperationState.INTERRUPTED
    assert first.settled is not None
    assert first.settled.how is Action.FINISH
    assert first.error is not None
    assert pair[1].name in first.error.summary
    assert second.state is OperationState.FAILED
    assert (back.plan.domain, back.state) == (pair[0].name, OperationState.DONE)
    listener.settle()
    assert not listener.backend.unfinished()
    assert [listener.names(machine.uuid) for machine in pair] == [[], []]


def test_who_takes_back_one_that_waits_takes_back_all(
    listener: Listener, host: EmbeddedHost, journal: Interposing
) -> None:
    before, *pair = (host.make_machine(running=False) for _ in range(3))
    listener.open()
    plan = planned(listener, tuple(pair))
    journal.may_begin.clear()
    listener.backend.run(listener.plan(before.uuid, Take("before", capture=Capture.DISKS)))
    try:
        listener.backend.run_group(plan)
        _, *waiting = listener.backend.operations()
        listener.backend.cancel(waiting[1].id)
    finally:
        journal.may_begin.set()
    listener.until(lambda: all(operation.state.is_over for operation in listener.backend.operations()))
    states = [operation.state for operation in listener.backend.operations()]
    assert states == [OperationState.DONE, OperationState.CANCELLED, OperationState.CANCELLED]
    assert not any(machine.tree().snapshots for machine in pair)
