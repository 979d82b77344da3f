"""What QEMU has open is not removed, whatever libvirt knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import libvirt_qemu
import pytest

from snaptree.hosts.image_locks import is_open_in_qemu
from snaptree.hosts.leftovers import remove_leftover
from snaptree.model.errors import ChangedMeanwhileError
from snaptree.plans.plan import RemoveLeftover
from tests.kit.machines import EmbeddedHost, Machine, make_image

pytestmark = pytest.mark.qemu


def qmp(machine: Machine, execute: str, **arguments: str) -> object:
    command = json.dumps({"execute": execute, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(machine.handle, command, 0))
    assert "error" not in answer, answer
    return answer["return"]


def test_images_are_open_while_their_machine_runs(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.virsh_take_disk_only("s")
    (active,) = machine.active_layers().values()
    (base,) = machine.directory.glob("disk0.qcow2")
    stranger = make_image(machine.directory / "stranger.qcow2")
    assert [is_open_in_qemu(str(path)) for path in (active, base, stranger)] == [True, True, False]
    machine.handle.destroy()
    assert not is_open_in_qemu(str(active))
    with pytest.raises(FileNotFoundError):
        is_open_in_qemu(str(machine.directory / "none.qcow2"))


def test_a_layer_that_a_machine_moved_to_behind_libvirts_back_is_not_removed(host: EmbeddedHost) -> None:
    """A daemon that dies between QEMU's switch of a disk and noting it down leaves just that behind."""
    machine = host.make_machine()
    overlay = machine.directory / "disk0.unknown"
    (active,) = machine.active_layers().values()
    nodes = qmp(machine, "query-named-block-nodes")
    assert isinstance(nodes, list)
    node = next(each["node-name"] for each in nodes if each["file"] == str(active) and each["drv"] == "qcow2")
    switch = {"node-name": node, "snapshot-file": str(overlay), "snapshot-node-name": "unknown", "format": "qcow2"}
    qmp(machine, "blockdev-snapshot-sync", **switch)
    leftover = RemoveLeftover(str(overlay), "what was interrupted left it behind")
    with pytest.raises(ChangedMeanwhileError, match=r"a QEMU has .* open"):
        remove_leftover(machine.connection, machine.handle, leftover)
    assert overlay.exists()
    machine.handle.destroy()
    remove_leftover(machine.connection, machine.handle, leftover)
    assert not Path(overlay).exists()
