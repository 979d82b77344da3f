"""Snapshot XML, read and written, without a host."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.hosts.snapshot_xml import ANNOTATIONS_NAMESPACE, read_snapshot, take_xml, with_annotations
from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskSnapshot,
    DomainState,
    Impact,
    Mark,
    MemorySnapshot,
    SnapshotDisk,
    SnapshotKind,
)
from snaptree.plans.plan import Freeze, TakeSnapshot

EXTERNAL = """
<domainsnapshot>
  <name>before-upgrade</name>
  <description>before the upgrade to 16</description>
  <state>running</state>
  <parent><name>base</name></parent>
  <creationTime>1795374117</creationTime>
  <memory snapshot='external' file='/vm/mem.save'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/vm/a.mem'/>
    </disk>
    <disk name='vdb' snapshot='no'/>
  </disks>
  <revertDisks>
    <disk name='vda' snapshot='external' type='file'><source file='/vm/a.1795374119'/></disk>
  </revertDisks>
  <domain type='qemu'>
    <name>web</name>
    <uuid>df91bfbd-45b9-4ab9-a1c9-bd92ec8f9fe4</uuid>
    <memory unit='KiB'>16384</memory>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2'/><source file='/vm/a.ext'/>
        <backingStore type='file'><format type='raw'/><source file='/vm/a.img'/></backingStore>
        <target dev='vda'/>
      </disk>
      <disk type='file' device='disk'>
        <driver name='qemu' type='raw'/><source file='/vm/data.img'/><target dev='vdb'/>
      </disk>
    </devices>
  </domain>
  <inactiveDomain type='qemu'><name>web</name><uuid>df91bfbd-45b9-4ab9-a1c9-bd92ec8f9fe4</uuid></inactiveDomain>
</domainsnapshot>
"""


def test_every_fact_of_an_external_snapshot_is_read() -> None:
    snapshot = read_snapshot("before-upgrade", EXTERNAL)
    assert snapshot.parent == "base"
    assert snapshot.created == 1795374117
    assert snapshot.state is DomainState.RUNNING
    assert snapshot.description == "before the upgrade to 16"
    assert snapshot.memory is MemorySnapshot.EXTERNAL
    assert snapshot.memory_file == "/vm/mem.save"
    assert snapshot.nominal_memory == 16 * 2**20
    assert snapshot.disks == (
        SnapshotDisk("vda", DiskSnapshot.EXTERNAL, "/vm/a.ext", "/vm/a.mem", "qcow2"),
        SnapshotDisk("vdb", DiskSnapshot.NO, "/vm/data.img", None, "raw"),
    )
    assert snapshot.revert_overlays == (("vda", "/vm/a.1795374119"),)
    assert snapshot.kind is SnapshotKind.EXTERNAL
    assert snapshot.consistency is Consistency.MEMORY
    assert not snapshot.problem


def test_a_disk_may_be_named_by_its_source() -> None:
    xml = EXTERNAL.replace("<disk name='vdb' snapshot='no'/>", "<disk name='/vm/data.img' snapshot='internal'/>")
    snapshot = read_snapshot("before-upgrade", xml)
    assert snapshot.disks[1] == SnapshotDisk("vdb", DiskSnapshot.INTERNAL, "/vm/data.img", None, "raw")
    assert snapshot.kind is SnapshotKind.MIXED


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("", "cannot be read"),
        ("<domainsnapshot><name>x", "cannot be read"),
        ("<domainsnapshot><name>x</name></domainsnapshot>", "no <domain>"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><domainsnapshot>&unknown;</domainsnapshot>", "cannot be read"),
    ],
)
def test_xml_without_the_parts_we_read_is_a_snapshot_with_a_problem(xml: str, says: str) -> None:
    snapshot = read_snapshot("x", xml)
    assert snapshot.name == "x"
    assert says in snapshot.problem


@given(st.text())
def test_no_text_at_all_raises(xml: str) -> None:
    assert read_snapshot("x", xml).problem


@given(st.data())
def test_xml_with_anything_cut_out_is_read_or_has_a_problem(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(EXTERNAL)))
    end = data.draw(st.integers(start, len(EXTERNAL)))
    snapshot = read_snapshot("before-upgrade", EXTERNAL[:start] + EXTERNAL[end:])
    assert snapshot.name == "before-upgrade"


ANNOTATIONS = Annotations(
    pinned=Mark("björn <b>", 1_790_000_000),
    known_good=Mark(),
    consistency=Consistency.FILESYSTEM,
    taken_by="björn <b>",
    safety=True,
    impact=Impact(1.5, paused=0.312, wrote=0),
    group="nightly & co",
    schedule="nightly",
)


def test_annotations_come_back_and_nothing_else_changes() -> None:
    annotated = with_annotations(EXTERNAL, ANNOTATIONS)
    snapshot = read_snapshot("before-upgrade", annotated)
    assert snapshot.annotations == ANNOTATIONS
    assert snapshot.consistency is Consistency.FILESYSTEM
    assert with_annotations(annotated, ANNOTATIONS) == annotated, "written twice is written once"
    root = ET.fromstring(annotated)
    elements = root.findall(f".//{{{ANNOTATIONS_NAMESPACE}}}snapshot")
    assert len(elements) == 2, "in <domain> and in <inactiveDomain>"
    for domain in (*root.findall("domain"), *root.findall("inactiveDomain")):
        metadata = domain.find("metadata")
        assert metadata is not None
        domain.remove(metadata)
    assert ET.canonicalize(ET.tostring(root), strip_text=True) == ET.canonicalize(EXTERNAL, strip_text=True)


def test_metadata_of_other_programs_is_kept() -> None:
    theirs = "<metadata><a:b xmlns:a='urn:a'>c</a:b></metadata><memory unit='KiB'>16384</memory>"
    annotated = with_annotations(EXTERNAL.replace("<memory unit='KiB'>16384</memory>", theirs), ANNOTATIONS)
    assert ET.fromstring(annotated).findtext("domain/metadata/{urn:a}b") == "c"
    assert read_snapshot("before-upgrade", annotated).annotations == ANNOTATIONS


@pytest.mark.parametrize("took", ["soon", "-1", "inf", "nan", ""])
def test_an_impact_that_says_nothing_is_none(took: str) -> None:
    annotated = with_annotations(EXTERNAL, ANNOTATIONS).replace('took="1.500"', f'took="{took}"')
    assert read_snapshot("before-upgrade", annotated).annotations.impact is None


def test_annotations_that_a_revert_carried_into_the_next_snapshot_are_not_believed() -> None:
    carried = with_annotations(EXTERNAL, ANNOTATIONS).replace("<name>before-upgrade</name>", "<name>next</name>")
    assert read_snapshot("next", carried).annotations == Annotations()


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))


@given(name=names, description=names, path=names)
def test_what_is_asked_for_is_what_libvirt_reads(name: str, description: str, path: str) -> None:
    step = TakeSnapshot(
        name=name,
        description=description,
        memory=MemorySnapshot.EXTERNAL,
        memory_file=f"/vm/{path}.mem",
        disks={"vda": DiskSnapshot.EXTERNAL, "vdb": DiskSnapshot.NO},
        overlays={"vda": f"/vm/{path}"},
        quiesce=Freeze.NO,
        consistency=Consistency.MEMORY,
        expected_current=None,
    )
    root = ET.fromstring(take_xml(step))
    assert root.findtext("name") == name
    assert (root.findtext("description") or "") == description
    memory = root.find("memory")
    assert memory is not None
    assert memory.attrib == {"snapshot": "external", "file": f"/vm/{path}.mem"}
    vda, vdb = root.findall("disks/disk")
    source = vda.find("source")
    assert source is not None
    assert (vda.get("name"), vda.get("snapshot"), source.get("file")) == ("vda", "external", f"/vm/{path}")
    assert vdb.attrib == {"name": "vdb", "snapshot": "no"}


LAID_OUT_BY_LIBVIRT = EXTERNAL.replace(
    "    </devices>\n  </domain>",
    "      <controller type='usb' index='0'/>\n      <disk_like/>\n    </devices>\n  </domain>",
)


def test_what_follows_the_last_disk_makes_no_difference() -> None:
    whole = read_snapshot("before-upgrade", EXTERNAL)
    assert read_snapshot("before-upgrade", LAID_OUT_BY_LIBVIRT) == whole
    assert read_snapshot("before-upgrade", " ".join(LAID_OUT_BY_LIBVIRT.split())) == whole, "on one line"
    in_metadata = LAID_OUT_BY_LIBVIRT.replace(
        "<memory unit='KiB'>16384</memory>",
        "<metadata><x:y xmlns:x='urn:x'>\n    <devices>\n      </devices>\n  </x:y></metadata><memory>16384</memory>",
    )
    assert read_snapshot("before-upgrade", in_metadata) == whole
