"""Several machines taken and reverted together: all of them or none, whatever fails or dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from snaptree.cli import main
from snaptree.hosts.group_running import GroupOutcome, run_group
from snaptree.hosts.journal import Journal
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Consistency
from snaptree.plans.group import GroupPlan, done_together, find_group
from snaptree.plans.group_planning import plan_group_revert, plan_group_take, plan_group_undo
from snaptree.plans.intention import Capture, Recover, Revert, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Freeze, Plan, TakeSnapshot
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from tests.kit.crashing import Moment, command_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.guest import make_guest
from tests.kit.machines import NOW, EmbeddedHost, Machine, RealHost, remove, wait_for_the_next_second

pytestmark = pytest.mark.qemu

Pair = tuple[Machine, Machine]
TOGETHER = Take("together", capture=Capture.DISKS)


def make_pair(host: RealHost, *, running: bool = True) -> Pair:
    pair = host.make_machine(running=running), host.make_machine(running=running)
    for number, machine in enumerate(pair):
        machine.write(number)
    return pair


def situations(machines: tuple[Machine, ...]) -> list[Situation]:
    return [read_situation(machine.connection, machine.uuid) for machine in machines]


def taking(machines: tuple[Machine, ...], take: Take = TOGETHER) -> GroupPlan:
    return plan_group_take(take, situations(machines))


def run(group: GroupPlan, machine: Machine, journal: Journal, undoes: Mapping[str, int] | None = None) -> GroupOutcome:
    assert not group.is_refused, group.refusals
    return run_group(machine.connection, group, journal=journal, undoes=undoes)


def undo(operation: Operation, machines: tuple[Machine, ...], journal: Journal) -> GroupOutcome:
    together = done_together(operation, journal.recent())
    assert len(together) == len(machines)
    plan = plan_group_undo(together, situations(machines))
    return run(plan, machines[0], journal, undoes={each.plan.domain_uuid: each.id for each in together})


def contents(machines: tuple[Machine, ...]) -> list[dict[str, dict[str, str]]]:
    return [machine.contents() for machine in machines]


def names(machines: tuple[Machine, ...]) -> list[list[str]]:
    return [list(machine.tree().snapshots) for machine in machines]


def test_two_are_taken_reverted_and_taken_back_together(host: EmbeddedHost, journal: Journal) -> None:
    pair = make_pair(host)
    taken = run(taking(pair, replace(TOGETHER, description="before it")), pair[0], journal)
    assert taken.error is None, taken.error
    snapshots = [machine.tree()["together"] for machine in pair]
    (group,) = {snapshot.annotations.group for snapshot in snapshots}
    assert group.startswith("together@")
    assert [snapshot.description for snapshot in snapshots] == ["before it"] * 2
    for number, machine in enumerate(pair):
        machine.write(number + 10)
    later = contents(pair)

    found, members = find_group("together", {machine.uuid: machine.tree() for machine in pair})
    assert (found, set(members)) == (group, {machine.uuid for machine in pair})
    wait_for_the_next_second()
    order = tuple(reversed(pair))
    plan = plan_group_revert(group, Revert(""), situations(order))
    assert [part.domain_uuid for part in plan.members] == [machine.uuid for machine in order]
    reverted = run(plan, pair[0], journal)
    assert reverted.error is None, reverted.error
    assert [machine.contents()[NOW] for machine in pair] == [each["together"] for each in later]
    safeties = {s.annotations.group for machine in pair for s in machine.tree() if s.annotations.safety}
    assert len(safeties) == 1, "the safety snapshots are a group as well"

    wait_for_the_next_second()
    back = undo(reverted.members[0], pair, journal)
    assert back.error is None, back.error
    assert contents(pair) == later
    assert names(pair) == [["together"]] * 2

    gone = undo(taken.members[1], pair, journal)
    assert gone.error is None, gone.error
    assert names(pair) == [[], []]
    assert [machine.contents()[NOW] for machine in pair] == [each[NOW] for each in later]
    assert not journal.unfinished()


def new_layer(plan: Plan) -> Path:
    """The file that a machine will write to. If it is there by then, taking it fails."""
    (step,) = (step for step in plan.steps if isinstance(step, TakeSnapshot))
    return Path(step.overlays["vda"])


class Interposing(Journal):
    """A journal that does something when the second machine is about to be taken: all was looked at before."""

    do: Callable[[], object] = staticmethod(lambda: None)

    def step_is_done(self, operation: int, number: int, *, paused: float | None = None) -> None:
        super().step_is_done(operation, number, paused=paused)
        self.do()


@pytest.fixture
def interposing(tmp_path: Path) -> Iterator[Interposing]:
    journal = Interposing(tmp_path / "interposing.sqlite3")
    yield journal
    journal.close()


@pytest.mark.parametrize("fails", ["beforehand", "meanwhile"])
def test_where_one_fails_none_keeps_a_snapshot(host: EmbeddedHost, interposing: Interposing, fails: str) -> None:
    pair = make_pair(host)
    before = contents(pair)
    files = [set(machine.directory.iterdir()) for machine in pair]
    plan = taking(pair)
    blocked = new_layer(plan.members[1])
    if fails == "beforehand":
        blocked.mkdir()
    else:
        interposing.do = partial(blocked.mkdir, exist_ok=True)
    outcome = run(plan, pair[0], interposing)
    interposing.do = lambda: None
    assert outcome.error is not None
    assert pair[1].name in outcome.error.summary
    taken_first = fails == "meanwhile"
    assert ("was taken back" in outcome.error.hint) == taken_first
    assert len(outcome.taken_back) == taken_first
    blocked.rmdir()
    assert names(pair) == [[], []]
    assert contents(pair) == before
    assert [set(machine.directory.iterdir()) for machine in pair] == files
    assert not interposing.unfinished()
    assert run(taking(pair), pair[0], interposing).error is None, "and again"


def test_where_one_is_refused_all_are(host: EmbeddedHost, journal: Journal) -> None:
    pair = make_pair(host, running=False)
    pair[1].virsh_take_disk_only("together")
    plan = taking(pair)
    assert plan.is_refused
    assert all(pair[1].name in refusal.reason for refusal in plan.refusals)
    with pytest.raises(SnapTreeError, match="together"):
        run_group(host.connection, plan, journal=journal)
    assert not journal.unfinished()
    assert names(pair) == [[], ["together"]]


def test_where_one_can_not_begin_nothing_is_left_begun(host: EmbeddedHost, journal: Journal) -> None:
    pair = make_pair(host, running=False)
    earlier = journal.begin(pair[1].plan(Take("cut short", capture=Capture.DISKS)))
    journal.step_begins(earlier.id, 0, was_active=False)
    journal.finish(replace(earlier, state=OperationState.INTERRUPTED))
    with pytest.raises(SnapTreeError, match=pair[1].name):
        run(taking(pair), pair[0], journal)
    assert [operation.id for operation in journal.unfinished()] == [earlier.id]
    assert journal.recent()[0].state is OperationState.CANCELLED
    assert names(pair) == [[], []]


def test_a_revert_that_fails_leaves_the_others_as_they_were(host: EmbeddedHost, interposing: Interposing) -> None:
    pair = make_pair(host)
    assert run(taking(pair, replace(TOGETHER, capture=Capture.INTERNAL)), pair[0], interposing).error is None
    for number, machine in enumerate(pair):
        machine.write(number + 10)
    before = contents(pair)
    group = pair[0].tree()["together"].annotations.group
    plan = plan_group_revert(group, Revert(""), situations(pair))

    def forget() -> None:
        """Somebody else deletes what the second is to be reverted to, once the first one is reverted."""
        if pair[0].tree().current == "together" and "together" in pair[1].tree():
            pair[1].handle.snapshotLookupByName("together").delete(0)

    interposing.do = forget
    outcome = run(plan, pair[0], interposing)
    interposing.do = lambda: None
    assert outcome.error is not None
    assert pair[1].name in outcome.error.summary
    assert contents((pair[0],)) == before[:1]
    assert pair[1].contents()[NOW] == before[1][NOW]
    assert not interposing.unfinished()


@pytest.fixture
def state_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where commands have their journal, also those in programs of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def finish(machine: Machine, journal: Journal) -> set[str]:
    """Finish what was interrupted, and return the rules that spoke of it."""
    situation = with_operations(
        machine.connection, read_situation(machine.connection, machine.uuid), journal, recovers=True
    )
    plan = make_plan(Recover(), situation)
    assert not plan.is_refused, plan.refusals
    operation = run_plan(machine.connection, plan, journal=journal)
    assert operation.error is None, operation.error
    return {finding.rule for finding in plan.warnings}


@pytest.mark.daemon
@pytest.mark.parametrize(("moment", "step"), [(Moment.ACTED, "1:0"), (Moment.BEFORE, "2:0"), (Moment.ACTED, "2:0")])
def test_what_a_killed_program_took_of_some_is_taken_back(
    daemon: LibvirtDaemon, state_home: Path, moment: Moment, step: str
) -> None:
    pair = make_pair(daemon)
    before = contents(pair)
    files = [set(machine.directory.iterdir()) for machine in pair]
    command_and_kill(
        moment, step, "--connect", daemon.uri, "take-group", "-y", "together", *[machine.name for machine in pair]
    )
    assert names(pair) == [["together"], ["together"] if (moment, step) == (Moment.ACTED, "2:0") else []]
    journal = Journal(state_home / "snaptree" / "journal.sqlite3")
    try:
        unfinished = {operation.plan.domain_uuid for operation in journal.unfinished()}
        assert pair[0].uuid in unfinished
        for machine in pair:
            if machine.uuid in unfinished:
                assert "group-is-torn" in finish(machine, journal)
        assert not journal.unfinished()
    finally:
        journal.close()
    assert names(pair) == [[], []]
    assert contents(pair) == before
    assert [set(machine.directory.iterdir()) for machine in pair] == files


@pytest.mark.daemon
@pytest.mark.usefixtures("state_home")
def test_a_revert_of_several_that_was_cut_short_is_finished_on_all(daemon: LibvirtDaemon) -> None:
    pair = make_pair(daemon)
    here = ("--connect", daemon.uri)
    for machine in pair:
        machine.change(Take("first", capture=Capture.INTERNAL, group="first@1"))
        machine.write(99)
    before = contents(pair)
    command_and_kill(Moment.BEFORE, "2:0", *here, "revert-group", "-y", "first")
    for machine in pair:
        assert main([*here, "recover", "-y", machine.name]) == 0
    assert [machine.contents()[NOW] for machine in pair] == [each["first"] for each in before]
    assert main([*here, "undo", "-y", pair[1].name]) == 0
    assert contents(pair) == before


@pytest.mark.daemon
@pytest.mark.usefixtures("state_home")
def test_a_group_that_was_taken_in_full_is_finished(daemon: LibvirtDaemon) -> None:
    pair = make_pair(daemon)
    arguments = ("--connect", daemon.uri, "take-group", "-y", "together", *[machine.name for machine in pair])
    command_and_kill(Moment.ENDED, 0, *arguments)
    for machine in pair:
        assert main(["--connect", daemon.uri, "recover", "-y", machine.name]) == 0
    assert names(pair) == [["together"]] * 2
    assert main(["--connect", daemon.uri, "undo", "-y"]) == 0
    assert names(pair) == [[], []], "taken back together, too"


def test_commands_take_and_revert_groups(
    host: EmbeddedHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pair = make_pair(host)
    here = ("--connect", host.uri)
    both = [machine.name for machine in pair]
    assert main([*here, "take-group", "-n", "together", *both]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}:" in said for name in both)
    assert names(pair) == [[], []]

    assert main([*here, "take-group", "--json", "-y", "together", *both, "--note", "why"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [machine["domain"] for machine in document["machines"]] == both
    assert {machine["result"]["state"] for machine in document["machines"]} == {"done"}
    assert document["undo"]
    assert main([*here, "tree", "--json", both[1]]) == 0
    (snapshot,) = json.loads(capsys.readouterr().out)["snapshots"]
    assert snapshot["group"] == document["group"]
    assert snapshot["note"] == "why"

    for number, machine in enumerate(pair):
        machine.write(number + 10)
    later = contents(pair)
    wait_for_the_next_second()
    assert main([*here, "revert-group", "-y", "together", "--running"]) == 0
    assert all(machine.is_running for machine in pair)
    assert [machine.contents()[NOW] for machine in pair] == [each["together"] for each in later]
    wait_for_the_next_second()
    assert main([*here, "undo", "-y", both[0]]) == 0
    assert contents(pair) == later
    capsys.readouterr()

    assert main([*here, "take-group", "-y", "alone", both[0]]) == 1
    assert "two machines" in capsys.readouterr().err
    assert main([*here, "take-group", "-y", "together", *both]) == 3
    assert main([*here, "revert-group", "-y", "nobody"]) == 1
    assert "No snapshots were taken together" in capsys.readouterr().err


@pytest.mark.guest
def test_guests_are_thawed_before_anything_else_and_if_another_fails(
    host: EmbeddedHost, interposing: Interposing
) -> None:
    guest, other = make_guest(host, "group-guest"), host.make_machine()
    both = (guest, other)
    plan = taking(both, replace(TOGETHER, name="frozen", quiesce=Freeze.IF_POSSIBLE))
    assert len(plan.members[0].steps) == 3, "frozen, taken, thawed"
    outcome = run(plan, guest, interposing)
    assert outcome.error is None, outcome.error
    assert guest.tree()["frozen"].consistency is Consistency.FILESYSTEM
    impact = outcome.members[0].impact
    assert impact is not None
    assert impact.frozen is not None
    assert impact.frozen < 10

    plan = taking(both, replace(TOGETHER, name="fails", quiesce=Freeze.IF_POSSIBLE))
    was_frozen = []
    blocked = new_layer(plan.members[1])

    def do() -> None:
        was_frozen.append(guest.is_frozen)
        if "fails" in guest.tree():
            blocked.mkdir(exist_ok=True)

    interposing.do = do
    outcome = run(plan, guest, interposing)
    interposing.do = lambda: None
    assert outcome.error is not None
    assert was_frozen[:2] == [True, True]
    assert not guest.is_frozen
    assert "fails" not in guest.tree()
    guest.wait_for_writes()
    assert not interposing.unfinished()
    assert outcome.members[0].state is OperationState.INTERRUPTED
    remove(guest.handle)
