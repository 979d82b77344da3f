"""Settings out of libvirt's XML: nothing is missed, nothing is told twice, and what is no setting is not told."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree import words
from snaptree.hosts.domain_xml import parse_as_written
from snaptree.hosts.layers import read_layers
from snaptree.hosts.setting_words import exact_size
from snaptree.hosts.settings import changes, compare_moments, recorded_as, recorded_in, xml_difference
from snaptree.model.errors import SnapTreeError
from snaptree.model.settings import Comparison, layers_of_one_disk
from snaptree.plans.intention import Capture, Revert, Take
from tests.kit.machines import MIB, EmbeddedHost, Machine

DOMAIN = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web-01</name>
  <uuid>7c0e4a3c-0000-4000-8000-000000000001</uuid>
  <genid>5c0e4a3c-0000-4000-8000-000000000001</genid>
  <title>Web server</title>
  <description>Serves the web</description>
  <metadata xmlns:snaptree='urn:snaptree:snapshot:1'>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://example.org/os/12'/>
    </libosinfo:libosinfo>
    <snaptree:snapshot of='a' pinned='yes'/>
  </metadata>
  <maxMemory slots='16' unit='KiB'>8388608</maxMemory>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>
  <vcpu placement='static' cpuset='0-3' current='2'>4</vcpu>
  <iothreads>1</iothreads>
  <cputune><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='2'/></cputune>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web-01_VARS.fd</nvram>
    <boot dev='hd'/>
    <boot dev='network'/>
  </os>
  <features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv><smm state='on'/></features>
  <cpu mode='custom' match='exact' check='partial'>
    <model fallback='allow'>Skylake-Client</model>
    <topology sockets='1' dies='1' cores='4' threads='1'/>
    <feature policy='require' name='vmx'/>
    <feature policy='disable' name='mpx'/>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <pm><suspend-to-mem enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/images/vda.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <iotune><read_bytes_sec>10485760</read_bytes_sec><write_iops_sec>100</write_iops_sec></iotune>
      <serial>WD-0001</serial>
      <boot order='1'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/data'/>
      <target dev='sda' bus='scsi'/>
      <shareable/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/a'><host name='ceph-1' port='6789'/><host name='ceph-2' port='6789'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/iso/debian.iso'/>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <model name='pcie-root-port'/>
      <target chassis='1' port='0x10'/>
    </controller>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default'/>
      <model type='virtio'/>
      <bandwidth><inbound average='1000' peak='5000' burst='1024'/></bandwidth>
      <link state='up'/>
      <mtu size='1500'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/>
      <source bridge='br0'/>
      <target dev='web0'/>
      <model type='e1000e'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <input type='tablet' bus='usb'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='spice' port='5901' autoport='no' keymap='de'><listen type='address' address='0.0.0.0'/></graphics>
    <sound model='ich9'/>
    <audio id='1' type='spice'/>
    <video><model type='qxl' ram='65536' vram='65536' heads='1' primary='yes'/></video>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source>
    </hostdev>
    <hostdev mode='subsystem' type='usb' managed='no'>
      <source startupPolicy='optional'><vendor id='0x046d'/><product id='0xc52b'/></source>
    </hostdev>
    <watchdog model='itco' action='reset'/>
    <memballoon model='virtio' autodeflate='on'/>
    <rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend></rng>
    <rng model='virtio'><backend model='builtin'/></rng>
  </devices>
  <seclabel type='none' model='apparmor'/>
  <qemu:commandline><qemu:arg value='-foo'/><qemu:arg value='-bar'/></qemu:commandline>
</domain>"""

# An attribute that says what an element is about: with another value, one thing went and another one came.
_TELLS_APART = {
    ("feature", "name"), ("timer", "name"), ("vcpupin", "vcpu"),
}  # fmt: skip

# What makes a disk another kind of thing altogether.
_MAKES_ANOTHER = {("disk", "type"), ("disk", "device")}

_NO_SETTING = {("snaptree:snapshot", "of"), ("snaptree:snapshot", "pinned"), ("domain", "xmlns:qemu")}


def told(before: str, after: str) -> tuple[str, ...]:
    """What differs between two definitions, in words. The raw XML differs if and only if anything does."""
    old, new = recorded_as(before, None), recorded_as(after, None)
    found = changes(old, new, lambda _one, _other: False)
    assert bool(xml_difference(old, new, "a", "b", lambda _one, _other: False)) == bool(found)
    return tuple(map(words.setting, found))


def domain_with(old: str, new: str) -> str:
    assert DOMAIN.count(old) == 1, old
    return DOMAIN.replace(old, new)


def _attributes() -> Iterator[tuple[int, str]]:
    for number, element in enumerate(parse_as_written(DOMAIN).iter()):
        # Under another namespace, SnapTree's element would be somebody else's.
        yield from ((number, name) for name in element.attrib if name != "xmlns:snaptree")


def _texts() -> list[int]:
    return [number for number, element in enumerate(parse_as_written(DOMAIN).iter()) if (element.text or "").strip()]


def changed(number: int, change: Callable[[ET.Element], None]) -> tuple[ET.Element, str]:
    """The domain with one element changed, and that element."""
    root = parse_as_written(DOMAIN)
    element = list(root.iter())[number]
    change(element)
    return element, ET.tostring(root, encoding="unicode")


@pytest.mark.parametrize(("number", "name"), list(_attributes()))
def test_each_attribute_that_changes_is_told_once(number: int, name: str) -> None:
    def change(element: ET.Element) -> None:
        element.set(name, "MiB" if name == "unit" else f"{element.get(name)}1")

    element, text = changed(number, change)
    key = element.tag, name
    lines = told(DOMAIN, text)
    if key in _MAKES_ANOTHER:
        assert lines
    else:
        expected = 0 if key in _NO_SETTING else 2 if key in _TELLS_APART else 1
        assert len(lines) == expected, lines


@pytest.mark.parametrize("number", _texts())
def test_each_text_that_changes_is_told_once(number: int) -> None:
    def change(element: ET.Element) -> None:
        element.text = f"{element.text}1"

    element, text = changed(number, change)
    assert len(told(DOMAIN, text)) == (0 if element.tag == "genid" else 1)


def test_each_element_that_goes_is_told() -> None:
    parents = {child: parent for parent in parse_as_written(DOMAIN).iter() for child in parent}
    for number in range(1, len(parents) + 1):
        root = parse_as_written(DOMAIN)
        gone = list(root.iter())[number]
        next(parent for parent in root.iter() if gone in list(parent)).remove(gone)
        text = ET.tostring(root, encoding="unicode")
        if gone.tag != "snaptree:snapshot":
            assert told(DOMAIN, text), gone.tag


@given(st.integers())
def test_order_without_meaning_is_no_change(seed: int) -> None:
    root = parse_as_written(DOMAIN)
    shuffle = random.Random(seed).shuffle
    for element in (root, root.find("features"), root.find("clock"), *root.findall("devices/disk")):
        assert element is not None
        children = list(element)
        shuffle(children)
        element[:] = children
    devices = root.find("devices")
    assert devices is not None
    children = list(devices)
    shuffle(children)
    devices[:] = children
    for element in root.iter():
        items = list(element.attrib.items())
        shuffle(items)
        element.attrib.clear()
        element.attrib.update(items)
    before, after = recorded_as(DOMAIN, None), recorded_as(ET.tostring(root, encoding="unicode"), None)
    assert changes(before, after) == ()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<memory unit='KiB'>4194304", "<memory unit='MiB'>2048", ["Memory: 4 GiB → 2 GiB"]),
        ("<memory unit='KiB'>4194304", "<memory unit='GiB'>4", []),
        (
            "<memory unit='KiB'>4194304</memory>\n  <currentMemory unit='KiB'>4194304",
            "<memory unit='KiB'>6291456</memory>\n  <currentMemory unit='KiB'>6291456",
            ["Memory: 4 GiB → 6 GiB"],
        ),
        ("current='2'>4<", "current='2'>8<", ["vCPUs: 4 → 8"]),
        ("machine='pc-q35-7.2'", "machine='pc-q35-8.2'", ["Machine type: pc-q35-7.2 → pc-q35-8.2"]),
        ("enabled='yes' name='secure-boot'", "enabled='no' name='secure-boot'", ["Secure boot: yes → no"]),
        ("<boot dev='hd'/>", "", ["Boot order: hd, network → network"]),
        ("cores='4'", "cores='2'", [
            "CPU topology: 1 socket, 1 die, 4 cores, 1 thread → 1 socket, 1 die, 2 cores, 1 thread"
        ]),
        ("<feature policy='require' name='vmx'/>", "", ["CPU feature vmx removed: require"]),
        ("<acpi/>", "", ["Feature acpi removed"]),
        ("<title>Web server</title>", "", ["Title removed: Web server"]),
        ("cache='none'", "cache='writeback'", ["Disk vda: cache: none → writeback"]),
        ("bus='scsi'", "bus='sata'", ["Disk sda: bus: scsi → sata"]),
        ("<readonly/>", "", ["CD-ROM sdb: read-only: yes → —"]),
        ("debian.iso", "fedora.iso", ["CD-ROM sdb: medium: /iso/debian.iso → /iso/fedora.iso"]),
        ("<source file='/iso/debian.iso'/>", "", ["CD-ROM sdb: medium: /iso/debian.iso → —"]),
        ("10485760", "20971520", ["Disk vda: read limit: 10 MiB/s → 20 MiB/s"]),
        ("<serial>WD-0001", "<serial>WD-2", ["Disk vda: serial number: WD-0001 → WD-2"]),
        ("network='default'", "network='dmz'", ["Network interface 52:54:00:00:00:01: network: default → dmz"]),
        ("<link state='up'/>", "<link state='down'/>", ["Network interface 52:54:00:00:00:01: link: up → down"]),
        ("52:54:00:00:00:02", "52:54:00:00:00:03", [
            "Network interface 52:54:00:00:00:02: MAC address: 52:54:00:00:00:02 → 52:54:00:00:00:03"
        ]),
        ("<sound model='ich9'/>", "", ["Sound removed: model ich9"]),
        ("bus='0x03'", "bus='0x04'", ["Host device pci 0000:03:00.0: source: pci 0000:03:00.0 → pci 0000:04:00.0"]),
        ("<watchdog model='itco' action='reset'/>", "", ["Watchdog removed: model itco, action reset"]),
        ("value='-bar'", "value='-baz'", ["qemu:commandline/qemu:arg#2@value: -bar → -baz"]),
        ("<on_crash>destroy", "<on_crash>preserve", ["At a crash: destroy → preserve"]),
        ("<disk type='block'", "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
         "<source file='/images/new.qcow2'/><target dev='vdc' bus='virtio'/></disk><disk type='block'",
         ["Disk vdc added: /images/new.qcow2 (qcow2), bus virtio"]),
    ],
)  # fmt: skip
def test_in_words(old: str, new: str, says: list[str]) -> None:
    assert list(told(DOMAIN, domain_with(old, new))) == says


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<domain type='kvm'", "<domain type='kvm' id='7'"),
        ("<sound model='ich9'/>", "<sound model='ich9'><alias name='sound0'/><address type='pci' slot='1'/></sound>"),
        ("<source network='default'/>", "<source network='default' portid='6f' bridge='virbr0'/><target dev='vnet7'/>"),
        ("<source file='/images/vda.qcow2'/>", "<source file='/images/vda.qcow2' index='2'/><backingStore/>"),
        ("<console type='pty'>", "<console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/>"),
        (
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>",
            "<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/org.qemu.guest_agent.0'/>"
            "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>",
        ),
        ("<vendor id", "<address bus='3' device='5'/><vendor id"),
        ("<seclabel", "<seclabel type='dynamic' model='dac'><label>+64055:+64055</label></seclabel><seclabel"),
        ("<on_poweroff>", "<resource><partition>/machine</partition></resource><on_poweroff>"),
        ("<snaptree:snapshot of='a' pinned='yes'/>", "<snaptree:snapshot of='b' safety='yes'/>"),
    ],
)  # fmt: skip
def test_what_libvirt_adds_and_snaptree_keeps_is_no_setting(old: str, new: str) -> None:
    assert told(DOMAIN, domain_with(old, new)) == ()


def test_an_alias_that_the_user_gave_is_a_setting() -> None:
    assert told(DOMAIN, domain_with("<boot order='1'/>", "<boot order='1'/><alias name='ua-root'/>")) == (
        "Disk vda: alias@name: — → ua-root",
    )


def test_ports_that_libvirt_chooses_are_no_settings() -> None:
    chosen = domain_with("port='5901' autoport='no'", "port='-1' autoport='yes'")
    assert told(chosen, chosen.replace("port='-1'", "port='5907'")) == ()
    assert len(told(DOMAIN, domain_with("port='5901'", "port='5907'"))) == 1


def test_layers_are_left_out_of_the_xml_too() -> None:
    layered = domain_with("<source file='/images/vda.qcow2'/>", "<source file='/images/vda.snap'/>")
    before, after = recorded_as(DOMAIN, None), recorded_as(layered, None)
    assert changes(before, after, lambda _one, _other: True) == ()
    assert xml_difference(before, after, "a", "b", lambda _one, _other: True) == ()
    assert told(DOMAIN, layered) == ("Disk vda: image: /images/vda.qcow2 (qcow2) → /images/vda.snap (qcow2)",)


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 2**20, 2**20 + 1024, 3 * 2**30, 2**40])
def test_sizes_that_differ_never_look_the_same(number: int) -> None:
    assert exact_size(number) != exact_size(number + 1)


def test_a_snapshot_that_says_nothing_of_its_machine_is_an_error() -> None:
    with pytest.raises(SnapTreeError, match="does not say"):
        recorded_in("<domainsnapshot><name>a</name></domainsnapshot>")


def test_a_running_machine_is_compared_as_it_is_defined_and_then_as_it_runs() -> None:
    def snapshot_of(domain: str, inactive: str) -> str:
        renamed = inactive.replace("<domain ", "<inactiveDomain ").replace("</domain>", "</inactiveDomain>")
        return f"<domainsnapshot><name>a</name>{domain}{renamed}</domainsnapshot>"

    grown = domain_with("<memory unit='KiB'>4194304", "<memory unit='KiB'>8388608")
    plugged = domain_with("<sound model='ich9'/>", "<sound model='ich9'/><sound model='usb'/>")
    before, after = recorded_in(snapshot_of(DOMAIN, DOMAIN)), recorded_in(snapshot_of(plugged, grown))
    assert [words.setting(change) for change in changes(before, after)] == [
        "Memory: 4 GiB → 8 GiB",
        "While running: Sound added: model usb",
    ]
    (heading,) = [line for line in xml_difference(before, after, "a", "b") if line.startswith("+++ b (running)")]
    assert heading


# Real machines


def compared(machine: Machine, before: str | None, after: str | None = None) -> Comparison:
    tree = machine.tree()
    same_disk = layers_of_one_disk(tree, read_layers(machine.connection, machine.uuid, tree))
    return compare_moments(machine.connection, machine.uuid, before, after, same_disk)


def redefine(machine: Machine, *edits: tuple[str, str]) -> None:
    """Edit a machine as `virsh edit` does."""
    text = machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    machine.connection.handle.defineXML(text)


INTERFACE = "<interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>"
PLUGGED = INTERFACE.replace("11:22:33", "44:55:66")
VNC = "<graphics type='vnc' autoport='yes' passwd='secret'/><serial type='pty'/>"
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


@pytest.mark.qemu
@pytest.mark.parametrize("capture", [Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_a_machine_whose_settings_changed_and_go_back(host: EmbeddedHost, capture: Capture) -> None:
    machine = host.make_machine(extra_devices=INTERFACE + VNC + CHANNEL)
    machine.change(Take(name="a", capture=capture))
    machine.write(1)
    machine.change(Take(name="b", capture=capture))
    for before, after in (("a", "b"), ("a", None), ("b", None)):
        same = compared(machine, before, after)
        assert (same.changes, same.xml) == ((), ()), "layers, aliases and ports are no settings"
    machine.handle.destroy()
    extra = machine.directory / "extra.raw"
    extra.write_bytes(bytes(MIB))
    host.give(extra)
    redefine(
        machine,
        ("unit='KiB'>8192", "unit='KiB'>16384"),
        ("<model type='virtio'/>", "<model type='e1000'/>"),
        ("</devices>", f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{extra}'/>"
         "<target dev='vdb' bus='virtio'/></disk></devices>"),
    )  # fmt: skip
    machine.handle.create()
    expected = {
        "Memory: 8 MiB → 16 MiB",
        "Network interface 52:54:00:11:22:33: model: virtio → e1000",
        f"Disk vdb added: {extra} (raw), bus virtio",
    }
    comparison = compared(machine, "a")
    assert set(map(words.setting, comparison.changes)) == expected
    assert any(line.startswith("+") and "16384" in line for line in comparison.xml)
    assert not any("secret" in line for line in comparison.xml)

    # A raw disk can't be in an internal snapshot of all disks: nobody asks for the present to be kept.
    intention = Revert("a", take_safety_snapshot=False)
    plan = machine.plan(intention)
    assert plan.settings == compared(machine, None, "a").changes
    assert len(plan.settings) == len(expected)
    (warning,) = [each for each in plan.warnings if each.rule == "settings-replaced"]
    assert "Memory" in warning.reason
    machine.change(intention)
    assert compared(machine, "a").changes == (), "after the revert the settings are as said"
    assert "settings-replaced" not in [warning.rule for warning in machine.plan(Revert("a")).warnings]


@pytest.mark.qemu
def test_what_was_plugged_in_while_it_runs_is_told(host: EmbeddedHost) -> None:
    machine = host.make_machine(extra_devices=INTERFACE + VNC + CHANNEL, running=False)
    redefine(machine, ("<clock", "<features><acpi/></features><clock"))  # without ACPI nothing can be plugged in
    machine.change(Take(name="off", capture=Capture.INTERNAL))
    machine.handle.create()
    assert compared(machine, "off").changes == ()
    machine.change(Take(name="a", capture=Capture.INTERNAL))
    machine.handle.updateDeviceFlags(
        INTERFACE.replace("</interface>", "<link state='down'/></interface>"), libvirt.VIR_DOMAIN_AFFECT_LIVE
    )
    assert [words.setting(change) for change in compared(machine, "a").changes] == [
        "While running: Network interface 52:54:00:11:22:33: link: — → down"
    ]
    machine.handle.attachDeviceFlags(PLUGGED, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    plugged = "While running: Network interface 52:54:00:44:55:66 added: model virtio"
    assert words.setting(compared(machine, "off").changes[-1]) == plugged
    assert words.setting(compared(machine, "a").changes[-1]) == plugged
    assert any(line.startswith("+") and "44:55:66" in line for line in compared(machine, "off").xml)
    (back,) = machine.plan(Revert("off")).settings
    assert words.setting(back) == plugged.replace("added", "removed")
    redefine(machine, ("unit='KiB'>8192", "unit='KiB'>16384"))
    assert [change.what for change in compared(machine, "a").changes][:2] == [
        "Memory",
        "While running: Network interface 52:54:00:11:22:33: link",
    ]
