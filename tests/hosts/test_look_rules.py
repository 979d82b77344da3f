"""Rules about machines that look at a snapshot, on real QEMU: what people get by hand, and what by SnapTree."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.domain_xml import parse, read_definition
from snaptree.plans.intention import Capture, Look, Take, Unlook
from snaptree.plans.plan import Plan
from tests.hosts.test_looking import looking_at, rules
from tests.hosts.test_refusals import SECURE
from tests.hosts.test_rules import (
    DISK_ONLY,
    LEAVES_OUT,
    chain_of,
    commit_by_hand,
    off,
    redefined,
    running,
    take_by_virsh,
    with_flash,
    with_uefi,
)
from tests.kit.machines import EmbeddedHost, Machine, digest, make_image, run_tool

pytestmark = pytest.mark.qemu

MAC = "52:54:00:11:22:33"


def overlay_by_hand(machine: Machine, snapshot: str) -> Path:
    (disk,) = machine.tree()[snapshot].disks
    assert disk.frozen is not None
    return make_image(machine.directory / f"{snapshot}-by-hand.qcow2", backing=Path(disk.frozen))


def defined_by_hand(machine: Machine, snapshot: str) -> str:
    """What a snapshot recorded, defined as another machine."""
    text = machine.handle.snapshotLookupByName(snapshot).getXMLDesc(SECURE)
    domain = parse(text).find("domain")
    assert domain is not None
    name, uuid = domain.find("name"), domain.find("uuid")
    assert name is not None
    assert uuid is not None
    name.text = f"{machine.name}-by-hand"
    domain.remove(uuid)
    handle = machine.connection.handle.defineXML(ET.tostring(domain, encoding="unicode"))
    try:
        return str(handle.XMLDesc())
    finally:
        handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def said_of_nvram(plan: Plan) -> str:
    (said,) = (each.reason for each in plan.warnings if each.rule == "look-nvram")
    return said


def test_what_two_machines_cannot_share(host: EmbeddedHost) -> None:
    """By hand they get the same directory, disk, address and UEFI variables."""
    devices = (
        f"<interface type='user'><mac address='{MAC}'/></interface>"
        f"<filesystem type='mount'><source dir='{host.directory}'/><target dir='shared'/></filesystem>"
    )
    machine = with_flash(host.make_machine(disks=("qcow2", "qcow2"), running=False, extra_devices=devices))
    variables = machine.directory / "variables.fd"
    take_by_virsh(DISK_ONLY, LEAVES_OUT.format("b"))(machine)
    variables.write_bytes(b"2" * variables.stat().st_size)
    shared = (f"'{host.directory}'", str(machine.active_layers()["vdb"]), MAC, str(variables))
    theirs = defined_by_hand(machine, "x")
    assert all(each in theirs for each in shared)

    look = Look("x", connect_networks=True)
    plan = machine.plan(look)
    assert {"look-devices-left-out", "look-disks-left-out", "look-networks-on", "look-nvram"} <= rules(plan)
    assert "are a copy of those of now, not those of “x”" in said_of_nvram(plan)
    ours = looking_at(machine, machine.change(look)).handle.XMLDesc()
    assert not any(each in ours for each in shared)
    assert "<interface" in ours
    assert "state='down'" not in ours
    own = read_definition(parse(ours)).nvram
    assert own is not None
    assert Path(own).read_bytes() == variables.read_bytes()


def test_uefi_variables_that_cannot_be_copied_are_made_anew(host: EmbeddedHost) -> None:
    machine = with_uefi(host, running=False)
    machine.virsh_take_disk_only("x")
    (machine.directory / "variables.fd").unlink()
    assert "are made anew, not those" in said_of_nvram(machine.plan(Look("x")))
    look = looking_at(machine, machine.change(Look("x", start=True)))
    own = read_definition(parse(look.handle.XMLDesc())).nvram
    assert own is not None
    assert Path(own).read_bytes() == (machine.directory / "code.fd").read_bytes(), "as the firmware's template is"


def test_a_look_starts_as_after_a_power_cut_and_only_what_was_made_for_it_goes(host: EmbeddedHost) -> None:
    machine = running(host)
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    before = {path.name for path in machine.directory.iterdir()}
    assert "look-without-memory" in machine.spoken(Look("one"))
    look = looking_at(machine, machine.change(Look("one", start=True)))
    assert look.handle.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]

    look.handle.undefine()
    assert look.spoken(Unlook()) == {"unlook-transient"}
    layer, text = look.active_layers()["vda"], look.handle.XMLDesc()
    look.handle.destroy()
    assert layer.exists(), "and only its definition says whose it was"
    other = make_image(look.directory / "other.raw", "raw")
    disk = f"<disk type='file'><source file='{other}'/><target dev='vdb' bus='virtio'/></disk>"
    host.connection.handle.defineXML(text.replace("</devices>", f"{disk}</devices>"))
    assert "unlook-keeps" in look.spoken(Unlook())
    look.change(Unlook())
    assert {path.name for path in machine.directory.iterdir()} == {*before, other.name}


def test_layers_that_do_not_show_any_more_what_was_there(host: EmbeddedHost) -> None:
    machine = chain_of("one", "two", "three")(host)
    before = machine.contents()["one"]["vda"]
    commit_by_hand(machine)
    assert "look-content-changed" in machine.spoken(Look("one"))
    overlay = overlay_by_hand(machine, "one")
    assert digest(overlay, "qcow2") != before
    machine.handle.destroy()
    (machine.directory / "disk0.qcow2").write_bytes(b"no image" * 1000)
    assert "look-layer-unreadable" in machine.spoken(Look("one"))
    run_tool("qemu-img", "info", "--backing-chain", str(overlay), accepting=(1,))


def test_an_overlay_needs_the_secret_of_what_it_stands_on(host: EmbeddedHost) -> None:
    machine = off(host)
    path = str(machine.active_layers()["vda"])
    secret = ("--object", "secret,id=it,data=it")
    # Not LUKS, for which QEMU first measures the processor: that takes seconds, and fails on some computers.
    options = "encrypt.format=aes,encrypt.key-secret=it"
    run_tool("qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, path, "8M")
    named = "<encryption format='luks'><secret type='passphrase' usage='it'/></encryption>"
    redefined(machine, f"<source file='{path}'/>", f"<source file='{path}'>{named}</source>")
    machine.virsh_take_disk_only("one")
    assert "look-encrypted" in machine.spoken(Look("one"))
    overlay = overlay_by_hand(machine, "one")
    reading = ("qemu-io", "-r", *secret, "-c", "read 0 1", "--image-opts")
    opened = f"driver=qcow2,file.filename={overlay}"
    run_tool(*reading, opened, accepting=(1,))
    run_tool(*reading, f"{opened},backing.encrypt.key-secret=it")


def test_a_machine_without_disks_has_nothing_to_show(host: EmbeddedHost) -> None:
    machine = host.make_machine(disks=())
    machine.virsh_take("one", memory=f"<memory snapshot='external' file='{machine.directory}/memory'/>")
    assert machine.spoken(Look("one")) == {"look-holds-nothing"}
    assert "<disk" not in defined_by_hand(machine, "one")
