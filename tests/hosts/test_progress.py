"""What is told of a change on its way: in the bytes that were forecast, never backwards, no faster than was allowed."""

from __future__ import annotations

import libvirt
import pytest

from snaptree.hosts.layers import analysed, read_layers
from snaptree.hosts.merging import MergeProgress, merge_progress
from snaptree.hosts.rates import Rate
from snaptree.hosts.running import run_plan
from snaptree.images.copy_map import CopyMap
from snaptree.plans.intention import Capture, Delete, Take
from snaptree.plans.operation import Operation, Progress
from snaptree.plans.plan import MergeLayers, MergeWay
from tests.hosts.test_merging import COMMIT, PULL, plan_of, shut_off, steps_to_delete
from tests.kit.machines import MIB, EmbeddedHost, Machine, run_tool

pytestmark = pytest.mark.qemu

SECONDS = 1.7
"""So long a merge takes at the limit that is set."""
PIECE = 512 * 1024
"""QEMU copies so many bytes at a time, however slow it shall be."""


def sparse_machine(host: EmbeddedHost) -> Machine:
    """A machine whose disk is large, and whose layers hold little of it here and there, in part the same."""
    machine = host.make_machine(running=False)
    run_tool("qemu-img", "resize", "-q", "-f", "qcow2", str(machine.active_layers()["vda"]), str(512 * MIB))
    for number, name in enumerate(("one", "two", "three", ""), start=1):
        for place in range(6):
            machine.write(number, offset=(83 * place + 7 * number * (place % 2)) * MIB, length=MIB)
        if name:
            machine.virsh_take_disk_only(name)
    machine.handle.create()
    return machine


def forecast(machine: Machine, step: MergeLayers) -> int:
    """What the analysis says that a merge copies."""
    layers = analysed(machine.connection, read_layers(machine.connection, machine.uuid, machine.tree()))
    bounds = layers.overlaps[step.layers[0]].merge(step.layers[-1], step.layers[0], step.merged)
    return bounds.copies_most


def told(operations: list[Operation]) -> list[Progress]:
    return [one.progress for one in operations if one.progress is not None and one.progress.total]


@pytest.mark.parametrize(
    ("way", "live", "name"),
    [
        (COMMIT, True, "two"),
        (COMMIT, False, "two"),
        (PULL, True, "three"),
        (PULL, False, "two"),
        (COMMIT, True, "three"),
    ],
)
def test_a_merge_is_told_in_the_bytes_that_were_forecast(
    host: EmbeddedHost, way: MergeWay, live: bool, name: str
) -> None:
    machine = sparse_machine(host)
    if not live:
        shut_off(machine)
    steps = steps_to_delete(machine, name, way, live=live)
    step = steps[0]
    assert isinstance(step, MergeLayers)
    copies = forecast(machine, step)
    limit = int(copies / SECONDS)
    seen: list[Operation] = []
    operation = run_plan(machine.connection, plan_of(machine, steps), on_progress=seen.append, bandwidth=lambda: limit)
    assert operation.error is None, operation.error
    all_told = told(seen)
    assert {progress.total for progress in all_told} == {copies}
    done = [progress.done or 0 for progress in all_told]
    assert done == sorted(done)
    assert any(0 < each < copies for each in done)
    assert copies - PIECE <= done[-1] <= copies
    rates = [progress.rate for progress in all_told if progress.rate]
    assert rates
    assert max(rates) <= 1.25 * limit
    assert min(progress.seconds_left for progress in all_told if progress.seconds_left is not None) < 0.5
    machine.check_images()


def test_what_libvirt_merges_is_told_in_the_same_bytes(host: EmbeddedHost) -> None:
    machine = sparse_machine(host)
    (above,) = (disk for disk in machine.tree()["one"].disks)
    assert above.overlay is not None
    assert above.frozen is not None
    copies = forecast(machine, MergeLayers("vda", COMMIT, (above.overlay, above.frozen), (), is_live=True))
    seen: list[Operation] = []
    plan = machine.plan(Delete(("one",)))
    assert not any(isinstance(step, MergeLayers) for step in plan.steps)
    operation = run_plan(machine.connection, plan, on_progress=seen.append)
    assert operation.error is None, operation.error
    assert {progress.total for progress in told(seen)} <= {copies}, "unless it was over before anybody looked"
    assert all(progress.share is None for progress in told(seen))


def test_a_job_says_more_if_it_is_known_what_it_copies() -> None:
    holes = CopyMap(100 * MIB, 50 * MIB, (0, 0, 7 * MIB))
    commit = {"type": libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, "cur": 75 * MIB, "end": 100 * MIB}
    assert merge_progress(commit, holes) == MergeProgress(7 * MIB // 2, 7 * MIB)
    assert merge_progress(commit, None) == MergeProgress(75 * MIB, 100 * MIB, is_share=True)
    active = commit | {"type": libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT}
    assert merge_progress(active, None) == MergeProgress(75 * MIB, 100 * MIB)
    assert merge_progress(active | {"cur": 0, "end": 1}, None).total == 0, "it has not counted yet"


def test_memory_is_told_to_its_end(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    seen: list[Operation] = []
    plan = machine.plan(Take("saved", Capture.DISKS_AND_MEMORY))
    operation = run_plan(machine.connection, plan, on_progress=seen.append)
    assert operation.error is None, operation.error
    for progress in told(seen):
        assert 0 <= (progress.done or 0) <= (progress.total or 0)


class Clock:
    """Says what time it is."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_that_of_late() -> None:
    clock = Clock()
    rate = Rate(clock)

    def after(seconds: float, done: int) -> float | None:
        clock.now += seconds
        return rate.measure(done)

    assert after(0, 0) is None
    assert after(5, 0) is None
    assert after(0.1, PIECE) is None, "how long that took nobody saw"
    assert after(0.5, 2 * PIECE) is None
    assert after(0.5, 3 * PIECE) == pytest.approx(2 * PIECE)
    assert after(0.25, 3 * PIECE) == pytest.approx(2 * PIECE / 1.25)
    for _ in range(20):
        faster = after(1, rate._seen[-1][1] + 100 * PIECE)
    assert faster == pytest.approx(100 * PIECE), "a limit was lifted"
    for _ in range(20):
        slower = after(1, rate._seen[-1][1])
    assert slower is not None
    assert slower < 11 * PIECE
    assert after(1, 5) is None, "something else began"
