"""What is said to be wrong with a machine."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from snaptree.model.estate import DiskChain, Image
from snaptree.model.figures import exact, unknown
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import (
    DEEP_CHAIN,
    Kind,
    Severity,
    Trouble,
    troubles_of_layers,
    troubles_of_tree,
    worst_first,
)
from tests.ui.values import chain, layers_for, machine, snapshot

TREE = SnapshotTree.build(chain(3), "s3")


def test_a_sound_machine_has_no_troubles() -> None:
    assert not list(troubles_of_layers(TREE, layers_for(TREE)))
    assert not list(troubles_of_tree(TREE, is_complete=True))
    assert not list(troubles_of_tree(SnapshotTree.build([], None), is_complete=True))


def test_a_chain_that_cannot_be_read_is_an_error() -> None:
    layers = replace(layers_for(TREE), chains=(DiskChain("vda", ("/vm/s3.qcow2",), "no\nheader"),))
    assert list(troubles_of_layers(TREE, layers)) == [
        Trouble(Severity.ERROR, r"Disk vda: no\nheader", Kind.BROKEN_CHAIN, "vda")
    ]


def test_a_missing_layer_that_a_snapshot_names_is_an_error_and_a_missing_overlay_is_none() -> None:
    layers = layers_for(TREE)
    gone = {
        path: Image(path, "qcow2", unknown("gone"), problem="gone", is_missing=True)
        for path in ("/vm/s1.qcow2", "/vm/s3.qcow2")
    }
    layers = replace(layers, images=MappingProxyType({**layers.images, **gone}))
    (trouble,) = troubles_of_layers(TREE, layers)
    assert trouble.severity is Severity.ERROR
    assert "/vm/s1.qcow2 is missing" in trouble.text
    broken = replace(layers.chains[0], problem="no such file: /vm/s1.qcow2")
    (trouble,) = troubles_of_layers(TREE, replace(layers, chains=(broken,)))
    assert trouble.text == "Disk vda: no such file: /vm/s1.qcow2", "once is enough"


def test_layers_beside_those_in_use_that_cannot_be_read_are_a_warning() -> None:
    tree = SnapshotTree.build([*chain(3), snapshot("b1", "s1"), snapshot("b2", "b1")], "s3")
    layers = layers_for(tree)
    in_use = replace(layers, chains=(DiskChain("vda", ("/vm/s3.qcow2", "/vm/s2.qcow2", "/vm/s1.qcow2")),))
    why = "permission denied"
    bad = {path: Image(path, "qcow2", unknown(why), problem=why) for path in ("/vm/b1.qcow2", "/vm/b2.qcow2")}
    layers = replace(in_use, images=MappingProxyType({**layers.images, **bad}))
    (trouble,) = troubles_of_layers(tree, layers)
    assert trouble.severity is Severity.WARNING
    assert trouble.text == "The image /vm/b1.qcow2 can't be read: permission denied. So it is with 1 more."
    bad = {"/vm/s1.qcow2": Image("/vm/s1.qcow2", "qcow2", unknown(why), problem=why)}
    layers = replace(in_use, images=MappingProxyType({**in_use.images, **bad}))
    assert not list(troubles_of_layers(tree, layers)), "the layer stack says it"


def test_a_base_of_another_branch_that_is_missing_is_an_error() -> None:
    tree = SnapshotTree.build([*chain(2), snapshot("b1", "s1")], "s2")
    layers = layers_for(tree)
    base = Image("/vm/base.qcow2", "qcow2", unknown("gone"), problem="gone", is_missing=True)
    branch = Image("/vm/b1.qcow2", "qcow2", exact(0), backing=base.path)
    layers = replace(layers, images=MappingProxyType({**layers.images, branch.path: branch, base.path: base}))
    (trouble,) = troubles_of_layers(tree, layers)
    text = "The image /vm/base.qcow2 is missing, and with it what it held."
    assert trouble == Trouble(Severity.ERROR, text, Kind.MISSING_IMAGE, "/vm/base.qcow2")


def test_a_deep_chain_is_a_warning() -> None:
    deep = DiskChain("vda", tuple(f"/vm/{number}" for number in range(DEEP_CHAIN + 1)))
    layers = replace(layers_for(TREE), chains=(deep,))
    (trouble,) = troubles_of_layers(None, layers)
    assert (trouble.severity, trouble.kind) == (Severity.WARNING, Kind.DEEP_CHAIN)
    assert f"{DEEP_CHAIN + 1} layers" in trouble.text
    assert not list(troubles_of_layers(None, layers, most_layers=DEEP_CHAIN + 1))


def test_damaged_snapshots_interrupted_deletes_and_a_lost_current_are_warnings() -> None:
    every = [snapshot("a", problem="bad XML"), replace(snapshot("b", "a"), delete_in_progress=True)]
    tree = SnapshotTree.build(every, None)
    texts = [trouble.text for trouble in troubles_of_tree(tree, is_complete=True)]
    assert texts[:2] == ["Snapshot “a”: bad XML", "A delete below snapshot “b” was interrupted."]
    assert "no current snapshot" in texts[2]
    assert len(list(troubles_of_tree(tree, is_complete=False))) == 2, "the current one may be still to come"


def test_the_window_says_the_same_with_the_worst_first() -> None:
    every = [snapshot("a", problem="bad XML")]
    tree = SnapshotTree.build(every, "a")
    layers = replace(layers_for(tree), chains=(DiskChain("vda", (), "unreadable"),))
    troubles = worst_first([*troubles_of_tree(tree, is_complete=True), *troubles_of_layers(tree, layers)])
    assert [trouble.severity.word for trouble in troubles] == ["error", "warning"]
    said = [(each.kind, each.severity, each.text) for each in machine(every, "a", layers=layers).findings]
    assert said == [(trouble.kind, trouble.severity, trouble.text) for trouble in troubles]
