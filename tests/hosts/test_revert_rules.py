"""What libvirt does in reverts that SnapTree refuses or warns of: each is planned first, then done by libvirt alone.

The refusal must come, and the harm as well: a rule that no longer speaks of anything real should go.
"""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

from snaptree.model.errors import ConnectionLostError
from snaptree.plans.intention import Capture, Revert, Take
from tests.hosts.test_refusals import (
    CURRENT,
    REDEFINE,
    SECURE,
    assert_refused,
    chain,
    forget_current,
    wait_for_block_job,
)
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import NOW, EmbeddedHost, Machine, run_tool, wait_for_the_next_second

pytestmark = pytest.mark.qemu

BARE = {"take_safety_snapshot": False}


@pytest.fixture
def reverts_external(host: EmbeddedHost) -> EmbeddedHost:
    if not host.connection.host.external_snapshots:
        pytest.skip("libvirt before 9.9 reverts to no external snapshot, so it can't do this harm")
    return host


def virsh_revert(machine: Machine, name: str, flags: int = 0) -> None:
    wait_for_the_next_second()
    machine.handle.revertToSnapshot(machine.handle.snapshotLookupByName(name), flags)


def test_without_a_current_snapshot_the_daemon_crashes(daemon: LibvirtDaemon) -> None:
    """Table 1. In a daemon of its own: it would take the tests along."""
    if not daemon.connection.host.external_snapshots:
        pytest.skip("libvirt before 9.9 reverts to no external snapshot, so it can't do this harm")
    machine = daemon.make_machine()
    for name in ("one", "two"):
        machine.virsh_take_disk_only(name)
    forget_current(machine)
    assert_refused(machine, Revert("one", take_safety_snapshot=False), "revert-without-current")
    with pytest.raises(libvirt.libvirtError):
        virsh_revert(machine, "one")
    with pytest.raises(ConnectionLostError):
        machine.tree()
    daemon.disconnect()


def test_with_the_wrong_current_snapshot_layers_are_unlinked_that_others_need(reverts_external: EmbeddedHost) -> None:
    """Table 2."""
    machine = chain(reverts_external, "one", "two", "three")
    text = machine.handle.snapshotLookupByName("one").getXMLDesc(SECURE)
    machine.handle.snapshotCreateXML(text, REDEFINE | CURRENT)
    assert_refused(
        machine, Revert("two", take_safety_snapshot=False), "current-does-not-own-disks", "layer-holds-snapshot"
    )
    frozen = Path(machine.tree()["two"].disks[0].frozen or "")
    with pytest.raises(libvirt.libvirtError, match="Cannot access backing file"):
        virsh_revert(machine, "two", libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)
    assert not frozen.exists(), "and with it all that stands on it"


def test_a_redefined_current_snapshot_forgets_which_layer_is_in_use(reverts_external: EmbeddedHost) -> None:
    """Table 3: the layer that a child stands on is unlinked, the one in use is left behind."""
    machine = chain(reverts_external, "one", "two")
    virsh_revert(machine, "one", libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)
    text = machine.handle.snapshotLookupByName("one").getXMLDesc(SECURE)
    assert "<revertDisks>" in text
    machine.handle.snapshotCreateXML(text, REDEFINE | CURRENT)
    assert not machine.tree()["one"].revert_overlays
    assert_refused(
        machine, Revert("two", take_safety_snapshot=False), "recorded-overlays-wrong", "layer-holds-snapshot"
    )
    frozen = Path(machine.tree()["two"].disks[0].frozen or "")
    virsh_revert(machine, "two")
    assert not frozen.exists(), "though the revert is said to have gone well"


def test_an_internal_revert_below_an_overlay_changes_what_stands_on_it(host: EmbeddedHost) -> None:
    """Table 6: libvirt says that all went well."""
    machine = host.make_machine(running=False)
    machine.virsh_take("internal")
    machine.write(1)
    machine.virsh_take_disk_only("external")
    before = machine.contents()["external"]
    assert_refused(machine, Revert("internal"), "written-image-has-overlays", "written-image-holds-snapshot")
    virsh_revert(machine, "internal")
    assert machine.contents()["external"] != before


def test_a_merge_by_hand_makes_a_revert_bring_back_something_else(reverts_external: EmbeddedHost) -> None:
    """Table 7, silently."""
    machine = chain(reverts_external, "one", "two", "three")
    before = machine.contents()["one"]
    layers = [disk.frozen for snapshot in machine.tree() for disk in snapshot.disks]
    machine.handle.blockCommit("vda", layers[0], layers[1], 0, 0)
    wait_for_block_job(machine)
    assert_refused(machine, Revert("one", take_safety_snapshot=False), "content-changed")
    virsh_revert(machine, "one")
    assert machine.contents()[NOW] != before


def test_a_managed_save_is_in_the_way_of_libvirt_too(host: EmbeddedHost) -> None:
    """Table 9, PEERS 10: forced, the saved memory is gone without having been asked for."""
    machine = host.make_machine(running=False)
    machine.virsh_take("good")
    machine.handle.create()
    machine.handle.managedSave()
    assert_refused(machine, Revert("good"), "managed-save")
    with pytest.raises(libvirt.libvirtError, match="managed save"):
        virsh_revert(machine, "good")
    machine.change(Revert("good", drop_managed_save=True))
    assert machine.tree().current == "good"


def test_a_managed_save_meets_a_disk_that_moved_on(host: EmbeddedHost) -> None:
    """Table 9: the layer that the snapshot froze is written to."""
    machine = host.make_machine()
    machine.handle.managedSave()
    assert_refused(machine, Take("one", capture=Capture.DISKS), "managed-save")
    machine.virsh_take_disk_only("one")
    frozen = machine.contents()["one"]
    machine.handle.create()
    machine.write(1)
    assert machine.contents()["one"] != frozen


def test_bitmaps_make_a_running_internal_revert_kill_the_machine(host: EmbeddedHost) -> None:
    """Table 12, PEERS 11."""
    machine = host.make_machine()
    machine.virsh_take("good")
    machine.handle.checkpointCreateXML("<domaincheckpoint><name>backup</name></domaincheckpoint>")
    assert_refused(machine, Revert("good"), "bitmaps-block-revert")
    with pytest.raises(libvirt.libvirtError):
        virsh_revert(machine, "good")
    assert not machine.is_running


@pytest.mark.parametrize("gone", ["memory", "layer"])
def test_what_is_missing_is_noticed_when_the_machine_is_gone(reverts_external: EmbeddedHost, gone: str) -> None:
    """Table 13, PEERS 3: an external snapshot."""
    machine = reverts_external.make_machine()
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    machine.change(Take("two", capture=Capture.DISKS))
    one = machine.tree()["one"]
    file = Path((one.memory_file if gone == "memory" else one.disks[0].frozen) or "")
    file.rename(f"{file}.away")
    assert_refused(machine, Revert("one"), "memory-file-missing", "layer-missing")
    assert machine.is_running
    with pytest.raises(libvirt.libvirtError):
        virsh_revert(machine, "one")
    assert not machine.is_running


def test_a_missing_internal_snapshot_is_noticed_when_the_machine_is_gone(host: EmbeddedHost) -> None:
    """Table 13: an internal one, with the memory."""
    machine = host.make_machine()
    machine.virsh_take("good")
    image = str(machine.active_layers()["vda"])
    machine.handle.destroy()
    run_tool("qemu-img", "snapshot", "-d", "good", image)
    machine.handle.create()
    assert_refused(machine, Revert("good"), "not-in-image")
    with pytest.raises(libvirt.libvirtError):
        virsh_revert(machine, "good")
    assert not machine.is_running


def test_libvirt_before_9_9_has_no_external_revert(host: EmbeddedHost) -> None:
    """Table 14: SnapTree has."""
    if host.connection.host.external_snapshots:
        pytest.skip("libvirt 9.9 and later revert to external snapshots themselves")
    machine = chain(host, "one", "two")
    with pytest.raises(libvirt.libvirtError, match="external snapshot"):
        virsh_revert(machine, "one")
    before = machine.contents()
    machine.change(Revert("one"))
    assert machine.contents()[NOW] == before["one"]


def test_a_name_that_qemu_takes_for_a_number_brings_back_another_snapshot(host: EmbeddedHost) -> None:
    """Table 17, section 9: silently."""
    machine = host.make_machine(running=False)
    machine.write(1)
    machine.virsh_take("first")
    machine.write(2)
    machine.virsh_take("1")
    machine.write(3)
    before = machine.contents()
    assert_refused(machine, Revert("1"), "named-like-an-id")
    virsh_revert(machine, "1")
    assert machine.contents()[NOW] == before["first"] != before["1"]


def test_names_that_break_qemu_kill_the_machine(host: EmbeddedHost) -> None:
    """Table 17: a quote. Where QEMU is told a name as part of a command, it does not get through."""
    machine = host.make_machine()
    try:
        machine.virsh_take("two&quot;quotes")
    except libvirt.libvirtError:
        pytest.skip("this libvirt takes no snapshot of that name while the machine runs")
    plan = machine.plan(Revert('two"quotes'))
    assert "name-breaks-monitor" in {finding.rule for finding in plan.refusals}
    try:
        virsh_revert(machine, 'two"quotes')
    except libvirt.libvirtError:
        assert not machine.is_running


def test_a_snapshot_of_the_disks_alone_leaves_the_machine_off(reverts_external: EmbeddedHost) -> None:
    """Table 18."""
    machine = chain(reverts_external, "one")
    plan = machine.plan(Revert("one", take_safety_snapshot=False))
    assert "ends-shut-off" in {finding.rule for finding in plan.warnings}
    virsh_revert(machine, "one")
    assert not machine.is_running


def test_a_disk_left_out_gets_a_layer_all_the_same(reverts_external: EmbeddedHost) -> None:
    """Table 18."""
    machine = reverts_external.make_machine(disks=("qcow2", "qcow2"))
    machine.change(Take("partly", capture=Capture.DISKS, excluded_disks=("vdb",)))
    plan = machine.plan(Revert("partly", take_safety_snapshot=False))
    assert "disks-not-rolled-back" in {finding.rule for finding in plan.warnings}
    image = machine.active_layers()["vdb"]
    virsh_revert(machine, "partly")
    assert machine.active_layers()["vdb"] != image


def test_a_disk_added_since_is_dropped_and_its_file_stays(host: EmbeddedHost) -> None:
    """Table 18."""
    machine = host.make_machine(running=False)
    machine.virsh_take("before")
    added = machine.directory / "added.qcow2"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", str(added), "1M")
    machine.handle.attachDeviceFlags(
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{added}'/><target dev='vdb'/></disk>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    plan = machine.plan(Revert("before", take_safety_snapshot=False))
    (warning,) = [finding for finding in plan.warnings if finding.rule == "disks-dropped"]
    assert str(added) in warning.reason
    virsh_revert(machine, "before")
    assert "vdb" not in machine.active_layers()
    assert added.exists()


def test_what_was_written_since_is_lost_for_good(reverts_external: EmbeddedHost) -> None:
    """Section 0, number 3: the layer in use is unlinked."""
    machine = chain(reverts_external, "one", "two")
    layer = machine.active_layers()["vda"]
    plan = machine.plan(Revert("one", take_safety_snapshot=False))
    assert "present-state-is-lost" in {finding.rule for finding in plan.warnings}
    virsh_revert(machine, "one")
    assert not layer.exists()


def test_checkpoints_stay_listed_and_no_backup_can_use_them(reverts_external: EmbeddedHost) -> None:
    """PEERS 11, section 6."""
    machine = reverts_external.make_machine()
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    machine.handle.checkpointCreateXML("<domaincheckpoint><name>backup</name></domaincheckpoint>")
    plan = machine.plan(Revert("good", take_safety_snapshot=False))
    assert "checkpoints-break" in {finding.rule for finding in plan.warnings}
    virsh_revert(machine, "good")
    assert [checkpoint.getName() for checkpoint in machine.handle.listAllCheckpoints()] == ["backup"]
    target = machine.directory / "backup.qcow2"
    with pytest.raises(libvirt.libvirtError):
        machine.handle.backupBegin(
            "<domainbackup><incremental>backup</incremental><disks>"
            f"<disk name='vda' type='file'><target file='{target}'/></disk></disks></domainbackup>",
            None,
        )
