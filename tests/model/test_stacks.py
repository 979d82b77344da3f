"""What a layer is to those who read a stack: figures read off a small drawing of layers."""

from __future__ import annotations

from dataclasses import replace

from snaptree.model.figures import Confidence, Figure, exact
from snaptree.model.merging import Elsewhere, LayerTree
from snaptree.model.stacks import layer_use
from tests.model.overlaps import UNIT
from tests.model.test_merging import Disk, line


def test_what_shows_and_what_is_covered_make_up_the_data() -> None:
    tree = line("abcd", "cde", "ex").layer_tree()
    use = layer_use(tree, "l0", "l2")
    assert (use.visible.bytes, use.covered.bytes) == (2 * UNIT, 2 * UNIT)
    assert use.visible.confidence is Confidence.EXACT
    assert layer_use(tree, "l0", "l0").covered.bytes == 0
    assert not use.is_shared


def test_branches_and_other_machines_share_a_layer() -> None:
    disk = Disk(
        {"base": frozenset({1}), "left": frozenset({1}), "right": frozenset()},
        {"base": None, "left": "base", "right": "base"},
        {"base": "fork", "left": "tip"},
        active="right",
    )
    assert layer_use(disk.layer_tree(), "base", "right").branches == 2
    assert layer_use(disk.layer_tree(), "base", "right").is_shared
    use = layer_use(line("a", "b").layer_tree(Elsewhere({"l0": frozenset({"clone"})})), "l0", "l1")
    assert use.is_shared
    assert use.read_by == {"clone"}


def test_a_layer_that_is_not_below_the_top_has_nothing_to_show_there() -> None:
    disk = Disk(
        {"base": frozenset({1}), "left": frozenset({1}), "right": frozenset()},
        {"base": None, "left": "base", "right": "base"},
        {"base": "fork", "left": "tip"},
        active="right",
    )
    assert not layer_use(disk.layer_tree(), "left", "right").visible.is_known
    assert not layer_use(disk.layer_tree(), "nowhere", "right").visible.is_known


def test_below_a_layer_that_is_written_to_figures_were_true_a_moment_ago() -> None:
    disk = line("ab", "b")
    layers = disk.layers()
    live = replace(layers.images["l1"], allocated=Figure(UNIT, Confidence.LIVE))
    tree = LayerTree(disk.tree(), replace(layers, images={**layers.images, "l1": live}))
    assert layer_use(tree, "l0", "l1").visible.confidence is Confidence.LIVE
    assert layer_use(tree, "l0", "l0").visible == exact(2 * UNIT, "clusters of data that no layer above covers")
