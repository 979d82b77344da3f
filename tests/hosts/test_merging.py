"""Merges of our own on real QEMU: every snapshot keeps its content, libvirt agrees with what is recorded, and what goes
wrong in the middle loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, set_source
from snaptree.hosts.helper_machine import end_helper, helper_machine, helpers, left_helpers
from snaptree.hosts.layers import live_chains
from snaptree.hosts.merging import _Pace, is_merged
from snaptree.hosts.reading import list_domains
from snaptree.hosts.records import is_recorded
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.images.files import ImageReader
from snaptree.model.errors import ChangedMeanwhileError
from snaptree.plans.intention import Capture, Delete, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Action, Layer, MergeLayers, MergeWay, Plan, RecordLayers, RemoveLeftover, Step
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, NOW, EmbeddedHost, Machine, RealHost, run_tool, unchanged, wait_for_the_next_second
from tests.kit.relay import Relay, far_away

pytestmark = pytest.mark.qemu

COMMIT, PULL = MergeWay.COMMIT, MergeWay.PULL
SLOW = 64 * 1024
"""Bytes per second: QEMU copies a first piece at once, and then waits for very long."""


# Steps, as a planner makes them


def stack_of(path: str, image_format: str = "qcow2") -> tuple[Layer, ...]:
    """What an image stands on, from itself down."""
    chain = ImageReader().read_chain(path, image_format)
    assert not chain.problem
    return tuple(Layer(image.path, image.format) for image in chain.images)


def steps_to_delete(machine: Machine, name: str, way: MergeWay, *, live: bool, top: str | None = None) -> list[Step]:
    """Merge the layer of one snapshot with the one above it, on every disk; no fork above or below.

    `top` is what QEMU opens in a helper machine, if it is not what the machine has in use.
    """
    tree = machine.tree()
    parent = tree[name].parent
    merges: list[Step] = []
    moved: dict[str, Layer] = {}
    removed: list[str] = []
    overlays: dict[str, str] = {}
    active = machine.active_layers()
    for disk in tree[name].disks:
        assert disk.frozen is not None
        assert disk.overlay is not None
        in_use = top or str(active[disk.target])
        lowest_top = disk.overlay if way is PULL and not live else in_use
        stack = stack_of(lowest_top)
        merges.append(MergeLayers(disk.target, way, (disk.overlay, disk.frozen), stack, is_live=live))
        if way is COMMIT:
            moved[disk.overlay] = Layer(disk.frozen, disk.frozen_format)
            removed.append(disk.overlay)
        else:
            removed.append(disk.frozen)
            overlays[disk.target] = disk.overlay
    record = RecordLayers(
        moved=moved,
        removed=tuple(removed),
        parents=dict.fromkeys(tree.children(name), parent),
        overlays={parent: overlays} if parent is not None and overlays else {},
        revert_overlays={},
        forgotten=(name,),
    )
    return [*merges, record, *leftovers(removed)]


def leftovers(paths: Sequence[str]) -> list[Step]:
    return [RemoveLeftover(path, "its content was merged") for path in paths]


def plan_of(machine: Machine, steps: Sequence[Step]) -> Plan:
    return Plan(
        action=Action.DELETE,
        host_uri=machine.connection.uri,
        domain_uuid=machine.uuid,
        domain=machine.name,
        snapshots=(),
        steps=tuple(steps),
    )


def run(machine: Machine, steps: Sequence[Step], **options: Any) -> Operation:
    return run_plan(machine.connection, plan_of(machine, steps), **options)


def run_well(machine: Machine, steps: Sequence[Step], **options: Any) -> Operation:
    operation = run(machine, steps, **options)
    assert operation.error is None, f"{operation.error} {operation.error.details}"
    return operation


# Machines


def grow(machine: Machine, *names: str, targets: Sequence[str] = ("vda",)) -> None:
    """Write and take disk-only snapshots by turns; what is written overlaps with what was."""
    for number, name in enumerate(names, start=1):
        write(machine, number, targets)
        machine.virsh_take_disk_only(name)
    write(machine, len(names) + 1, targets)


def write(machine: Machine, number: int, targets: Sequence[str] = ("vda",)) -> None:
    for extra, target in enumerate(targets):
        machine.write(10 * number + extra, target=target, offset=number * 512 * 1024, length=MIB)
        machine.write(10 * number + extra + 100, target=target, length=64 * 1024)


def shut_off(machine: Machine) -> None:
    machine.handle.destroy()


def fork(machine: Machine, at: str) -> None:
    """Let the machine, which is off, go on from a snapshot's layer: what an external revert does where there is one."""
    handle = machine.handle
    held = {disk.target: disk for disk in machine.tree()[at].disks}
    definition = parse(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    snapshot = parse(handle.snapshotLookupByName(at).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
    revert_disks = ET.SubElement(snapshot, "revertDisks")
    for disk in definition.findall("devices/disk"):
        target = disk.find("target")
        assert target is not None
        name = target.get("dev", "")
        overlay = f"{machine.directory}/{name}.fork"
        frozen, frozen_format = str(held[name].frozen), held[name].frozen_format
        run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", frozen, "-F", frozen_format, overlay)
        set_source(disk, overlay)
        for recorded in disk.findall("backingStore"):
            disk.remove(recorded)
        element = ET.SubElement(revert_disks, "disk", {"name": name, "snapshot": "external"})
        ET.SubElement(element, "driver", {"type": "qcow2"})
        set_source(element, overlay)
    machine.connection.handle.defineXML(ET.tostring(definition, encoding="unicode"))
    # With CURRENT, libvirt drops <revertDisks>.
    redefine = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    for flags in (redefine | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT, redefine):
        handle.snapshotCreateXML(ET.tostring(snapshot, encoding="unicode"), flags)
    assert machine.tree().current == at


def check(machine: Machine, before: dict[str, dict[str, str]], *gone: str, current: str | None) -> None:
    """All is as it should be, and libvirt agrees: it starts, deletes and (where it can) reverts what is left."""
    assert unchanged(before, machine.contents(), *gone)
    assert machine.tree().current == current
    machine.check_images()
    check_nothing_left(machine)
    assert not jobs(machine)
    check_with_libvirt(machine, before)


def check_nothing_left(machine: Machine) -> None:
    """Every file is somebody's layer, and nobody works for the machine any more."""
    used = {disk.frozen for snapshot in machine.tree() for disk in snapshot.disks}
    used |= {layer for chain in live_chains(machine.connection, machine.handle) for layer in chain.layers}
    used |= {
        disk.overlay for snapshot in machine.tree() for disk in snapshot.disks if machine.tree().children(snapshot.name)
    }
    used |= {
        layer.path for path in used if path for layer in stack_of(path, "raw" if path.endswith("raw") else "qcow2")
    }
    assert {str(path) for path in machine.directory.iterdir()} == used
    assert helpers(machine.connection) == ()


def check_with_libvirt(machine: Machine, before: dict[str, dict[str, str]]) -> None:
    handle = machine.handle
    if not machine.is_running:
        handle.create()
    now = machine.contents()
    machine.write(77)
    can_revert = machine.connection.host.external_snapshots
    if can_revert:
        for name in machine.tree().snapshots:
            snapshot = handle.snapshotLookupByName(name)
            wait_for_the_next_second()
            handle.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)
            assert machine.contents()[NOW] == before[name], f"libvirt's own revert to {name}"
    else:
        assert unchanged(now, machine.contents() | {NOW: now[NOW]})
        tree = machine.tree()
        while tree.current is not None and not tree.children(tree.current):
            name, expected = tree.current, machine.contents()
            handle.snapshotLookupByName(name).delete()
            assert unchanged(expected, machine.contents(), name), f"libvirt's own deletion of {name}"
            tree = machine.tree()


def until(happened: Callable[[], bool]) -> None:
    """Wait for what libvirt is about to notice; asked without a pause, it would hardly come to it."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def jobs(machine: Machine) -> dict[str, Any]:
    if not machine.is_running:
        return {}
    return {target: job for target in machine.active_layers() if (job := machine.handle.blockJobInfo(target))}


# What can be merged


@pytest.mark.parametrize("way", [COMMIT, PULL])
@pytest.mark.parametrize("live", [True, False])
def test_the_layer_in_use_becomes_one_with_the_one_below(host: EmbeddedHost, way: MergeWay, live: bool) -> None:
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    grow(machine, "one", "two", targets=("vda", "vdb"))
    if not live:
        shut_off(machine)
    before = machine.contents()
    steps = steps_to_delete(machine, "two", way, live=live)
    run_well(machine, steps)
    assert machine.is_running == live
    check(machine, before, "two", current="one")


@pytest.mark.parametrize(("way", "live"), [(COMMIT, True), (COMMIT, False), (PULL, False)])
@pytest.mark.parametrize("name", ["one", "two"])
def test_layers_in_the_middle_and_at_the_root_become_one(
    host: EmbeddedHost, way: MergeWay, live: bool, name: str
) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two", "three")
    if not live:
        shut_off(machine)
    before = machine.contents()
    run_well(machine, steps_to_delete(machine, name, way, live=live))
    assert machine.tree()["three"].parent == ("two" if name == "one" else "one")
    check(machine, before, name, current="three")


@pytest.mark.parametrize("way", [COMMIT, PULL])
@pytest.mark.parametrize("live", [True, False])
def test_down_to_a_raw_base_and_up_from_one(host: EmbeddedHost, way: MergeWay, live: bool) -> None:
    machine = host.make_machine(disks=("raw",))
    grow(machine, "one")
    if not live:
        shut_off(machine)
    before = machine.contents()
    run_well(machine, steps_to_delete(machine, "one", way, live=live))
    assert machine.active_layers()["vda"].suffix == (".raw" if way is COMMIT else ".one")
    check(machine, before, "one", current=None)


def test_several_layers_at_once(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two", "three", "four")
    before = machine.contents()
    tree = machine.tree()
    top, *below = (layer.path for layer in stack_of(str(machine.active_layers()["vda"])))
    stack = stack_of(top)
    layers = (below[0], below[1], below[2])
    frozen = tree["two"].disks[0].frozen
    assert frozen == layers[-1]
    run_well(
        machine,
        [
            MergeLayers("vda", COMMIT, layers, stack, is_live=True),
            RecordLayers(
                moved={layers[0]: Layer(frozen, "qcow2")},
                removed=layers[:-1],
                parents={"four": "one"},
                overlays={},
                revert_overlays={},
                forgotten=("three", "two"),
            ),
            *leftovers(layers[:-1]),
        ],
    )
    check(machine, before, "two", "three", current="four")


# Fork points


def forked(host: EmbeddedHost, *, with_parent: bool = False) -> tuple[Machine, str, str, str]:
    """A machine that is off, whose snapshot `point` has two children; its layer, and those of both above it."""
    machine = host.make_machine()
    if with_parent:
        grow(machine, "root")
    grow(machine, "point", "left")
    shut_off(machine)
    fork(machine, "point")
    write(machine, 8)
    machine.handle.create()
    machine.virsh_take_disk_only("right")
    write(machine, 9)
    shut_off(machine)
    tree = machine.tree()
    assert set(tree.children("point")) == {"left", "right"}
    shared, left, right = (tree[name].disks[0].frozen for name in ("point", "left", "right"))
    assert shared
    assert left
    assert right
    return machine, shared, left, right


@pytest.mark.parametrize("with_parent", [True, False])
@pytest.mark.parametrize("live", [True, False])
def test_a_fork_point_is_pulled_into_every_child(host: EmbeddedHost, with_parent: bool, live: bool) -> None:
    """Running, the machine uses the right branch, above the layer that is pulled into on the left."""
    machine, shared, left, right = forked(host, with_parent=with_parent)
    before = machine.contents()
    parent = "root" if with_parent else None
    run_well(
        machine,
        [
            MergeLayers("vda", PULL, (left, shared), stack_of(left), is_live=False),
            MergeLayers("vda", PULL, (right, shared), stack_of(right), is_live=False),
            RecordLayers(
                moved={},
                removed=(shared,),
                parents={"left": parent, "right": parent},
                overlays={"root": {"vda": left}} if with_parent else {},
                revert_overlays={},
                forgotten=("point",),
            ),
            *leftovers([shared]),
        ],
    )
    if live:
        machine.handle.create()
    assert {machine.tree()[name].parent for name in ("left", "right")} == {parent}
    check_fork(machine, before)


def test_a_fork_point_is_pulled_into_one_child_and_takes_in_the_other(host: EmbeddedHost) -> None:
    machine, shared, left, right = forked(host)
    before = machine.contents()
    above_left = machine.tree()["left"].disks[0].overlay
    assert above_left is not None
    run_well(
        machine,
        [
            MergeLayers("vda", PULL, (right, shared), stack_of(right), is_live=False),
            MergeLayers("vda", COMMIT, (left, shared), stack_of(above_left), is_live=False),
            RecordLayers(
                moved={left: Layer(shared, "qcow2")},
                removed=(left,),
                parents={"left": None, "right": None},
                overlays={},
                revert_overlays={},
                forgotten=("point",),
            ),
            *leftovers([left]),
        ],
    )
    assert machine.tree()["left"].disks[0].frozen == shared
    check_fork(machine, before)


def test_a_branch_not_in_use_is_merged_while_the_machine_runs_on_the_other(host: EmbeddedHost) -> None:
    machine, shared, left, _right = forked(host)
    machine.handle.create()
    before = machine.contents()
    above_left = machine.tree()["left"].disks[0].overlay
    assert above_left is not None
    steps: list[Step] = [
        MergeLayers("vda", PULL, (above_left, left), stack_of(above_left), is_live=False),
        RecordLayers(
            moved={},
            removed=(left,),
            parents={},
            overlays={"point": {"vda": above_left}},
            revert_overlays={},
            forgotten=("left",),
        ),
        *leftovers([left]),
    ]
    run_well(machine, steps)
    assert machine.is_running
    assert unchanged(before, machine.contents(), "left")
    held = MergeLayers("vda", COMMIT, (above_left, shared), stack_of(above_left), is_live=False)
    operation = run(machine, [held])
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert shared in str(operation.error), "the machine reads it"
    assert unchanged(before, machine.contents(), "left")


def check_fork(machine: Machine, before: dict[str, dict[str, str]]) -> None:
    assert unchanged(before, machine.contents(), "point")
    assert machine.tree().current == "right"
    machine.check_images()
    check_with_libvirt(machine, before)


# Stopped in the middle


def is_in_the_middle(operation: Operation) -> bool:
    progress = operation.progress
    if progress is None or not progress.done or not progress.total:
        return False
    return progress.done < progress.total


LAYERS = [
    (COMMIT, True, "one"),
    (COMMIT, False, "one"),
    (PULL, True, "three"),
    (PULL, False, "one"),
    (COMMIT, True, "three"),
    (COMMIT, False, "three"),
]


@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_cancelled_in_the_middle(host: EmbeddedHost, way: MergeWay, live: bool, name: str) -> None:
    machine = big_machine(host)
    if not live:
        shut_off(machine)
    before = machine.contents()
    steps = steps_to_delete(machine, name, way, live=live)
    plan = machine.plan(Delete((name,), by_own_jobs=True))
    ways = {step.way for step in plan.steps if isinstance(step, MergeLayers)}
    assert ("merge-overwrites" in {warning.rule for warning in plan.warnings}) == (COMMIT in ways)
    told: list[Operation] = []
    operation = run(
        machine,
        steps,
        bandwidth=lambda: SLOW,
        on_progress=told.append,
        cancelled=lambda: bool(told) and is_in_the_middle(told[-1]),
    )
    assert operation.state is (OperationState.INTERRUPTED if way is COMMIT else OperationState.CANCELLED)
    assert operation.steps_done == 0
    progress = next(one.progress for one in reversed(told) if one.progress is not None)
    assert progress.can_cancel
    says = str(operation.error)
    assert ("overwritten in part" in says) == (f"mixture now, of no more use: “{name}”" in says) == (way is COMMIT)
    assert ("snaptree recover" in says) == (way is COMMIT)
    nothing_lost(machine, before, name if way is COMMIT else None)
    run_well(machine, steps_to_delete(machine, name, way, live=live))
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)


def big_machine(host: RealHost, directory: Path | None = None) -> Machine:
    """A machine whose layers hold more than what QEMU copies at once."""
    machine = host.make_machine(running=False, directory=directory)
    run_tool("qemu-img", "resize", "-q", "-f", "qcow2", str(machine.active_layers()["vda"]), str(64 * MIB))
    machine.handle.create()
    for number, name in enumerate(("one", "two", "three"), start=1):
        machine.write(number, offset=number * MIB, length=40 * MIB)
        machine.virsh_take_disk_only(name)
    machine.write(4, length=40 * MIB)
    return machine


def nothing_lost(machine: Machine, before: dict[str, dict[str, str]], being_deleted: str | None) -> None:
    assert helpers(machine.connection) == ()
    assert not jobs(machine)
    after = machine.contents()
    assert {name for name, content in before.items() if after.get(name) != content} <= {being_deleted}
    check_no_errors(machine)


def check_no_errors(machine: Machine) -> None:
    """No image is damaged. A QEMU that was killed may leave clusters that belong to nobody."""
    for path in machine.directory.iterdir():
        with contextlib.suppress(AssertionError):
            run_tool("qemu-img", "check", "-q", "-U", "-f", "qcow2", "-r", "leaks", str(path))
    if not machine.is_running:
        machine.check_images()


def test_the_speed_is_changed_on_the_way(host: EmbeddedHost) -> None:
    machine = big_machine(host)
    before = machine.contents()
    told: list[Operation] = []
    limit = SLOW

    def progress(operation: Operation) -> None:
        nonlocal limit
        told.append(operation)
        if is_in_the_middle(operation):
            limit = 0

    run_well(
        machine,
        steps_to_delete(machine, "one", COMMIT, live=True),
        bandwidth=lambda: limit or None,
        on_progress=progress,
    )
    assert any(map(is_in_the_middle, told))
    assert unchanged(before, machine.contents(), "one")


def test_a_guest_that_writes_as_fast_as_is_copied_is_noticed(host: EmbeddedHost) -> None:
    machine = big_machine(host)
    limit: int | None = SLOW
    written = 0
    remarks: list[str] = []

    def progress(operation: Operation) -> None:
        nonlocal limit, written
        if operation.progress is not None and is_in_the_middle(operation):
            if remark := operation.progress.remark:
                remarks.append(remark)
                limit = None
                return
            machine.write(written, offset=written % 60 * MIB, length=MIB)
            written += 1

    run_well(
        machine,
        steps_to_delete(machine, "three", COMMIT, live=True),
        bandwidth=lambda: limit,
        on_progress=progress,
    )
    assert "the guest writes as fast" in remarks[0]
    assert written
    machine.check_images()


def qemu_of(name: str) -> int:
    """The process of a machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                program, *arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"qemu" in program and any(each.startswith(f"guest={name},".encode()) for each in arguments):
                    return int(entry.name)
    raise AssertionError(f"no QEMU of {name}")


def kill_qemu(name: str) -> None:
    process = os.pidfd_open(qemu_of(name))
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], 10)
    finally:
        os.close(process)


@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_qemu_killed_in_the_middle(host: EmbeddedHost, way: MergeWay, live: bool, name: str) -> None:
    machine = big_machine(host)
    if not live:
        shut_off(machine)
    before = machine.contents()
    steps = steps_to_delete(machine, name, way, live=live)
    killed: list[str] = []

    def progress(operation: Operation) -> None:
        if is_in_the_middle(operation) and not killed:
            killed.append(machine.name if live else helpers(machine.connection)[0].name)
            kill_qemu(killed[0])

    operation = run(machine, steps, bandwidth=lambda: SLOW, on_progress=progress)
    assert killed
    assert operation.state is (OperationState.INTERRUPTED if way is COMMIT else OperationState.FAILED)
    assert "QEMU ended" in str(operation.error)
    nothing_lost(machine, before, name if way is COMMIT else None)
    assert not machine.is_running
    run_well(machine, steps_to_delete(machine, name, way, live=False))
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)
    machine.handle.create()


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("way", [COMMIT, PULL])
def test_what_was_merged_outlives_its_qemu(host: EmbeddedHost, way: MergeWay, pause: bool) -> None:
    """QEMU keeps tables of an image in memory: killed, it must have written them before anything is removed."""
    machine = host.make_machine()
    grow(machine, "one", "two")
    before = machine.contents()
    if pause:
        machine.handle.suspend()
    merge, *rest = steps_to_delete(machine, "two", way, live=True)
    run_well(machine, [merge])
    state = machine.handle.state()[0]
    assert state == (libvirt.VIR_DOMAIN_PAUSED if pause else libvirt.VIR_DOMAIN_RUNNING)
    kill_qemu(machine.name)
    until(lambda: not machine.is_running)
    run_well(machine, [merge, *rest], was_begun=True)
    assert unchanged(before, machine.contents(), "two")
    check_nothing_left(machine)


def test_a_pull_that_was_not_written_down_is_made_good(host: EmbeddedHost) -> None:
    """What is left when QEMU is killed in the instant after a pull: an image on nothing that misses what was pulled."""
    machine = host.make_machine()
    grow(machine, "one", "two")
    before = machine.contents()
    (merge, *rest) = steps_to_delete(machine, "two", PULL, live=False)
    shut_off(machine)
    assert isinstance(merge, MergeLayers)
    below = merge.stack_after[1]
    run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below.path, "-F", below.format, merge.merged)
    assert machine.contents() != before
    assert not is_merged(machine.connection, machine.handle, merge)
    assert isinstance(run(machine, [merge, *rest]).error, ChangedMeanwhileError)
    run_well(machine, [merge, *rest], was_begun=True)
    assert unchanged(before, machine.contents(), "two")
    assert is_merged(machine.connection, machine.handle, merge)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(mount(place, 200), check=False).returncode != 0:
        pytest.skip("only root may mount")
    yield place
    run_tool("umount", "--lazy", str(place))


def mount(place: Path, mebibytes: int, *more: str) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", ",".join([f"size={mebibytes}m", *more]), "snaptree-test", str(place)]


@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_a_full_disk_ends_a_merge_and_loses_nothing(
    host: EmbeddedHost, small_disk: Path, way: MergeWay, live: bool, name: str
) -> None:
    machine = big_machine(host, small_disk)
    if not live:
        shut_off(machine)
    before = machine.contents()
    used = sum(path.stat().st_blocks for path in small_disk.iterdir()) // 2048
    run_tool(*mount(small_disk, used + 1, "remount"))
    steps = steps_to_delete(machine, name, way, live=live)
    operation = run(machine, steps)
    assert operation.state is (OperationState.INTERRUPTED if way is COMMIT else OperationState.FAILED)
    assert operation.error is not None
    assert "No space left" in operation.error.summary
    left = "may be overwritten in part" if way is COMMIT else "All layers show what they showed"
    assert left in operation.error.hint
    assert "Free some space" in operation.error.hint
    run_tool(*mount(small_disk, 200, "remount"))
    nothing_lost(machine, before, name if way is COMMIT else None)
    run_well(machine, steps)
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)


# Far away


@contextlib.contextmanager
def connected(relay: Relay) -> Iterator[Connection]:
    connection = Connection(relay.uri)
    assert not connection.open().is_local
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.daemon
@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_on_a_host_far_away(daemon: LibvirtDaemon, way: MergeWay, live: bool, name: str) -> None:
    machine = big_machine(daemon)
    if not live:
        shut_off(machine)
    before = machine.contents()
    steps = steps_to_delete(machine, name, way, live=live)
    daemon.virsh("pool-create-as", "images", "dir", "--target", str(machine.directory))
    with far_away(daemon.socket) as relay, connected(relay) as connection:
        operation = run_plan(connection, plan_of(machine, steps))
        assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)


@pytest.mark.daemon
@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_the_link_breaks_in_the_middle(daemon: LibvirtDaemon, way: MergeWay, live: bool, name: str) -> None:
    """A job of the machine's own goes on, and is followed later; a helper ends with the link."""
    machine = big_machine(daemon)
    if not live:
        shut_off(machine)
    before = machine.contents()
    plan = plan_of(machine, steps_to_delete(machine, name, way, live=live))
    daemon.virsh("pool-create-as", "images", "dir", "--target", str(machine.directory))
    with far_away(daemon.socket) as relay:

        def progress(operation: Operation) -> None:
            if is_in_the_middle(operation):
                relay.cut()

        with connected(relay) as connection:
            operation = run_plan(connection, plan, bandwidth=lambda: SLOW, on_progress=progress)
        assert operation.state is OperationState.INTERRUPTED
        assert "connection" in str(operation.error)
        if live:
            assert jobs(machine)
        else:
            until(lambda: not helpers(machine.connection))
            assert unchanged(before, machine.contents() | {name: before[name]})
        with connected(relay) as connection:
            operation = run_plan(connection, plan, was_begun=True)
    assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)


@pytest.mark.daemon
@pytest.mark.parametrize(("way", "live", "name"), LAYERS)
def test_the_daemon_is_killed_in_the_middle(daemon: LibvirtDaemon, way: MergeWay, live: bool, name: str) -> None:
    machine = big_machine(daemon)
    if not live:
        shut_off(machine)
    before = machine.contents()
    plan = plan_of(machine, steps_to_delete(machine, name, way, live=live))

    def progress(operation: Operation) -> None:
        if is_in_the_middle(operation) and daemon.is_running:
            daemon.kill()

    operation = run_plan(machine.connection, plan, bandwidth=lambda: SLOW, on_progress=progress)
    assert operation.state is OperationState.INTERRUPTED
    daemon.start()
    machine = dataclasses.replace(machine, connection=daemon.connection)
    operation = run_plan(machine.connection, plan, was_begun=True)
    assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert unchanged(before, machine.contents(), name)
    check_nothing_left(machine)


# Found to be otherwise than planned


def test_doing_it_twice_does_nothing_more(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two", "three")
    for name, way, live in (("two", COMMIT, True), ("three", COMMIT, True), ("one", PULL, False)):
        if not live:
            shut_off(machine)
        before = machine.contents()
        steps = steps_to_delete(machine, name, way, live=live)
        for step in steps:
            run_well(machine, [step])
            run_well(machine, [step], was_begun=True)
            match step:
                case MergeLayers():
                    assert is_merged(machine.connection, machine.handle, step) or not live
                case RecordLayers():
                    assert is_recorded(machine.connection, machine.uuid, step)
        for step in steps:
            run_well(machine, [step], was_begun=True)
        assert unchanged(before, machine.contents(), name)


@pytest.mark.parametrize("live", [True, False])
def test_layers_changed_by_others_stop_it(host: EmbeddedHost, live: bool) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two")
    if not live:
        shut_off(machine)
    steps = steps_to_delete(machine, "one", COMMIT, live=live)
    if live:
        machine.virsh_take_disk_only("theirs")
    else:
        top = str(machine.active_layers()["vda"])
        run_tool("qemu-img", "rebase", "-f", "qcow2", "-b", stack_of(top)[2].path, "-F", "qcow2", top)
    before = machine.contents()
    files = {path: path.read_bytes() for path in machine.directory.iterdir()} if not live else {}
    operation = run(machine, steps)
    assert operation.steps_done == 0
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert machine.contents() == before
    assert files == ({path: path.read_bytes() for path in machine.directory.iterdir()} if not live else {})


def test_a_machine_started_or_stopped_meanwhile_stops_it(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two")
    live = steps_to_delete(machine, "one", COMMIT, live=True)
    off = steps_to_delete(machine, "one", COMMIT, live=False)
    before = machine.contents()
    assert isinstance(run(machine, off).error, ChangedMeanwhileError)
    shut_off(machine)
    assert isinstance(run(machine, live).error, ChangedMeanwhileError)
    assert machine.contents() == before


def test_a_block_job_of_others_stops_it(host: EmbeddedHost) -> None:
    machine = big_machine(host)
    steps = steps_to_delete(machine, "one", COMMIT, live=True)
    machine.handle.blockPull("vda", SLOW, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
    operation = run(machine, steps)
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert "block job" in str(operation.error)
    assert jobs(machine), "theirs goes on"
    machine.handle.blockJobAbort("vda")


@pytest.mark.parametrize("way", [COMMIT, PULL])
def test_internal_snapshots_are_never_merged_away(host: EmbeddedHost, way: MergeWay) -> None:
    machine = host.make_machine()
    grow(machine, "one")
    steps = steps_to_delete(machine, "one", way, live=False)
    shut_off(machine)
    run_tool("qemu-img", "snapshot", "-c", "precious", str(machine.active_layers()["vda"]))
    before = machine.contents()
    operation = run(machine, steps)
    assert operation.steps_done == 0
    assert "internal snapshots" in str(operation.error)
    assert machine.contents() == before
    assert "precious" in run_tool("qemu-img", "snapshot", "-l", str(machine.active_layers()["vda"]))


@pytest.mark.parametrize("live", [True, False])
def test_nothing_but_what_is_asked_for_is_merged(host: EmbeddedHost, live: bool) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two", "three")
    if not live:
        shut_off(machine)
    before = machine.contents()
    stack = stack_of(str(machine.active_layers()["vda"]))
    paths = [layer.path for layer in stack]
    for way, layers in ((PULL, (paths[1], paths[2])), (COMMIT, (paths[1], paths[3])), (PULL, (paths[0], paths[2]))):
        operation = run(machine, [MergeLayers("vda", way, layers, stack, is_live=live)])
        assert "Not merged" in str(operation.error)
    assert machine.contents() == before
    assert stack_of(paths[0]) == stack


# Helper machines


def test_a_helper_is_no_machine_of_the_users(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    grow(machine, "one")
    shut_off(machine)
    merge = steps_to_delete(machine, "one", PULL, live=False)[0]
    assert isinstance(merge, MergeLayers)
    listed = list_domains(host.connection)
    with helper_machine(host.connection, machine.handle, merge) as helper:
        assert list_domains(host.connection) == listed
        assert read_situation(host.connection, machine.uuid).dependants == {}
        (found,) = helpers(host.connection)
        assert (found.name, found.domain_uuid, found.target) == (helper.name(), machine.uuid, "vda")
        assert found.is_left is False, "we are still here"
        assert left_helpers(host.connection) == ()
        assert helper.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert helpers(host.connection) == ()


def test_a_helper_that_was_left_behind_is_found_and_ended(host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = big_machine(host)
    shut_off(machine)
    before = machine.contents()
    steps = steps_to_delete(machine, "one", PULL, live=False)
    merge = steps[0]
    assert isinstance(merge, MergeLayers)

    def leave_behind() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("snaptree.hosts.helper_machine.this_process", lambda: (2**22 + 1, 1.0))
            patch.setattr("snaptree.hosts.helper_machine._end", lambda handle: None)
            with helper_machine(host.connection, machine.handle, merge) as helper:
                helper.blockPull("vda", SLOW, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)

    leave_behind()
    (left,) = left_helpers(host.connection, machine.uuid)
    end_helper(host.connection, left)
    end_helper(host.connection, left)
    assert helpers(host.connection) == ()
    nothing_lost(machine, before, None)

    leave_behind()
    run_well(machine, steps)
    assert unchanged(before, machine.contents(), "one")
    check_nothing_left(machine)


# Records


def test_a_snapshot_taken_meanwhile_is_not_forgotten_with_its_parent(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    grow(machine, "one", "two")
    _, record, *_ = steps_to_delete(machine, "one", COMMIT, live=True)
    machine.virsh_take_disk_only("theirs")
    handle = machine.handle
    xml = handle.snapshotLookupByName("theirs").getXMLDesc()
    handle.snapshotCreateXML(
        xml.replace("<name>two</name>", "<name>one</name>", 1), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    )
    assert machine.tree()["theirs"].parent == "one"
    before = machine.contents()
    texts = {each.getName(): each.getXMLDesc() for each in handle.listAllSnapshots()}
    operation = run(machine, [record])
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert {each.getName(): each.getXMLDesc() for each in handle.listAllSnapshots()} == texts
    assert machine.contents() == before


def test_the_branch_in_use_is_recorded_where_the_fork_point_was(host: EmbeddedHost) -> None:
    """The machine went back to `point` and is there still: from now on it is `root` that it went back to."""
    machine = host.make_machine()
    grow(machine, "root", "point", "left")
    shut_off(machine)
    fork(machine, "point")
    write(machine, 8)
    before = machine.contents()
    tree = machine.tree()
    shared, left = tree["point"].disks[0].frozen, tree["left"].disks[0].frozen
    now = str(machine.active_layers()["vda"])
    assert shared
    assert left
    revert_overlays = (("vda", now),) if host.connection.host.external_snapshots else ()
    assert tree["point"].revert_overlays == revert_overlays
    run_well(
        machine,
        [
            MergeLayers("vda", PULL, (left, shared), stack_of(left), is_live=False),
            MergeLayers("vda", PULL, (now, shared), stack_of(now), is_live=False),
            RecordLayers(
                moved={},
                removed=(shared,),
                parents={"left": "root"},
                overlays={"root": {"vda": left}},
                revert_overlays={"root": {"vda": now}},
                forgotten=("point",),
            ),
            *leftovers([shared]),
        ],
    )
    tree = machine.tree()
    assert tree.current == "root"
    assert tree["root"].revert_overlays == revert_overlays
    assert tree["root"].disks[0].overlay == left
    assert unchanged(before, machine.contents(), "point")
    check_with_libvirt(machine, before)


def test_nothing_else_that_is_on_record_changes(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False, extra_devices="<graphics type='vnc' passwd='secret'/>")
    machine.handle.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        "<os id='http://example.org/os/12'/>",
        "libosinfo",
        "http://libosinfo.org",
    )
    machine.change(Take("one", capture=Capture.DISKS))
    machine.change(Take("two", capture=Capture.DISKS, description="<&> 'both'"))
    machine.change(Take("three", capture=Capture.DISKS))

    def recorded() -> list[str]:
        handle = machine.handle
        left = [snapshot for snapshot in handle.listAllSnapshots() if snapshot.getName() != "one"]
        left.sort(key=lambda snapshot: str(snapshot.getName()))
        return [
            handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE),
            *(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE) for snapshot in left),
        ]

    before = recorded()
    annotations = {snapshot.name: snapshot.annotations for snapshot in machine.tree()}
    run_well(machine, steps_to_delete(machine, "one", COMMIT, live=False))
    for old, new in zip(before, recorded(), strict=True):
        assert "passwd='secret'" in new
        assert ("<libosinfo:os xmlns:libosinfo=" in new) == ("<libosinfo:os xmlns:libosinfo=" in old)
        expected = [line for line in old.splitlines() if "/disk0." not in line]
        changed = [line for line in new.splitlines() if "/disk0." not in line]
        assert [line for line in changed if line not in expected] == []
    assert all(snapshot.annotations == annotations[snapshot.name] for snapshot in machine.tree())


# Files


def test_a_file_that_something_needs_is_not_removed(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    free = machine.directory / "free.qcow2"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", str(free), "1M")
    step = RemoveLeftover(str(free), "it was merged")

    overlay = machine.directory / "nobody-knows-me.qcow2"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "free.qcow2", "-F", "qcow2", str(overlay))
    assert "nobody-knows-me" in str(run(machine, [step]).error)
    overlay.unlink()

    alias = machine.directory / "alias.qcow2"
    alias.symlink_to(free)
    other = host.make_machine(backing=alias, running=False)
    assert other.name in str(run(machine, [step]).error)
    other.handle.undefine()

    assert free.exists()
    assert "regular file" in str(run(machine, [RemoveLeftover(str(alias), "")]).error)
    assert "regular file" in str(run(machine, [RemoveLeftover(str(machine.directory), "")]).error)
    assert alias.is_symlink()
    run_well(machine, [step, step])
    assert not free.exists()


# Coming to an end


@pytest.mark.parametrize("is_active", [True, False])
def test_a_merge_that_comes_no_nearer_to_its_end_is_said(is_active: bool) -> None:
    pace = _Pace(is_active=is_active)
    assert [pace.remark(100 - second, second) for second in range(10)] == [""] * 10
    remarks = [pace.remark(90, second) for second in range(10, 20)]
    assert remarks[0] == ""
    assert remarks[-1]
    assert ("guest" in remarks[-1]) == is_active
    assert [pace.remark(90 - second, second) for second in range(21, 24)][-1] == ""
