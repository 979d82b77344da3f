"""Reverts and looks on a host whose images are there as storage volumes only: they go as they do here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snaptree.hosts import volumes
from snaptree.hosts.connection import Connection
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.images.versions import Remembered
from snaptree.plans.intention import Capture, Intention, Look, Revert, Take, take_back
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Plan
from snaptree.plans.planner import make_plan
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import NOW, Machine, run_tool
from tests.kit.relay import far_away

pytestmark = [pytest.mark.qemu, pytest.mark.daemon]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes, it reads at once."""
    monkeypatch.setattr("snaptree.images.versions._SETTLED_AFTER", -(10**10))
    monkeypatch.setattr(volumes, "_images", Remembered(100))


@contextmanager
def far(daemon: LibvirtDaemon) -> Iterator[Connection]:
    with far_away(daemon.socket) as relay:
        connection = Connection(relay.uri)
        assert not connection.open().is_local
        try:
            yield connection
        finally:
            connection.close()


def pool(daemon: LibvirtDaemon, machine: Machine) -> None:
    daemon.virsh("pool-create-as", "images", "dir", "--target", str(machine.directory))


def skip_if_internal_reverts_are_doubted(connection: Connection, capture: Capture) -> None:
    if capture is Capture.INTERNAL and connection.host.internal_revert_broken:
        pytest.skip("of a far libvirt 11.3.0 nobody can say whether its internal reverts were mended")


def planned(connection: Connection, machine: Machine, intention: Intention) -> Plan:
    return make_plan(intention, read_situation(connection, machine.uuid))


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("capture", [Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_a_far_revert_is_like_a_near_one(daemon: LibvirtDaemon, capture: Capture, running: bool) -> None:
    machine = daemon.make_machine(running=running)
    pool(daemon, machine)
    machine.write(1)
    machine.change(Take("good", capture=capture))
    machine.write(2)
    machine.change(Take("later", capture=capture))
    machine.write(3)
    before = machine.contents()
    with far(daemon) as connection:
        skip_if_internal_reverts_are_doubted(connection, capture)
        plan = planned(connection, machine, Revert("good"))
        assert not plan.is_refused, plan.refusals
        operation = run_plan(connection, plan)
    assert operation.error is None, operation.error
    after = machine.contents()
    (safety,) = set(after) - set(before)
    assert after[NOW] == before["good"]
    assert after[safety] == before[NOW]
    assert after["later"] == before["later"]
    assert machine.is_running == running
    machine.check_images()


def test_where_no_layer_can_be_made_the_plan_says_so(daemon: LibvirtDaemon) -> None:
    if daemon.connection.host.external_snapshots:
        pytest.skip("libvirt 9.9 and later make the layers of a revert themselves")
    machine = daemon.make_machine()
    machine.change(Take("good", capture=Capture.DISKS))
    with far(daemon) as connection:
        rules = {finding.rule for finding in planned(connection, machine, Revert("good")).refusals}
    assert "nowhere-for-new-layers" in rules
    assert machine.is_running


@pytest.mark.parametrize("capture", [Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_what_is_missing_far_away_is_missed_before_the_machine_is_stopped(
    daemon: LibvirtDaemon, capture: Capture
) -> None:
    """The memory file, and the layer below the one that was frozen: at the last moment, and when it is planned."""
    template = daemon.make_machine(running=False)
    base = template.active_layers()["vda"]
    machine = daemon.make_machine(backing=base)
    pool(daemon, machine)
    daemon.virsh("pool-create-as", "bases", "dir", "--target", str(base.parent))
    machine.change(Take("good", capture=capture))
    machine.change(Take("later", capture=capture))
    memory_file = machine.tree()["good"].memory_file
    with far(daemon) as connection:
        skip_if_internal_reverts_are_doubted(connection, capture)
        for file in filter(None, (base, None if memory_file is None else Path(memory_file))):
            away = file.with_name(f"{file.name}.away")
            plan = planned(connection, machine, Revert("good", take_safety_snapshot=False))
            assert not plan.is_refused, plan.refusals
            file.rename(away)
            operation = run_plan(connection, plan)
            assert operation.state is OperationState.FAILED
            assert operation.error is not None
            assert str(file) in operation.error.summary
            assert machine.is_running
            again = planned(connection, machine, Revert("good"))
            assert {"layer-missing", "memory-file-missing"} & {finding.rule for finding in again.refusals}
            away.rename(file)
        assert run_plan(connection, planned(connection, machine, Revert("good"))).error is None


def test_a_snapshot_that_its_image_does_not_hold_is_missed_far_away(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine(running=False)
    pool(daemon, machine)
    for name in ("good", "later"):
        machine.change(Take(name, capture=Capture.INTERNAL))
    with far(daemon) as connection:
        skip_if_internal_reverts_are_doubted(connection, Capture.INTERNAL)
        plan = planned(connection, machine, Revert("good", take_safety_snapshot=False))
        run_tool("qemu-img", "snapshot", "-d", "good", str(machine.active_layers()["vda"]))
        operation = run_plan(connection, plan)
        assert operation.state is OperationState.FAILED
        assert "good" in str(operation.error)
        refused = planned(connection, machine, Revert("good"))
    assert "not-in-image" in {finding.rule for finding in refused.refusals}


def test_a_look_far_away_stands_on_volumes(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine()
    pool(daemon, machine)
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS))
    machine.write(2)
    machine.change(Take("inside", capture=Capture.INTERNAL))
    before, files = machine.contents(), set(machine.directory.iterdir())
    with far(daemon) as connection:
        refused = planned(connection, machine, Look("inside"))
        assert [refusal.rule for refusal in refused.refusals] == ["look-not-copied-out"], refused.refusals
        assert "another host" in refused.refusals[0].reason
        operation = run_plan(connection, planned(connection, machine, Look("good", start=True)))
        assert operation.error is None, f"{operation.error} {operation.error.details}"
        uuid, removal = take_back(operation.plan)
        look = Machine(daemon.connection, "", uuid, machine.directory)
        assert look.is_running
        assert look.contents()[NOW] == before["good"]
        operation = run_plan(connection, planned(connection, look, removal))
        assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert machine.contents() == before
    assert set(machine.directory.iterdir()) == files
