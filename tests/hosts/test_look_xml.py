"""The definition of a machine that looks at a snapshot: the recorded one, without what two machines can't share."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from types import MappingProxyType

import pytest

from snaptree.hosts.domain_xml import parse
from snaptree.hosts.look_xml import Original, look_xml, nvram_of, read_mark, shared_devices
from snaptree.model.errors import SnapTreeError
from snaptree.plans.plan import Layer, MakeLook

UUID = "11111111-0000-4000-8000-000000000001"
ORIGINAL = Original("db-01", "22222222-0000-4000-8000-000000000002")
STEP = MakeLook(
    snapshot="yesterday",
    machine="peek",
    uuid=UUID,
    disks=MappingProxyType({"vda": "/images/peek-vda.qcow2"}),
    bases=MappingProxyType({"vda": Layer("/images/db.raw", "raw")}),
    connect_networks=False,
    nvram="/nvram/peek_VARS.fd",
)
DOMAIN = """
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db-01</name>
  <uuid>22222222-0000-4000-8000-000000000002</uuid>
  <genid>33333333-0000-4000-8000-000000000003</genid>
  <title>The one</title>
  <metadata>
    <a:b xmlns:a='urn:someone:else'>kept</a:b>
    <snaptree:snapshot xmlns:snaptree='urn:snaptree:snapshot:1' of='yesterday'/>
  </metadata>
  <os><type>hvm</type><loader type='pflash'>/ovmf</loader>
    <nvram type='file' template='/ovmf.vars'><source file='/nvram/db-01_VARS.fd'/></nvram></os>
  <sysinfo type='smbios'><system><entry name='uuid'>22222222-0000-4000-8000-000000000002</entry>
    <entry name='serial'>x</entry></system></sysinfo>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
      <source file='/images/db.raw' index='1'><reservations managed='yes'/></source>
      <backingStore/><target dev='vda' bus='virtio'/><shareable/><serial>S1</serial></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/images/scratch.raw'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/images/shared.raw'/><target dev='vdc'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/iso/there.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/iso/gone.iso'/><target dev='sdb'/><readonly/></disk>
    <disk type='file' device='floppy'><source file='/iso/there.img'/><target dev='fda'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='tap-db'/>
      <link state='up'/><virtualport type='openvswitch'><parameters interfaceid='x' profileid='y'/></virtualport>
    </interface>
    <interface type='hostdev'><source><address type='pci'/></source></interface>
    <graphics type='vnc' port='5901' autoport='no' websocket='5700'><listen type='socket' socket='/run/vnc'/></graphics>
    <serial type='tcp'><source mode='bind' host='0' service='4000'/><protocol type='raw'/><log file='/log'/></serial>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>
    <channel type='unix'><source mode='bind' path='/run/db-01.agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='file'><source path='/run/c'/><target type='virtio' name='c'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <hostdev mode='subsystem' type='usb'/>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='x' service='1'/></backend></rng>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='dynamic' model='dac'><label>+1:+1</label><imagelabel>+1:+1</imagelabel></seclabel>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline>
</domain>"""
SNAPSHOT = f"<domainsnapshot><name>yesterday</name>{DOMAIN}</domainsnapshot>"


def made(step: MakeLook = STEP, snapshot: str = SNAPSHOT, *, has_nvram: bool = True) -> ET.Element:
    return parse(look_xml(snapshot, step, ORIGINAL, has_nvram=has_nvram, is_there=lambda path: "gone" not in path))


def test_nothing_of_the_other_machine_is_used_but_read() -> None:
    text = ET.tostring(made(), encoding="unicode")
    for shared in (
        "22222222-0000-4000-8000-000000000002</uuid>",
        "33333333",
        "/images/db.raw",
        "/images/scratch.raw",
        "gone.iso",
        "52:54:00",
        "tap-db",
        "interfaceid",
        "5901",
        "5700",
        "/run/",
        "/log",
        "service",
        "hostdev",
        "filesystem",
        "tpm",
        "egd",
        "commandline",
        "/nvram/db-01",
        "+1:+1",
        "shareable",
        "backingStore",
    ):
        assert shared not in text, shared


def test_what_it_keeps() -> None:
    domain = made()
    assert domain.get("id") is None
    assert domain.findtext("metadata/{urn:someone:else}b") == "kept"
    assert domain.find("metadata/{urn:snaptree:snapshot:1}snapshot") is None
    disks = {disk.find("target").get("dev"): disk for disk in domain.findall("devices/disk")}  # type: ignore[union-attr]  # each has one
    assert list(disks) == ["vda", "vdc", "sda", "sdb", "fda"]
    first = disks["vda"]
    assert first.find("source").attrib == {"file": "/images/peek-vda.qcow2"}  # type: ignore[union-attr]  # it was set
    assert first.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}  # type: ignore[union-attr]  # as above
    assert first.findtext("serial") == "S1"
    assert all(disks[name].find("readonly") is not None for name in ("vdc", "sda", "sdb", "fda"))
    assert disks["sdb"].find("source") is None
    assert [link.get("state") for link in domain.findall("devices/interface/link")] == ["down"]
    assert [serial.get("type") for serial in domain.findall("devices/serial")] == ["pty"]
    assert [channel.get("type") for channel in domain.findall("devices/channel")] == ["unix", "spicevmc"]
    assert domain.findtext("os/nvram") == "/nvram/peek_VARS.fd"
    assert domain.find("sysinfo/system/entry[@name='serial']") is not None
    assert domain.find("sysinfo/system/entry[@name='uuid']") is None


def test_connected_networks_have_no_link_state() -> None:
    assert made(replace(STEP, connect_networks=True)).find("devices/interface/link") is None


def test_uefi_variables_that_could_not_be_copied_are_libvirts_to_make() -> None:
    nvram = made(has_nvram=False).find("os/nvram")
    assert nvram is not None
    assert nvram.text is None
    assert nvram.get("template") == "/ovmf.vars"
    assert nvram_of(SNAPSHOT) == "/nvram/db-01_VARS.fd"


def test_the_mark_says_what_is_looked_at_and_what_was_made() -> None:
    domain = made()
    mark = read_mark(domain)
    assert mark is not None
    assert (mark.snapshot, mark.domain, mark.domain_uuid) == ("yesterday", "db-01", ORIGINAL.uuid)
    assert mark.files == ("/images/peek-vda.qcow2",)
    uuid = domain.find("uuid")
    assert uuid is not None
    uuid.text = ORIGINAL.uuid
    assert read_mark(domain) is None, "a clone was not made for it"


def test_a_look_at_a_look_carries_one_mark() -> None:
    again = ET.tostring(made(), encoding="unicode").replace("/images/peek-vda.qcow2", "/images/db.raw")
    snapshot = f"<domainsnapshot>{again.replace('qcow2', 'raw')}</domainsnapshot>"
    domain = made(replace(STEP, machine="second", uuid="44444444-0000-4000-8000-000000000004"), snapshot)
    assert len(domain.findall("metadata/{urn:snaptree:look:1}looks-at")) == 1
    assert read_mark(domain) is not None


def test_the_definition_of_the_next_start_is_taken() -> None:
    inactive = DOMAIN.replace("<domain ", "<inactiveDomain ").replace("</domain>", "</inactiveDomain>")
    inactive = inactive.replace("<serial>S1</serial>", "<serial>S2</serial>")
    snapshot = SNAPSHOT.replace("</domainsnapshot>", f"{inactive}</domainsnapshot>")
    assert made(snapshot=snapshot).findtext("devices/disk/serial") == "S2"


def test_what_two_machines_cannot_have_is_told_in_words() -> None:
    assert shared_devices(SNAPSHOT) == (
        "devices of the host",
        "directories of the host",
        "the TPM",
        "arguments given to QEMU itself",
    )
    assert shared_devices("<domainsnapshot><domain><devices><disk/></devices></domain></domainsnapshot>") == ()
    assert shared_devices("<hostdev") == ()


def test_another_base_than_was_planned_stops_it() -> None:
    with pytest.raises(SnapTreeError, match="other"):
        made(replace(STEP, bases=MappingProxyType({"vda": Layer("/images/other.raw", "raw")})))
