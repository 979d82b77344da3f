"""Takes whose disks, directories and names are chosen: what is taken is there, and what comes later goes on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.measuring import DirtyRate
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Capture, Delete, Revert, Take, places_of
from snaptree.plans.planner import make_plan
from tests.hosts.test_faults import fill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, NOW, EmbeddedHost, Machine, RealHost, run_tool
from tests.kit.relay import far_away

pytestmark = pytest.mark.qemu

DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY


def directories(host: RealHost, machine: Machine) -> tuple[Path, Path]:
    """For layers and for memory."""
    layers, memory = (host.directory / f"{machine.name}-{name}" for name in ("layers", "memory"))
    for each in (layers, memory):
        each.mkdir()
        host.give(each)
    return layers, memory


@pytest.mark.parametrize("running", [True, False])
def test_layers_and_memory_in_directories_of_their_own_are_reverted_to_and_deleted(
    host: EmbeddedHost, running: bool
) -> None:
    machine = host.make_machine(disks=("qcow2", "raw"), running=running)
    layers, memory = directories(host, machine)
    capture = Capture.DISKS_AND_MEMORY if running else Capture.DISKS
    machine.write(1)
    machine.change(Take("one", capture=capture, layers_in=str(layers), memory_in=str(memory) if running else ""))
    assert {path.name for path in layers.iterdir()} == {"disk0.one", "disk1.one"}
    assert {path.name for path in memory.iterdir()} == ({"disk0.one.mem"} if running else set())
    machine.write(2)
    machine.change(Take("two", capture=capture))
    assert set(machine.active_layers().values()) == {layers / "disk0.two", layers / "disk1.two"}, "they stay there"
    machine.write(3, target="vdb")
    before = machine.contents()
    machine.change(Revert("one"))
    after = machine.contents()
    (safety,) = after.keys() - before.keys()
    assert after == {**before, NOW: before["one"], safety: before[NOW]}
    machine.change(Delete(("two",)))
    machine.change(Delete(("one",)))
    assert machine.contents() == {NOW: before["one"], safety: before[NOW]}
    assert not list(memory.glob("*.one.mem")), "no file is left that nobody needs"
    machine.check_images()
    replace(machine, directory=layers).check_images()


def test_a_disk_is_left_out_while_the_others_go_elsewhere(host: EmbeddedHost) -> None:
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    layers, _ = directories(host, machine)
    machine.write(1, target="vdb")
    machine.change(Take("x", capture=Capture.DISKS, excluded_disks=("vdb",), layers_in=str(layers)))
    assert machine.active_layers() == {"vda": layers / "disk0.x", "vdb": machine.directory / "disk1.qcow2"}
    assert machine.contents()["x"].keys() == {"vda"}


def test_disks_of_the_same_file_name_get_layers_apart(host: EmbeddedHost) -> None:
    machine = host.make_machine(disks=("qcow2", "raw"), running=False)
    (machine.directory / "disk1.raw").rename(machine.directory / "disk0.raw")
    text = machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace("disk1.raw", "disk0.raw")
    host.connection.handle.defineXML(text)
    layers, _ = directories(host, machine)
    machine.change(Take("x", capture=Capture.DISKS, layers_in=str(layers)))
    assert {path.name for path in layers.iterdir()} == {"disk0.x.vda", "disk0.x.vdb"}
    assert machine.contents()["x"] == machine.contents()[NOW]


def test_names_of_layers_do_not_grow(host: EmbeddedHost) -> None:
    """A delete that merges upwards leaves the name of what it deleted in that of the layer."""
    machine = host.make_machine(running=False)
    image = machine.active_layers()["vda"]
    long = image.rename(image.with_name("d" * 240 + ".qcow2"))
    text = machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    host.connection.handle.defineXML(text.replace(str(image), str(long)))
    for number in range(4):
        machine.write(number)
        machine.change(Take(capture=Capture.DISKS))
        (name,) = machine.tree().snapshots
        layer = machine.active_layers()["vda"]
        assert len(layer.name) < 240
        assert layer.name.endswith(f".{name}")
        assert layer.name.count("snapshot-") == 1
        before = machine.contents()
        # As a delete that merges upwards leaves it.
        run_tool("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", str(layer))
        machine.handle.snapshotLookupByName(name).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
        assert machine.contents()[NOW] == before[NOW]


@pytest.mark.parametrize("running", [True, False])
def test_a_directory_that_is_not_there_is_noticed_before_anything_is_done(host: EmbeddedHost, running: bool) -> None:
    machine = host.make_machine(running=running)
    nowhere = machine.directory / "nowhere"
    assert "place-missing" in machine.spoken(Take("x", capture=Capture.DISKS, layers_in=str(nowhere)))
    with pytest.raises(libvirt.libvirtError):
        machine.virsh_take(
            "x", flags=DISK_ONLY, disks=f"<disks><disk name='vda'><source file='{nowhere}/x'/></disk></disks>"
        )
    assert machine.active_layers() == {"vda": machine.directory / "disk0.qcow2"}


def test_a_file_where_a_directory_should_be_is_none(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    (machine.directory / "file").touch()
    take = Take("x", capture=Capture.DISKS_AND_MEMORY, memory_in=str(machine.directory / "file"))
    assert "place-missing" in machine.spoken(take)


def test_what_makes_no_file_needs_no_directory(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    layers, _ = directories(host, machine)
    inside = Take("x", capture=Capture.INTERNAL, layers_in=str(layers))
    assert "place-unused" in machine.spoken(inside)
    assert "place-unused" in machine.spoken(Take("x", capture=Capture.DISKS, memory_in=str(layers)))


def test_files_that_are_in_the_other_directory_already_are_seen(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    layers, memory = directories(host, machine)
    (layers / "disk0.x").touch()
    (memory / "disk0.y.mem").touch()
    assert "file-exists" in machine.spoken(Take("x", capture=Capture.DISKS, layers_in=str(layers)))
    assert "file-exists" in machine.spoken(Take("y", capture=Capture.DISKS_AND_MEMORY, memory_in=str(memory)))


def test_layers_need_some_room_at_once(host: EmbeddedHost, small_disk: Path) -> None:
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    before = machine.contents()
    take = Take("x", capture=Capture.DISKS, layers_in=str(small_disk))
    plan = machine.plan(take)
    filler = fill(small_disk)
    assert "no-space-for-layers" in machine.spoken(take)
    filler.unlink()
    assert run_plan(host.connection, plan).error is None
    assert machine.contents() == before | {"x": before[NOW]}


def test_a_layer_that_cannot_grow_ends_what_the_guest_writes(host: EmbeddedHost, small_disk: Path) -> None:
    machine = host.make_machine()
    before = machine.contents()
    take = Take("x", capture=Capture.DISKS, layers_in=str(small_disk))
    assert "little-room-for-layers" not in machine.spoken(take)
    filler = fill(small_disk)
    assert "little-room-for-layers" in machine.spoken(take)
    machine.change(take)
    machine.write(1, length=MIB)
    assert machine.active_layers()["vda"].stat().st_blocks * 512 < MIB, "there was no room for it"
    filler.unlink()
    assert machine.contents()["x"] == before[NOW]


@pytest.mark.daemon
def test_a_directory_of_another_host_is_known_as_a_storage_pool(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine()
    layers, _ = directories(daemon, machine)
    take = Take("x", capture=Capture.DISKS, layers_in=str(layers))
    with far_away(daemon.socket) as relay:
        connection = Connection(relay.uri)
        connection.open()
        try:
            unseen = make_plan(take, read_situation(connection, machine.uuid, places_of(take)))
            assert "place-unseen" in {warning.rule for warning in unseen.warnings}
            daemon.virsh("pool-create-as", "layers", "dir", "--target", str(layers))
            seen = make_plan(take, read_situation(connection, machine.uuid, places_of(take)))
            assert "place-unseen" not in {warning.rule for warning in seen.warnings}
            assert seen.forecast.free
            assert run_plan(connection, unseen).error is None
        finally:
            connection.close()
    assert machine.active_layers() == {"vda": layers / "disk0.x"}


def test_what_a_guest_changes_is_measured_while_it_runs(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.handle.setMaxMemory(160 << 10)
    assert DirtyRate(machine.connection, machine.uuid).wait() is None
    machine.handle.create()
    assert DirtyRate(machine.connection, machine.uuid).wait() is not None
    machine.handle.destroy()


def test_of_little_ram_qemu_does_not_know_what_a_guest_changes(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    assert not DirtyRate(machine.connection, machine.uuid).start()
