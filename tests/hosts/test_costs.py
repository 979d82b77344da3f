"""What a snapshot is said to cost, against what really comes back when it is deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snaptree.hosts.layers import analysed, read_layers
from snaptree.model.costs import domain_costs, selection_cost
from snaptree.model.figures import Confidence, Figure
from snaptree.plans.intention import Capture, Delete, Revert, Take
from tests.kit.machines import MIB, EmbeddedHost, Machine

pytestmark = pytest.mark.qemu

CLUSTER = 64 * 1024


def on_host(machine: Machine) -> int:
    """Bytes that the machine's images take now."""
    os.sync()
    return sum(Path(path).stat().st_blocks * 512 for path in machine.active_layers().values())


def history(host: EmbeddedHost) -> Machine:
    """Four internal snapshots of a machine that is off: what each wrote is partly written over later."""
    machine = host.make_machine(running=False, disks=("qcow2", "qcow2"))
    for number, name in enumerate(("one", "two", "three", "four")):
        machine.write(number, offset=number * MIB, length=3 * MIB)
        machine.write(number, target="vdb", offset=2 * number * MIB, length=MIB)
        machine.change(Take(name, capture=Capture.INTERNAL))
    machine.write(9, length=MIB)
    return machine


@pytest.mark.parametrize("names", [("one",), ("two",), ("four",), ("two", "three"), ("one", "two", "three", "four")])
def test_what_comes_back_is_what_was_said(host: EmbeddedHost, names: tuple[str, ...]) -> None:
    machine = history(host)
    tree = machine.tree()
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree))
    frees = selection_cost(tree, layers, names).frees
    assert frees.confidence is Confidence.EXACT
    assert frees.bytes is not None
    before = on_host(machine)
    machine.change(Delete(names))
    assert abs(before - on_host(machine) - frees.bytes) <= CLUSTER * len(machine.active_layers())


def test_snapshots_that_went_before_the_analysis_leave_figures_unknown(host: EmbeddedHost) -> None:
    machine = history(host)
    tree = machine.tree()
    layers = read_layers(machine.connection, machine.uuid, tree)
    machine.change(Delete(("two",)))
    costs = domain_costs(tree, analysed(machine.connection, layers))
    assert not any(cost.frees.is_known for cost in costs.snapshots.values())
    again = read_layers(machine.connection, machine.uuid, machine.tree())
    costs = domain_costs(machine.tree(), analysed(machine.connection, again))
    assert all(cost.frees.is_known for cost in costs.snapshots.values())


def test_several_free_together_what_none_frees_alone(host: EmbeddedHost) -> None:
    machine = history(host)
    tree = machine.tree()
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree))
    names = tuple(tree.snapshots)
    alone = [selection_cost(tree, layers, (name,)).frees.bytes or 0 for name in names]
    together = selection_cost(tree, layers, names).frees.bytes
    assert together is not None
    assert together >= sum(alone) + MIB, "the beginning of the disk, which all of them share"


def test_what_was_written_is_what_the_parent_has_not(host: EmbeddedHost) -> None:
    machine = history(host)
    tree = machine.tree()
    costs = domain_costs(tree, analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree)))
    for name in ("two", "three", "four"):
        written = costs.snapshots[name].written
        # 3 MiB on one disk and 1 MiB on the other, with the tables that say where.
        assert written.confidence is Confidence.EXACT
        assert 4 * MIB <= (written.bytes or 0) <= 4 * MIB + 6 * CLUSTER
    assert MIB <= (costs.now.bytes or 0) <= MIB + 6 * CLUSTER


def external_history(host: EmbeddedHost, *, running: bool) -> Machine:
    """Four external snapshots: each layer covers a part of what the one below it holds, and adds something."""
    machine = host.make_machine(running=False, disks=("qcow2", "qcow2"))
    for number, name in enumerate(("one", "two", "three", "four")):
        machine.write(number, offset=number * MIB, length=3 * MIB)
        machine.write(number, target="vdb", offset=2 * number * MIB, length=MIB)
        machine.change(Take(name, capture=Capture.DISKS))
    machine.write(9, length=MIB)
    if running:
        machine.handle.create()
    return machine


def in_directories(machine: Machine) -> int:
    """Bytes that all files beside the machine's images take now."""
    os.sync()
    directories = {path.parent for path in machine.active_layers().values()}
    return sum(path.stat().st_blocks * 512 for directory in directories for path in directory.iterdir())


@pytest.mark.parametrize(
    ("names", "running"),
    [
        (("one",), True),
        (("three",), True),
        (("four",), True),
        (("two", "three"), True),
        (("one", "two", "three", "four"), True),
        # libvirt 9.0 merges only the newest layers of a machine that is off.
        (("four",), False),
        (("one", "two", "three", "four"), False),
    ],
)
def test_merging_gives_back_what_was_said(host: EmbeddedHost, names: tuple[str, ...], *, running: bool) -> None:
    machine = external_history(host, running=running)
    tree = machine.tree()
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree))
    cost = selection_cost(tree, layers, names)
    touches_active = running and "four" in names
    assert cost.frees.confidence is (Confidence.LIVE if touches_active else Confidence.EXACT)
    assert cost.frees.bytes is not None
    assert cost.copies.bytes
    before = in_directories(machine)
    machine.change(Delete(names))
    # Within a cluster for each layer: tables of reference counts grow too, and the file system has blocks of its own.
    assert abs(before - in_directories(machine) - cost.frees.bytes) <= CLUSTER * len(names) * 2


def test_several_layers_free_more_than_each_alone(host: EmbeddedHost) -> None:
    machine = external_history(host, running=False)
    tree = machine.tree()
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree))
    names = tuple(tree.snapshots)
    alone = [selection_cost(tree, layers, (name,)).frees.bytes or 0 for name in names]
    together = selection_cost(tree, layers, names).frees.bytes
    assert together is not None
    assert together > sum(alone)


def test_what_is_frozen_is_exact_while_the_machine_runs(host: EmbeddedHost) -> None:
    """QEMU keeps changes of the present state's tables to itself for a while; those of snapshots never change."""
    machine = host.make_machine()
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number, offset=number * MIB, length=2 * MIB)
        machine.virsh_take(name)
        machine._qemu_io("vda", f"write -P 99 {(number + 1) * MIB} {MIB}")  # which is not flushed

    def written_and_memory() -> dict[str, tuple[Figure, Figure]]:
        tree = machine.tree()
        costs = domain_costs(tree, analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree)))
        return {name: (cost.written, cost.memory) for name, cost in costs.snapshots.items()}

    running = written_and_memory()
    assert {figure.confidence for figures in running.values() for figure in figures} == {Confidence.EXACT}
    machine.handle.destroy()
    assert written_and_memory() == running


def test_memory_saved_last_comes_back_from_a_running_machine(host: EmbeddedHost) -> None:
    """QEMU drops it from the present state's tables at once, and keeps that to itself until the guest flushes."""
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("first", capture=Capture.INTERNAL))
    machine.change(Take("last", capture=Capture.INTERNAL))
    assert_comes_back(machine, "last", 4 * CLUSTER)
    machine.change(Take("again", capture=Capture.INTERNAL))
    machine.change(Revert("again"))
    # Now the present state does hold it.
    assert_comes_back(machine, "again", 0)


def assert_comes_back(machine: Machine, name: str, at_least: int) -> None:
    tree = machine.tree()
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, tree))
    frees = selection_cost(tree, layers, (name,)).frees.bytes
    assert frees is not None
    assert frees >= at_least
    before = on_host(machine)
    machine.change(Delete((name,)))
    assert abs(before - on_host(machine) - frees) <= CLUSTER
