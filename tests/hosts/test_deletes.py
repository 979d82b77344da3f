"""Deletes that libvirt refuses or does badly, planned and carried out on real machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import analysed
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Capture, Delete, Revert, Take
from snaptree.plans.plan import MergeLayers, MergeWay, Plan, StateAfter
from snaptree.plans.planner import make_plan
from tests.kit.machines import MIB, EmbeddedHost, Machine, unchanged

pytestmark = pytest.mark.qemu


def forked(host: EmbeddedHost, *disks: str, running: bool = False) -> Machine:
    """root -> fork -> left-1 -> left-2 (not in use), and fork -> right-1 -> right-2 (current)."""
    machine = host.make_machine(running=False, disks=disks or ("qcow2",))
    numbers = iter(range(1, 100))

    def take(name: str) -> None:
        for target in machine.active_layers():
            machine.write(next(numbers), target=target, offset=next(numbers) % 7 * MIB, length=2 * MIB)
        machine.change(Take(name, capture=Capture.DISKS))

    for name in ("root", "fork", "left-1", "left-2"):
        take(name)
    machine.change(Revert("fork", take_safety_snapshot=False, state_after=StateAfter.OFF))
    for name in ("right-1", "right-2"):
        take(name)
    machine.write(next(numbers), offset=MIB, length=MIB)
    if running:
        machine.handle.create()
    return machine


SELECTIONS = [
    ("root",),
    ("fork",),
    ("left-1",),
    ("left-2",),
    ("right-1",),
    ("right-2",),
    ("root", "fork"),
    ("fork", "left-1"),
    ("left-1", "left-2"),
    ("fork", "right-1", "right-2"),
    ("fork", "left-1", "left-2", "right-1", "right-2"),
    ("root", "fork", "left-1", "left-2", "right-1", "right-2"),
]


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
@pytest.mark.parametrize("names", SELECTIONS, ids="+".join)
def test_any_selection_is_deleted_and_all_else_stays(
    host: EmbeddedHost, names: tuple[str, ...], *, running: bool
) -> None:
    machine = forked(host, running=running)
    before, files_before = machine.contents(), set(machine.directory.iterdir())
    parents = dict(machine.tree().parents)
    plan = machine.plan(Delete(names))
    if running and plan.is_refused:
        # A layer in use that two stand on can neither take in others nor go, while QEMU holds it.
        assert {finding.rule for finding in plan.refusals} == {"merge-stuck"}
        machine.handle.destroy()
    machine.change(Delete(names))
    assert unchanged(before, machine.contents(), *names)
    machine.check_images()
    survivors = machine.tree()
    for name in survivors.snapshots:
        parent = parents[name]
        while parent in names:
            parent = parents[parent]
        assert survivors.parents[name] == parent
    listed = {snapshot.getName() for snapshot in machine.handle.listAllSnapshots()}
    assert listed == set(before) - {*names, "Now"}
    layers = {disk.frozen for snapshot in survivors for disk in snapshot.disks}
    layers |= {str(path) for path in machine.active_layers().values()}
    stays = {path for path in machine.directory.iterdir() if str(path) not in layers}
    assert stays <= files_before
    assert len(stays) <= len(machine.active_layers()), "the base may be below what is named, and nothing else"
    if not machine.is_running:
        machine.handle.create()
        assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_RUNNING


def test_a_layer_goes_before_a_fork_above_it_lets_several_stand_on_it(host: EmbeddedHost) -> None:
    """The fork needs less room and would come first: then the one beside it would lose its base."""
    machine = host.make_machine(running=False)

    def write_and_take(name: str, seed: int, offset: int = 0, length: int = MIB // 16) -> None:
        machine.write(seed, offset=offset, length=length)
        machine.change(Take(name, capture=Capture.DISKS))

    write_and_take("root", 1, length=3 * MIB)
    write_and_take("middle", 2, offset=4 * MIB, length=2 * MIB)
    write_and_take("fork", 3)
    write_and_take("left", 4)
    machine.change(Revert("fork", take_safety_snapshot=False, state_after=StateAfter.OFF))
    write_and_take("right", 5)
    before = machine.contents()
    situation = read_situation(machine.connection, machine.uuid)
    layers = analysed(machine.connection, situation.layers)
    plan = make_plan(Delete(("root", "fork")), replace(situation, layers=layers))
    ways = [step.way for step in plan.steps if isinstance(step, MergeLayers)]
    assert ways == [MergeWay.COMMIT, MergeWay.PULL, MergeWay.PULL], plan.refusals
    assert run_plan(machine.connection, plan).error is None
    assert unchanged(before, machine.contents(), "root", "fork")
    machine.check_images()


def test_snapshots_of_two_disks_go_with_all_their_layers(host: EmbeddedHost) -> None:
    machine = forked(host, "qcow2", "raw")
    before = machine.contents()
    machine.change(Delete(("fork", "right-1")))
    assert unchanged(before, machine.contents(), "fork", "right-1")
    machine.check_images()
    machine.change(Revert("left-2", take_safety_snapshot=False, state_after=StateAfter.OFF))
    after = machine.contents()
    assert after["Now"] == before["left-2"]


def test_a_merge_that_shall_be_slow_is_ours(host: EmbeddedHost) -> None:
    machine = forked(host, running=True)
    before = machine.contents()
    operation = machine.change(Delete(("right-1",), by_own_jobs=True))
    assert next(type(step).__name__ for step in operation.plan.steps) == "MergeLayers"
    assert unchanged(before, machine.contents(), "right-1")


@pytest.mark.parametrize(
    ("names", "running"),
    [(("one", "two", "three"), True), (("one", "two", "three"), False), (("one", "two"), False)],
    ids=["running", "off", "below what stays"],
)
def test_the_largest_layer_takes_in_what_is_above_and_below(
    host: EmbeddedHost, names: tuple[str, ...], *, running: bool
) -> None:
    machine = host.make_machine(running=running, disks=("qcow2",))
    for number, (name, mebibytes) in enumerate((("one", 2), ("two", 5), ("three", 1)), start=1):
        machine.write(number, offset=number * MIB, length=mebibytes * MIB)
        machine.change(Take(name, capture=Capture.DISKS))
    machine.write(9, offset=6 * MIB, length=MIB)
    before, active = machine.contents(), machine.active_layers()["vda"]
    largest = str(active.with_suffix(".one"))
    operation = machine.change(Delete(names))
    merges = [step for step in operation.plan.steps if isinstance(step, MergeLayers)]
    assert [(step.way, step.merged) for step in merges] == [(MergeWay.COMMIT, largest), (MergeWay.PULL, largest)]
    assert unchanged(before, machine.contents(), *names)
    machine.check_images()
    layers = {str(path) for path in machine.active_layers().values()}
    layers |= {disk.frozen for snapshot in machine.tree() for disk in snapshot.disks if disk.frozen}
    assert {str(path) for path in machine.directory.glob("disk0*")} == layers
    copies = operation.plan.forecast.copies.bytes
    assert copies is not None
    assert copies < 5 * MIB, "not those of the largest"
    if not running:
        machine.handle.create()


def test_how_long_the_guest_stood_still_is_noted_and_expected_next_time(host: EmbeddedHost, tmp_path: Path) -> None:
    machine = host.make_machine()
    for number, name in enumerate(("a", "b", "c"), start=1):
        machine.change(Take(name, capture=Capture.DISKS))
        machine.write(number, offset=number * MIB, length=MIB)

    def plan(name: str) -> Plan:
        situation = replace(read_situation(machine.connection, machine.uuid), speed=journal.speed(host.connection.uri))
        return make_plan(Delete((name,), by_own_jobs=True), situation)

    journal = Journal(tmp_path / "journal.sqlite3")
    try:
        for name, goes_over in (("a", False), ("c", True)):
            first = plan(name)
            assert first.forecast.pause_seconds is None, "nobody has seen it yet"
            (merge,) = [step for step in first.steps if isinstance(step, MergeLayers)]
            assert (merge.is_live, merge.goes_over) == (True, goes_over)
            assert run_plan(machine.connection, first, journal=journal).error is None
            paused, *rest = journal.recent()[0].step_pauses
            assert paused is not None
            assert 0 < paused < 60
            assert set(rest) == {None}
            if name == "a":
                assert plan("b").forecast.pause_seconds == paused
    finally:
        journal.close()
