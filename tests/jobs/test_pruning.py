"""Pruning behind the window: paused between steps, in certain hours only, and one machine after the other."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from snaptree.hosts.journal import Journal
from snaptree.jobs import host_backend
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Capture, Prune, Take
from snaptree.plans.operation import Operation, OperationState, Pause, Progress
from snaptree.plans.plan import Plan
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.plans.prune_many import PlannedPrune, in_turn
from snaptree.plans.stopping import mixed_if_stopped, next_stop, stops_half_way
from tests.jobs.conftest import Listener
from tests.kit.machines import MIB, NOW, EmbeddedHost, Machine, unchanged

pytestmark = pytest.mark.qemu

ALL = Scope(by_hand=True)
"""Those too that no schedule took."""


def last(number: int) -> Policy:
    return Policy(MappingProxyType({Period.LAST: number}), scope=ALL)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


@pytest.fixture
def listener(listen: Callable[..., Listener], host: EmbeddedHost, journal: Journal) -> Listener:
    return listen(host.uri, journal=journal)


def make_machine(host: EmbeddedHost, *names: str, length: int = 65536) -> Machine:
    machine = host.make_machine()
    for seed, name in enumerate(names):
        machine.write(seed, length=length)
        machine.virsh_take_disk_only(name)
    return machine


def planned(listener: Listener, policy: Policy, *machines: Machine) -> tuple[PlannedPrune, ...]:
    found, unread = all_planned(listener, policy, *(machine.uuid for machine in machines))
    assert not unread
    return found


def all_planned(listener: Listener, policy: Policy, *uuids: str) -> tuple[tuple[PlannedPrune, ...], tuple[Plan, ...]]:
    """Plans, and those of machines that can't be read."""
    answers: list[Any] = []
    listener.backend.planner.plan_prunes({uuid: Prune(policy, by_own_jobs=True) for uuid in uuids}, answers.append)
    listener.until(lambda: answers)
    (answer,) = answers
    assert isinstance(answer, tuple), answer
    return answer


def now_of(listener: Listener, operation: Operation) -> Operation:
    return next(each for each in listener.backend.operations() if each.id == operation.id)


def ended(listener: Listener, operation: Operation) -> Operation:
    listener.until(lambda: now_of(listener, operation).state.is_over)
    return now_of(listener, operation)


def is_paused(listener: Listener, operation: Operation) -> bool:
    progress = now_of(listener, operation).progress
    return progress is not None and progress.pause is Pause.PAUSED


def test_a_prune_stands_still_between_steps_while_other_machines_are_changed(
    listener: Listener, host: EmbeddedHost
) -> None:
    machine, other = make_machine(host, "a", "b", "c", "d"), make_machine(host, "x")
    before = machine.contents()
    listener.open()
    policy = Policy(MappingProxyType({Period.LAST: 1}), scope=ALL, keep_forks=False)
    (prune,) = planned(listener, policy, machine)
    assert prune.plan.snapshots == ("a", "b", "c")
    operation = listener.backend.prune(prune, limit=64 << 20)
    listener.backend.pause(operation.id)
    listener.until(lambda: is_paused(listener, operation))
    progress = now_of(listener, operation).progress
    assert progress is not None
    assert (progress.limit, progress.can_cancel) == (64 << 20, True)

    elsewhere = listener.backend.run(listener.plan(other.uuid, Take("meanwhile", capture=Capture.DISKS)))
    assert ended(listener, elsewhere).state is OperationState.DONE
    here = listener.backend.run(listener.plan(machine.uuid, Take("beside", capture=Capture.DISKS)))
    refused = ended(listener, here)
    assert refused.state is OperationState.FAILED
    assert "paused half-way" in str(refused.error)

    listener.backend.go_on(operation.id)
    assert ended(listener, operation).state is OperationState.DONE
    assert machine.contents() == {name: before[name] for name in ("d", NOW)}
    again = listener.backend.run(listener.plan(machine.uuid, Take("after", capture=Capture.DISKS)))
    assert ended(listener, again).state is OperationState.DONE


def test_what_is_paused_can_be_cancelled(listener: Listener, host: EmbeddedHost) -> None:
    machine = make_machine(host, "a", "b", "c")
    before = machine.contents()
    listener.open()
    (prune,) = planned(listener, last(1), machine)
    operation = listener.backend.prune(prune)
    listener.backend.pause(operation.id)
    listener.until(lambda: is_paused(listener, operation))
    listener.backend.cancel(operation.id)
    assert ended(listener, operation).state is OperationState.CANCELLED
    assert machine.contents() == before


def test_a_merge_that_is_cancelled_when_nothing_is_half_done_comes_to_its_end(
    listener: Listener, host: EmbeddedHost
) -> None:
    """What belongs to it comes to its end, too; the next does not begin. Until then that can be taken back."""
    machine = make_machine(host, *"abcdef", length=4 * MIB)
    before = machine.contents()
    listener.open()
    answers: list[Any] = []
    intention = Prune(last(1), MappingProxyType(dict.fromkeys("cf", "by hand")), by_own_jobs=True)
    listener.backend.planner.plan_prunes({machine.uuid: intention}, answers.append)
    listener.until(lambda: answers)
    (((prune,), _unread),) = answers
    assert prune.plan.snapshots == ("a", "b", "d", "e")
    told: list[Progress | None] = []
    listener.backend.operation_changed.connect(lambda operation: told.append(operation.progress))
    operation = listener.backend.prune(prune, limit=1)
    listener.until(lambda: (progress := now_of(listener, operation).progress) and progress.done is not None)
    stop = next_stop(now_of(listener, operation))
    assert stops_half_way(now_of(listener, operation))
    assert set(mixed_if_stopped(now_of(listener, operation))) < {"a", "b", "d", "e"}

    def pause() -> Pause | None:
        progress = now_of(listener, operation).progress
        return None if progress is None else progress.pause

    listener.backend.cancel_when_whole(operation.id)
    assert pause() is Pause.ENDS
    listener.backend.go_on(operation.id)
    assert pause() is Pause.NO
    listener.backend.cancel_when_whole(operation.id)
    listener.backend.limit(operation.id, None)
    over = ended(listener, operation)
    assert (over.state, over.steps_done) == (OperationState.CANCELLED, stop)
    left = machine.tree().snapshots
    assert 2 < len(left) < 6
    shares = [each.overall or 0.0 for each in told if each is not None]
    assert shares == sorted(shares), "the bar never goes back"
    assert 0.0 < shares[-1] < 1.0
    merging = [each for each in told if each is not None and each.doing.startswith("Merge")]
    assert all(each.can_cancel for each in merging), "from its first moment on"
    assert unchanged(before, machine.contents(), *(set("abcdef") - left.keys()))
    machine.check_images()


def test_a_failure_on_one_machine_stops_no_other(listener: Listener, host: EmbeddedHost) -> None:
    machines = [make_machine(host, "a", "b", "c") for _ in range(2)]
    listener.open()
    nowhere = "11111111-2222-3333-4444-555555555555"
    (first, second), (unread,) = all_planned(listener, last(1), machines[0].uuid, nowhere, machines[1].uuid)
    assert unread.is_refused
    assert not in_turn([first.plan, unread]).is_refused
    machines[0].virsh_take_disk_only("unexpected")
    operations = [listener.backend.prune(each) for each in (first, second)]
    failed, done = (ended(listener, each) for each in operations)
    assert failed.state is OperationState.FAILED
    assert "other layers" in str(failed.error)
    assert done.state is OperationState.DONE
    assert [list(machine.tree().snapshots) for machine in machines] == [["a", "b", "c", "unexpected"], ["c"]]


def later() -> Hours:
    """An hour that begins in two."""
    now = dt.datetime.now().astimezone()
    begin, end = ((now + dt.timedelta(hours=hours)).time().replace(second=0, microsecond=0) for hours in (2, 3))
    return Hours(begin, end)


def test_a_prune_waits_for_its_hours_and_no_more_goes_then_than_was_agreed_to(
    listener: Listener, host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make_machine(host, "a", "b", "c")
    listener.open()
    (prune,) = planned(listener, last(1), machine)
    operation = listener.backend.prune(prune, between=later())
    waiting = now_of(listener, operation)
    assert waiting.state is OperationState.QUEUED
    assert waiting.is_for_later
    assert waiting.remark == f"Waits until {later().begin:%H:%M}, and stops at {later().end:%H:%M}"
    machine.virsh_take_disk_only("d")
    before = machine.contents()

    monkeypatch.setattr(host_backend, "are_now", lambda _between: True)
    monkeypatch.setattr("snaptree.hosts.pruning.are_now", lambda _between: True)
    listener.backend.begin_what_waits()
    assert ended(listener, operation).state is OperationState.DONE
    assert machine.contents() == {name: before[name] for name in ("c", "d", NOW)}, "nobody had agreed to lose c"


def test_hours_that_are_over_before_its_turn_come_again(
    listener: Listener, host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make_machine(host, "a", "b")
    listener.open()
    (prune,) = planned(listener, last(1), machine)
    monkeypatch.setattr(host_backend, "are_now", lambda _between: True)
    operation = listener.backend.prune(prune, between=later())  # they seem to have come, and are over when it begins
    monkeypatch.undo()
    listener.until(lambda: now_of(listener, operation).remark.startswith("Waits until"))
    assert now_of(listener, operation).state is OperationState.QUEUED
    listener.backend.cancel(operation.id)
    assert now_of(listener, operation).state is OperationState.CANCELLED
    assert list(machine.tree().snapshots) == ["a", "b"]


def test_what_was_never_begun_when_it_ends_is_in_the_journal_with_the_reason(
    listener: Listener, host: EmbeddedHost, journal: Journal
) -> None:
    machines = [make_machine(host, "a", "b") for _ in range(3)]
    listener.open()
    first, second, third = planned(listener, last(1), *machines)
    listener.backend.prune(third, between=later())
    listener.backend.prune(first)
    listener.backend.prune(second)
    listener.backend.close()
    assert listener.backend.wait_until_closed(60)
    listener.backend.record_given_up()
    found = {uuid: journal.recent(domain_uuid=uuid) for uuid in (machines[1].uuid, machines[2].uuid)}
    waited = [str(each.error) for operations in found.values() for each in operations]
    assert waited == [
        "Given up while it waited for the work before it: SnapTree was closed. Nothing was done.",
        f"Given up while it waited for its hours, {later().in_words}: SnapTree was closed. Nothing was done.",
    ]
    assert list(machines[1].tree().snapshots) == ["a", "b"]
    assert not journal.unfinished(domain_uuid=machines[1].uuid)
