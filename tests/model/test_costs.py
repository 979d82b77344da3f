"""Costs as they are told: a machine is drawn as its images and who holds them, the figures are read off."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.costs import DomainCosts, domain_costs, host_disk
from snaptree.model.estate import (
    DiskChain,
    DiskSnapshot,
    DomainLayers,
    DomainState,
    Image,
    InternalSnapshot,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import NOTHING, Confidence, Figure, exact, unknown
from snaptree.model.tree import SnapshotTree


def images(**sizes: int) -> dict[str, Image]:
    """Images on top of each other, the bottom first: `base=10, top=3`."""
    found: dict[str, Image] = {}
    below = None
    for name, size in sizes.items():
        found[name] = Image(name, "qcow2", exact(size), backing=below)
        below = name
    return found


def external(name: str, parent: str | None, frozen: str, overlay: str = "", created: int = 0) -> Snapshot:
    disk = SnapshotDisk("vda", DiskSnapshot.EXTERNAL, frozen, overlay or None)
    return Snapshot(name, parent, created, DomainState.DISK_ONLY, disks=(disk,))


def internal(name: str, parent: str | None, image: str) -> Snapshot:
    disk = SnapshotDisk("vda", DiskSnapshot.INTERNAL, image)
    return Snapshot(name, parent, 0, DomainState.RUNNING, memory=MemorySnapshot.INTERNAL, disks=(disk,))


def costs_of(
    snapshots: list[Snapshot],
    found: dict[str, Image],
    *chains: DiskChain,
    current: str | None = None,
    memory: dict[str, Figure] | None = None,
) -> DomainCosts:
    tree = SnapshotTree.build(snapshots, current or (snapshots[-1].name if snapshots else None))
    return domain_costs(tree, DomainLayers(chains, found, memory or {}))


def vda(*layers: str) -> DiskChain:
    return DiskChain("vda", layers)


def test_a_straight_external_chain() -> None:
    costs = costs_of(
        [external("a", None, "base"), external("b", "a", "one")],
        images(base=100, one=10, two=1),
        vda("two", "one", "base"),
    )
    assert {name: cost.written for name, cost in costs.snapshots.items()} == {"a": exact(100), "b": exact(10)}
    assert costs.now == exact(1)
    assert costs.disk == exact(111)
    assert costs.memory == NOTHING
    assert not costs.snapshots["a"].frees.is_known


def test_no_snapshots() -> None:
    costs = costs_of([], images(base=100, clone=5), vda("clone", "base"))
    assert costs.now == exact(5)
    assert costs.disk == exact(105)


def test_the_template_below_the_first_snapshot_is_not_written_by_it() -> None:
    costs = costs_of([external("a", None, "clone")], images(base=100, clone=5, top=1), vda("top", "clone", "base"))
    assert costs.snapshots["a"].written == exact(5)
    assert costs.disk == exact(106)


def test_a_layer_whose_snapshot_was_forgotten_belongs_to_the_next() -> None:
    """Deleting only the metadata of a snapshot leaves its layer in the chain."""
    costs = costs_of(
        [external("a", None, "base"), external("c", "a", "two")],
        images(base=100, one=10, two=4, three=2, four=1),
        vda("four", "three", "two", "one", "base"),
    )
    assert costs.snapshots["c"].written == exact(14)
    assert costs.now == exact(3)


def test_a_branch_that_is_not_live_is_counted_down_to_its_bottom() -> None:
    found = images(base=100, one=10, two=1)
    found["side"] = Image("side", "qcow2", exact(7), backing="between")
    found["between"] = Image("between", "qcow2", exact(3), backing="base")
    costs = costs_of(
        [external("a", None, "base"), external("b", "a", "one"), external("c", "a", "side")],
        found,
        vda("two", "one", "base"),
        current="b",
    )
    assert costs.disk == exact(121)
    assert costs.snapshots["c"].written == exact(10)


def test_an_image_reached_by_two_paths_counts_once() -> None:
    found = images(base=100, top=1)
    found["base"] = replace(found["base"], identity=(1, 2))
    found["link"] = replace(found["base"], path="link")
    costs = costs_of([external("a", None, "link")], found, vda("top", "base"))
    assert costs.disk == exact(101)
    assert costs.now == exact(1)
    assert host_disk([costs, costs_of([], {"link": found["link"]}, vda("link"))]) == exact(101)


def test_machines_on_one_base_share_it() -> None:
    first = costs_of([], images(base=100, one=1), vda("one", "base"))
    second = costs_of([], images(base=100, two=2), vda("two", "base"))
    assert host_disk([first, second]) == exact(103)
    assert host_disk([]) == NOTHING


def test_a_host_with_an_unknown_machine_is_unknown_with_its_reason() -> None:
    broken = costs_of([], {}, DiskChain("vda", (), "it is in no storage pool"))
    assert host_disk([costs_of([], images(base=1), vda("base")), broken]) == unknown("it is in no storage pool")


def test_internal_snapshots_are_unknown_without_an_analysis() -> None:
    table = (InternalSnapshot("1", "a", 50, 0),)
    found = {"disk": Image("disk", "qcow2", exact(100), internal_snapshots=table)}
    costs = costs_of([internal("a", None, "disk")], found, vda("disk"))
    assert not costs.snapshots["a"].written.is_known
    assert not costs.now.is_known
    assert costs.disk == exact(100)
    assert costs.memory == Figure(50, Confidence.UPPER_BOUND, "size in the image's snapshot table")


def test_a_lying_snapshot_table_cannot_claim_more_than_the_image() -> None:
    table = (InternalSnapshot("1", "a", 1 << 63, 0),)
    found = {"disk": Image("disk", "qcow2", exact(100), internal_snapshots=table)}
    assert costs_of([internal("a", None, "disk")], found, vda("disk")).memory.bytes == 100


def test_internal_snapshots_that_libvirt_forgot_make_a_layer_unknown() -> None:
    found = images(base=100, top=1)
    found["base"] = replace(found["base"], internal_snapshots=(InternalSnapshot("1", "forgotten", 0, 0),))
    costs = costs_of([external("a", None, "base")], found, vda("top", "base"))
    assert not costs.snapshots["a"].written.is_known
    assert costs.disk == exact(101)


def test_saved_memory_that_no_image_holds_is_unknown() -> None:
    assert not costs_of([internal("a", None, "disk")], images(disk=1), vda("disk")).memory.is_known
    broken = {"disk": Image("disk", "qcow2", exact(1), problem="broken")}
    assert not costs_of([internal("a", None, "disk")], broken, vda("disk")).memory.is_known


def test_memory_files() -> None:
    one = replace(external("a", None, "base"), memory=MemorySnapshot.EXTERNAL, memory_file="/ram")
    found = images(base=10, top=1)
    assert costs_of([one], found, vda("top", "base"), memory={"/ram": exact(7)}).memory == exact(7)
    assert not costs_of([one], found, vda("top", "base")).memory.is_known
    nameless = replace(one, memory_file=None)
    assert "names no memory file" in costs_of([nameless], found, vda("top", "base")).memory.how


def test_a_missing_image_makes_its_snapshot_unknown_and_takes_no_bytes() -> None:
    found = images(base=100, one=10, two=1)
    found["one"] = Image("one", "qcow2", unknown("no such file: one"), problem="no such file: one", is_missing=True)
    costs = costs_of([external("a", None, "base"), external("b", "a", "one")], found, vda("two"))
    assert costs.snapshots["a"].written == exact(100)
    assert costs.snapshots["b"].written == unknown("no such file: one")
    assert costs.disk == exact(101), "what is left of the machine is known"


def test_an_image_that_was_not_looked_at_is_unknown() -> None:
    costs = costs_of([external("a", None, "gone")], images(top=1), vda("top"))
    assert not costs.snapshots["a"].written.is_known
    assert not costs.disk.is_known


def test_disks_left_out_of_snapshots_are_not_written_since_them() -> None:
    data = SnapshotDisk("vdb", DiskSnapshot.NO, "data")
    one = external("a", None, "base")
    one = replace(one, disks=(*one.disks, data))
    found = images(base=100, top=1) | images(data=1000) | images(added=5)
    costs = costs_of([one], found, vda("top", "base"), DiskChain("vdb", ("data",)), DiskChain("vdc", ("added",)))
    assert costs.snapshots["a"].written == exact(100)
    assert costs.now == exact(6), "vdc came after the snapshot"
    assert costs.disk == exact(1106)


def test_a_medium_that_a_snapshot_merely_mentions_is_not_needed() -> None:
    one = external("a", None, "base")
    one = replace(one, disks=(*one.disks, SnapshotDisk("sda", DiskSnapshot.NO, "ejected.iso")))
    assert costs_of([one], images(base=100, top=1), vda("top", "base")).disk == exact(101)


def test_disks_that_others_snapshot_are_unknown() -> None:
    one = Snapshot("a", None, 0, DomainState.OFF, disks=(SnapshotDisk("vda", DiskSnapshot.MANUAL, "lun"),))
    costs = costs_of([one], images(lun=100), vda("lun"))
    assert not costs.snapshots["a"].written.is_known
    assert not costs.now.is_known


def test_a_disk_without_a_file_is_unknown_with_its_reason() -> None:
    costs = costs_of([], {}, DiskChain("vda", (), "on the network"))
    assert costs.now == unknown("on the network")
    assert costs.disk == unknown("on the network")
    one = Snapshot("a", None, 0, DomainState.OFF, disks=(SnapshotDisk("vda", DiskSnapshot.EXTERNAL),))
    assert "does not say" in costs_of([one], {}).snapshots["a"].written.how


def test_images_in_a_circle_end() -> None:
    found = {name: Image(name, "qcow2", exact(1), backing=below) for name, below in (("x", "y"), ("y", "x"))}
    costs = costs_of([external("a", None, "x")], found, vda("top"))
    assert costs.snapshots["a"].written == exact(1)


@st.composite
def external_machines(draw: st.DrawFn) -> tuple[list[Snapshot], dict[str, Image], DiskChain, str]:
    """Machines as libvirt makes them: every snapshot froze one layer; some layers' snapshots were forgotten."""
    count = draw(st.integers(1, 15))
    found = {"base": Image("base", "qcow2", exact(draw(st.integers(0, 1000))))}
    holder_of: dict[str, str | None] = {}
    snapshots: list[Snapshot] = []
    tops = ["base"]  # layers that may be frozen next
    parent_of: dict[str, str | None] = {"base": None}
    for number in range(count):
        frozen = draw(st.sampled_from(tops))
        tops.remove(frozen)
        if number == 0 or draw(st.integers(0, 4)):
            name = f"s{number}"
            snapshots.append(external(name, parent_of[frozen], frozen, created=number))
            holder_of[frozen] = name
        for branch in range(draw(st.sampled_from([1, 1, 1, 2]))):
            overlay = f"layer{number}.{branch}"
            found[overlay] = Image(overlay, "qcow2", exact(draw(st.integers(0, 1000))), backing=frozen)
            parent_of[overlay] = holder_of.get(frozen, parent_of[frozen])
            tops.append(overlay)
    active = draw(st.sampled_from(tops))
    layers = [active]
    while (below := found[layers[-1]].backing) is not None:
        layers.append(below)
    current = parent_of[active]
    assert current is not None
    return snapshots, found, DiskChain("vda", tuple(layers)), current


@given(external_machines())
def test_the_path_to_now_adds_up_to_the_live_chain(
    machine: tuple[list[Snapshot], dict[str, Image], DiskChain, str],
) -> None:
    snapshots, found, chain, current = machine
    tree = SnapshotTree.build(snapshots, current)
    costs = domain_costs(tree, DomainLayers((chain,), found))
    written = [costs.snapshots[name].written.bytes or 0 for name in tree.path_to_current]
    assert sum(written) + (costs.now.bytes or 0) == sum(found[path].allocated.bytes or 0 for path in chain.layers)


@given(external_machines())
def test_the_disk_total_counts_each_needed_image_once(
    machine: tuple[list[Snapshot], dict[str, Image], DiskChain, str],
) -> None:
    snapshots, found, chain, current = machine
    costs = domain_costs(SnapshotTree.build(snapshots, current), DomainLayers((chain,), found))
    needed = set(chain.layers)
    for one in snapshots:
        path: str | None = one.disks[0].frozen
        while path is not None:
            needed.add(path)
            path = found[path].backing
    assert costs.disk == exact(sum(found[path].allocated.bytes or 0 for path in needed))
