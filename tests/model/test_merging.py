"""What deleting external snapshots frees and copies: layers are sets of units, and what must stay is read back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import (
    DiskChain,
    DiskSnapshot,
    DomainLayers,
    DomainState,
    Image,
    InternalSnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import NOTHING, Confidence, Figure, exact
from snaptree.model.merging import ALONE, Elsewhere, LayerMerge, LayerTree, MergeWay
from snaptree.model.tree import SnapshotTree
from tests.model.overlaps import UNIT, UnitOverlaps


@dataclass(frozen=True)
class Disk:
    """A disk's layers: what each owns, which it stands on, which snapshots it was frozen by."""

    units: dict[str, frozenset[int]]
    below: dict[str, str | None]
    frozen_by: dict[str, str]
    active: str
    slack: int = 0

    def layers(self) -> DomainLayers:
        found = {
            path: Image(path, "qcow2", exact(len(units) * UNIT), backing=self.below[path])
            for path, units in self.units.items()
        }
        line: list[str] = []
        path: str | None = self.active
        while path is not None:
            line.append(path)
            path = self.below[path]
        overlaps = UnitOverlaps(self.units, self.below, self.slack)
        return DomainLayers((DiskChain("vda", tuple(line)),), found, overlaps=dict.fromkeys(found, overlaps))

    def tree(self) -> SnapshotTree:
        """A snapshot for every layer that was frozen by one, below the nearest of those that it stands on."""
        snapshots = []
        for path, name in self.frozen_by.items():
            below = self.below[path]
            while below is not None and below not in self.frozen_by:
                below = self.below[below]
            disk = SnapshotDisk("vda", DiskSnapshot.EXTERNAL, path)
            parent = None if below is None else self.frozen_by[below]
            snapshots.append(Snapshot(name, parent, 0, DomainState.DISK_ONLY, disks=(disk,)))
        return SnapshotTree.build(snapshots, None)

    def layer_tree(self, elsewhere: Elsewhere = ALONE) -> LayerTree:
        return LayerTree(self.tree(), self.layers(), elsewhere)


def line(*sizes: str) -> Disk:
    """Layers l0, l1, ... that own the units named by letters; all but the last are frozen by s0, s1, ..."""
    units = {f"l{number}": frozenset(map(ord, letters)) for number, letters in enumerate(sizes)}
    below = {f"l{number}": f"l{number - 1}" if number else None for number in range(len(sizes))}
    frozen = {f"l{number}": f"s{number}" for number in range(len(sizes) - 1)}
    return Disk(units, below, frozen, f"l{len(sizes) - 1}")


def units_of(figure: Figure) -> float:
    assert figure.bytes is not None
    return figure.bytes / UNIT


def test_merging_two_neighbours_gives_back_what_both_have() -> None:
    deletion = line("abcd", "cde", "x").layer_tree().deleting(["s0"])
    assert deletion.frees == exact(2 * UNIT, deletion.frees.how)
    assert deletion.copies == exact(2 * UNIT, deletion.copies.how), "two pulled up are less than three committed"


def test_while_the_machine_runs_nothing_is_pulled_below_its_active_layer() -> None:
    disk = line("abcd", "cde", "x")
    layer_tree = LayerTree(disk.tree(), replace(disk.layers(), is_running=True))
    (pile,) = layer_tree.deleting(["s0"]).piles
    assert pile.merges == (LayerMerge(("l1", "l0"), "l0"),)
    (pile,) = layer_tree.deleting(["s1"]).piles
    assert pile.merges == (LayerMerge(("l2", "l1"), "l1"),)
    disk = line("abcd", "cdefg", "x", "y")
    (pile,) = LayerTree(disk.tree(), replace(disk.layers(), is_running=True)).deleting(["s0", "s1"]).piles
    assert pile.merges == (LayerMerge(("l2", "l1", "l0"), "l0"),)
    (pile,) = disk.layer_tree().deleting(["s0", "s1"]).piles
    assert pile.merges == (LayerMerge(("l2", "l1", "l0"), "l1"),), "off, the middle one is best"


def test_the_layer_that_has_most_takes_in_what_is_above_and_then_what_is_below() -> None:
    disk = line("abx", "cdefgh", "bx")
    layer_tree = LayerTree(disk.tree(), replace(disk.layers(), is_running=True))
    deletion = layer_tree.deleting(["s0", "s1"])
    (pile,) = deletion.piles
    (merge,) = pile.merges
    assert merge.jobs == ((MergeWay.COMMIT, ("l2", "l1")), (MergeWay.PULL, ("l1", "l0")))
    assert units_of(deletion.copies) == len("bx") + len("a"), "of what is below, what was covered is not pulled"
    assert pile.removed == {"l0", "l2"}


def test_a_branch_that_goes_as_well_is_in_nobodys_way() -> None:
    disk = Disk(
        {"base": frozenset(range(10)), "fork": frozenset({1}), "left": frozenset({2}), "right": frozenset()},
        {"base": None, "fork": "base", "left": "fork", "right": "fork"},
        {"base": "root", "fork": "fork", "left": "tip"},
        active="right",
    )
    layer_tree = LayerTree(disk.tree(), replace(disk.layers(), is_running=True))
    assert any(pile.stuck for pile in layer_tree.deleting(["root"]).piles)
    assert not any(pile.stuck for pile in layer_tree.deleting(["root", "tip"]).piles)


def test_all_layers_of_a_run_are_merged_at_once() -> None:
    deletion = line("a", "ab", "abc", "abcd").layer_tree().deleting(["s0", "s1", "s2"])
    (pile,) = deletion.piles
    assert pile.merges == (LayerMerge(("l3", "l2", "l1", "l0"), "l3"),), "the top one has all of it"
    assert units_of(deletion.copies) == 0
    assert pile.removed == {"l0", "l1", "l2"}


def test_layers_that_hold_what_is_kept_are_not_written() -> None:
    """Each survivor has a reason of its own why it can't take part, and says so."""
    disk = line("ab", "abc", "x")
    layers = disk.layers()
    inside = replace(layers.images["l1"], internal_snapshots=(InternalSnapshot("1", "kept", 0, 0),))
    layer_tree = LayerTree(disk.tree(), replace(layers, images={**layers.images, "l1": inside}))
    (pile,) = layer_tree.deleting(["s0"]).piles
    assert (pile.merges, pile.stuck) == ((), "l1 holds internal snapshots (kept), which would be lost")
    (pile,) = disk.layer_tree(Elsewhere({"l1": frozenset({"clone"})})).deleting(["s0"]).piles
    assert pile.stuck == "l1 is the base of clone, and has to stay"


def test_a_smaller_disk_is_never_committed_into_a_larger_one() -> None:
    disk = line("a", "abc", "x")
    layers = disk.layers()
    sizes = {"l0": 100, "l1": 50, "l2": 50}
    images = {path: replace(image, virtual_size=sizes[path]) for path, image in layers.images.items()}
    (pile,) = LayerTree(disk.tree(), replace(layers, images=images)).deleting(["s0"]).piles
    assert pile.merges == (LayerMerge(("l1", "l0"), "l1"),)


def test_several_together_give_back_more_than_each_alone() -> None:
    tree = line("abcd", "abcd", "abcd").layer_tree()
    assert units_of(tree.deleting(["s0"]).frees) == units_of(tree.deleting(["s1"]).frees) == 4
    assert units_of(tree.deleting(["s0", "s1"]).frees) == 8
    assert units_of(line("ab", "c", "ad").layer_tree().deleting(["s0", "s1"]).frees) == 1


def test_a_fork_costs_what_is_copied_into_each_branch() -> None:
    """The layer goes, but each of two branches needs what of it it has not overwritten; the last may move into it."""
    disk = Disk(
        {"base": frozenset(range(10)), "left": frozenset({1}), "right": frozenset()},
        {"base": None, "left": "base", "right": "base"},
        {"base": "fork", "left": "tip"},
        active="right",
    )
    deletion = disk.layer_tree().deleting(["fork"])
    assert units_of(deletion.copies) == 9
    assert units_of(deletion.frees) == 10 - 19
    (pile,) = deletion.piles
    assert pile.merges == (
        LayerMerge(("left", "base"), "left"),
        LayerMerge(("right", "base"), "base"),
    )
    assert pile.removed == {"right"}


def test_a_leaf_out_of_use_goes_as_a_whole() -> None:
    disk = Disk(
        {"base": frozenset(range(10)), "left": frozenset({1, 2}), "right": frozenset()},
        {"base": None, "left": "base", "right": "base"},
        {"base": "fork", "left": "tip"},
        active="right",
    )
    deletion = disk.layer_tree().deleting(["tip"])
    assert deletion.frees == exact(2 * UNIT)
    assert deletion.copies == NOTHING
    assert deletion.dropped == {"left"}


def test_a_layer_that_another_machine_reads_stays() -> None:
    tree = line("abcd", "cde", "x").layer_tree(Elsewhere({"l0": frozenset({"clone"})}))
    assert tree.deleting(["s0"]).frees == NOTHING
    assert units_of(tree.deleting(["s1"]).frees) == 0


def test_while_nobody_knows_who_else_reads_it_the_figure_is_at_most() -> None:
    frees = line("ab", "b", "x").layer_tree(Elsewhere(unknown="not all machines were read yet")).deleting(["s0"]).frees
    assert frees == Figure(UNIT, Confidence.UPPER_BOUND, "not all machines were read yet")


def test_a_layer_that_no_snapshot_holds_any_more_is_merged_along() -> None:
    disk = replace(line("ab", "bc", "cd", "x"), frozen_by={"l0": "s0", "l2": "s2"})
    deletion = disk.layer_tree().deleting(["s0"])
    assert units_of(deletion.frees) == 2
    assert units_of(deletion.copies) == 2


def test_a_layer_with_two_snapshots_stays_for_the_other() -> None:
    tree = line("ab", "b", "x").tree()
    twin = replace(tree["s0"], name="twin")
    both = SnapshotTree.build([*tree, twin], None)
    layer_tree = LayerTree(both, line("ab", "b", "x").layers())
    assert layer_tree.deleting(["s0"]).frees == NOTHING
    assert units_of(layer_tree.deleting(["s0", "twin"]).frees) == 1


def test_what_was_not_analysed_is_unknown() -> None:
    disk = line("ab", "b", "x")
    layer_tree = LayerTree(disk.tree(), replace(disk.layers(), overlaps={}))
    assert not layer_tree.deleting(["s0"]).frees.is_known
    assert not layer_tree.deleting(["s0"]).copies.is_known


def test_uncertain_growth_makes_the_figure_at_most() -> None:
    frees = replace(line("abc", "bc", "x"), slack=UNIT).layer_tree().deleting(["s0"]).frees
    assert (units_of(frees), frees.confidence) == (3, Confidence.UPPER_BOUND)


def test_holes_of_the_host_in_what_an_image_calls_data() -> None:
    """A preallocated layer that takes little on the host gives little back."""
    disk = line("abc", "bc", "x")
    layers = disk.layers()
    sparse = replace(layers.images["l1"], allocated=exact(UNIT))
    layer_tree = LayerTree(disk.tree(), replace(layers, images={**layers.images, "l1": sparse}))
    frees = layer_tree.deleting(["s0"]).frees
    assert frees.confidence is Confidence.UPPER_BOUND


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    """Trees of layers; some of them frozen by a snapshot, one active."""
    count = draw(st.integers(1, 9))
    parents = [None, *(draw(st.integers(0, number - 1)) for number in range(1, count))]
    names = [f"l{number}" for number in range(count)]
    below = {name: None if parent is None else names[parent] for name, parent in zip(names, parents, strict=True)}
    units = {name: draw(st.frozensets(st.integers(0, 12))) for name in names}
    carries = set(below.values())
    active = draw(st.sampled_from([name for name in names if name not in carries]))
    # Every leaf but the active one is held: else it would be no part of the machine.
    held = [name for name in names if name != active and (name not in carries or draw(st.booleans()))]
    return Disk(units, below, {name: f"s-{name}" for name in held}, active)


@given(disks(), st.data())
def test_what_comes_back_is_what_the_survivors_do_not_need(disk: Disk, data: st.DataObject) -> None:
    """The oracle keeps one file for each layer that stays: its own units and those of all that went below it."""
    names = data.draw(st.sets(st.sampled_from(sorted(disk.frozen_by.values())))) if disk.frozen_by else set()
    gone = {path for path, name in disk.frozen_by.items() if name in names}
    nameless = {path for path in disk.units if path not in disk.frozen_by and path != disk.active}
    changed = True
    while changed:
        more = {path for path in nameless - gone if disk.below[path] in gone}
        gone |= more
        changed = bool(more)
    after = 0
    for path in disk.units.keys() - gone:
        content, below = set(disk.units[path]), disk.below[path]
        while below in gone:
            content |= disk.units[below]
            below = disk.below[below]
        after += len(content)
    before = sum(map(len, disk.units.values()))
    assert units_of(disk.layer_tree().deleting(names).frees) == before - after


@given(disks(), st.booleans(), st.data())
def test_merging_keeps_what_survivors_show(disk: Disk, running: bool, data: st.DataObject) -> None:
    """Merges are carried out on units, in their order; afterwards each survivor is read where it is said to be."""
    names = data.draw(st.sets(st.sampled_from(sorted(disk.frozen_by.values())))) if disk.frozen_by else set()
    tree = LayerTree(disk.tree(), replace(disk.layers(), is_running=running))
    deletion = tree.deleting(names)
    content = {path: dict.fromkeys(units, path) for path, units in disk.units.items()}
    below: dict[str, str | None] = dict(disk.below)

    def shown(path: str | None) -> dict[int, str]:
        return {} if path is None else shown(below[path]) | content[path]

    gone = frozenset().union(*(pile.gone for pile in deletion.piles if not pile.stuck))
    before = {path: shown(path) for path in disk.units if path not in gone}
    copied, now_in = 0, {path: path for path in before}
    for pile in deletion.piles:
        assert not (pile.stuck and (pile.merges or not running)), "in use, and several stand on it: shut it down"
        for merge in pile.merges:
            for way, layers in merge.jobs:
                top, lowest = str(layers[0]), str(layers[-1])
                into = top if way is MergeWay.PULL else lowest
                moving = {unit for path in map(str, layers) if path != into for unit in content[path]}
                if way is MergeWay.PULL:
                    moving -= content[top].keys()
                merged = shown(top)
                copied += len(moving)
                content[into] |= {unit: merged[unit] for unit in moving}
                if way is MergeWay.PULL:
                    below[top] = below[lowest]
                else:
                    now_in[top] = into
                    for above in [path for path, base in below.items() if base == top]:
                        below[above] = into
    removed = frozenset().union(*(pile.removed for pile in deletion.piles))
    for path, expected in before.items():
        stack: list[str] = []
        layer: str | None = now_in[path]
        while layer is not None:
            stack.append(layer)
            layer = below[layer]
        assert removed.isdisjoint(stack)
        assert shown(now_in[path]) == expected
    if not any(pile.stuck for pile in deletion.piles):
        assert units_of(deletion.copies) == copied
