"""What of two descriptions of a machine differs: parts are paired, layers of one disk are one disk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import DomainLayers, Image
from snaptree.model.figures import exact
from snaptree.model.settings import DiskImage, Part, SettingChange, compare, layers_of_one_disk
from snaptree.model.tree import SnapshotTree
from tests.ui.values import chain, layers_for, snapshot


def part(kind: str, name: str = "", image: DiskImage | None = None, /, **settings: str) -> Part:
    return Part(kind, name, f"{kind} {name}".strip(), settings, "summary", "name", image)


_parts = st.lists(
    st.builds(
        Part,
        st.sampled_from(["", "disk", "rng"]),
        st.sampled_from(["", "a", "b"]),
        st.just("part"),
        st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=2),
        st.just("it"),
        st.just("name"),
        st.none() | st.builds(DiskImage, st.sampled_from("pq"), st.just("raw")),
    ),
    max_size=5,
)


@given(_parts, st.randoms())
def test_the_same_in_any_order_has_no_changes(parts: list[Part], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' own Random
    assert compare(parts, shuffled, lambda _one, _other: False) == ()


@given(_parts, _parts)
def test_what_came_goes_the_other_way_round(before: list[Part], after: list[Part]) -> None:
    there = compare(before, after, lambda _one, _other: False)
    back = compare(after, before, lambda _one, _other: False)
    assert sorted((change.after or "", change.before or "") for change in there) == sorted(
        (change.before or "", change.after or "") for change in back
    )
    assert bool(there) == bool(back)


def test_a_part_that_came_or_went_is_one_change() -> None:
    old, new = [part("disk", "vda", bus="virtio")], [part("disk", "vda", bus="virtio"), part("disk", "vdb", bus="scsi")]
    assert compare(old, new) == (SettingChange("disk vdb", None, "summary"),)
    assert compare(new, old) == (SettingChange("disk vdb", "summary", None),)


def test_of_parts_that_nothing_tells_apart_the_equal_ones_pair() -> None:
    one, two, three = part("rng", model="a"), part("rng", model="b"), part("rng", model="c")
    assert compare([one, two], [two]) == (SettingChange("rng", "summary", None),)
    assert compare([one, two], [two, three]) == (SettingChange("rng: model", "a", "c"),)


def test_what_only_changed_its_name_is_the_same_part() -> None:
    assert compare([part("interface", "52:54", model="virtio")], [part("interface", "52:55", model="virtio")]) == (
        SettingChange("interface 52:54: name", "52:54", "52:55"),
    )
    assert len(compare([part("interface", "52:54", model="virtio")], [part("interface", "52:55", model="e1000")])) == 2


def test_images_count_only_where_they_are_no_layers_of_one_disk() -> None:
    old = [part("disk", "vda", DiskImage("/a.raw", "raw"))]
    new = [part("disk", "vda", DiskImage("/b.qcow2", "qcow2"))]
    assert compare(old, new) == (), "nobody knows"
    assert compare(old, new, lambda _one, _other: True) == ()
    assert compare(old, new, lambda _one, _other: False) == (
        SettingChange("disk vda: image", "/a.raw (raw)", "/b.qcow2 (qcow2)"),
    )
    probed = [part("disk", "vda", DiskImage("/a.raw", "qcow2"))]
    assert compare(old, probed) == (SettingChange("disk vda: image", "/a.raw (raw)", "/a.raw (qcow2)"),)


def test_snapshots_and_reverts_make_layers_of_one_disk() -> None:
    every = [*chain(3), snapshot("side", "s1", days=0.5)]
    tree = SnapshotTree.build(every, "side")
    same_disk = layers_of_one_disk(tree, layers_for(tree))
    assert same_disk("/vm/disk.qcow2", "/vm/s3.qcow2")
    assert same_disk("/vm/side.qcow2", "/vm/s3.qcow2")
    assert not same_disk("/vm/disk.qcow2", "/vm/other.qcow2")
    assert same_disk("/vm/other.qcow2", "/vm/other.qcow2")


def test_an_overlay_that_no_snapshot_names_is_a_layer_by_what_it_stands_on() -> None:
    tree = SnapshotTree.build(chain(1), "s1")
    of_a_revert = Image("/vm/disk.1700", "qcow2", exact(1), backing="/vm/disk.qcow2")
    assert layers_of_one_disk(tree, DomainLayers((), {of_a_revert.path: of_a_revert}))("/vm/disk.1700", "/vm/s1.qcow2")


def test_a_template_below_two_disks_makes_them_no_one_disk() -> None:
    tree = SnapshotTree.build(chain(1), "s1")
    images = {
        path: Image(path, "qcow2", exact(1), backing="/vm/template.qcow2")
        for path in ("/vm/disk.qcow2", "/vm/clone.qcow2")
    }
    assert not layers_of_one_disk(tree, DomainLayers((), images))("/vm/disk.qcow2", "/vm/clone.qcow2")
