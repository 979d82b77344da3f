"""What is said to be wrong with a machine."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from snaptree.model.estate import DiskChain, Image
from snaptree.model.figures import unknown
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import (
    DEEP_CHAIN,
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
    assert list(troubles_of_layers(TREE, layers)) == [Trouble(Severity.ERROR, r"Disk vda: no\nheader")]


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


def test_a_deep_chain_is_a_warning() -> None:
    deep = DiskChain("vda", tuple(f"/vm/{number}" for number in range(DEEP_CHAIN)))
    (trouble,) = troubles_of_layers(None, replace(layers_for(TREE), chains=(deep,)))
    assert trouble.severity is Severity.WARNING
    assert f"{DEEP_CHAIN} layers" in trouble.text


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
    assert machine(every, "a", layers=layers).troubles == troubles
