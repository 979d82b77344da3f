"""What `snaptree cost` prints: the layers of each disk, or what deleting some snapshots gives back."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.costs import SelectionCost, selection_cost
from snaptree.model.estate import DiskChain, DiskSnapshot
from snaptree.model.figures import Figure
from snaptree.model.merging import LayerTree
from snaptree.model.stacks import LayerUse, layer_use
from snaptree.terminal.console import plain
from snaptree.terminal.memory import memories, memory_json, print_memories
from snaptree.terminal.reading import DomainReading, print_troubles, troubles_json
from snaptree.terminal.table import Column, Cut, add_row, print_table


def selection_json(reading: DomainReading, names: Sequence[str]) -> dict[str, Any]:
    """The document of `cost VM SNAPSHOT... --json`: what deleting exactly these snapshots comes to."""
    cost = _selection(reading, names)
    figures = {"frees": cost.frees, "copies": cost.copies, "reusable": cost.reusable}
    return {
        "domain": reading.domain.name,
        "host": reading.host.uri,
        "snapshots": list(names),
        **{key: figure.bytes for key, figure in figures.items()},
        "confidence": {key: figure.confidence.value for key, figure in figures.items()},
        "how": {key: figure.how for key, figure in figures.items()},
    }


def print_selection(out: Console, reading: DomainReading, names: Sequence[str]) -> None:
    """Say what deleting exactly these snapshots frees and copies."""
    cost = _selection(reading, names)
    which = plain(names[0]) if len(names) == 1 else words.count(len(names), "snapshot")
    out.print(f"Deleting {which} of {plain(reading.domain.name)}:", style="bold")
    rows: list[tuple[str, Figure]] = [("frees", cost.frees), ("copies first", cost.copies)]
    if cost.reusable.bytes != 0:
        rows.append(("reusable in images", cost.reusable))
    columns = (Column("What"), Column("Bytes", right=True), Column("How it is known", turn=1, cut=Cut.END))
    for what, figure in rows:
        add_row(columns, what, words.figure(figure), plain(figure.how))
    print_table(out, columns)


def _selection(reading: DomainReading, names: Sequence[str]) -> SelectionCost:
    return selection_cost(reading.tree, reading.layers, names, reading.elsewhere)


def layers_json(reading: DomainReading) -> dict[str, Any]:
    """The document of `cost VM --json`: what each disk stands on, from the active layer down."""
    return {
        "domain": reading.domain.name,
        "host": reading.host.uri,
        "state": reading.domain.state.value,
        "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
        "troubles": troubles_json(reading),
        "disks": [
            {
                "target": chain.target,
                "problem": chain.problem,
                "layers": [_layer_json(reading, use) for use in _uses(reading, chain)],
            }
            for chain in reading.layers.chains
        ],
        "memories": [{"snapshot": name, **memory_json(memory)} for name, memory in memories(reading)],
    }


def _layer_json(reading: DomainReading, use: LayerUse) -> dict[str, Any]:
    image = reading.layers.images.get(use.path)
    return {
        "layer": use.path,
        "format": "" if image is None else image.format,
        "problem": "" if image is None else image.problem,
        "disk": use.allocated.bytes,
        "visible": use.visible.bytes,
        "covered": use.covered.bytes,
        "confidence": use.visible.confidence.value,
        "frozen_by": _held(reading, use.path, DiskSnapshot.EXTERNAL),
        "holds": _held(reading, use.path, DiskSnapshot.INTERNAL),
        "branches": use.branches,
        "read_by": sorted(use.read_by),
    }


def print_layers(out: Console, reading: DomainReading) -> None:
    """Print the layers of each disk, the active one first: what of each shows, what is covered, who else needs it."""
    domain, costs = reading.domain, reading.costs
    out.print(
        f"{plain(domain.name)}  ({domain.state.value}; disk {words.figure(costs.disk)}; "
        f"saved memory {words.figure(costs.memory)})",
        style="bold",
        soft_wrap=False,
    )
    print_troubles(out, reading)
    for chain in reading.layers.chains:
        problem = f": {plain(chain.problem)}" if chain.problem else ""
        out.print(f"{plain(chain.target)}  ({words.count(len(chain.layers), 'layer')}){problem}", style="bold")
        columns = (
            Column("Layer", turn=3, cut=Cut.MIDDLE, stays=True),
            Column("On disk", right=True),
            Column("Visible", right=True),
            Column("Covered", right=True),
            Column("Holds", turn=2, cut=Cut.MIDDLE),
            Column("Also needed by", turn=1, cut=Cut.END),
        )
        for use in _uses(reading, chain):
            image = reading.layers.images.get(use.path)
            is_missing = image is not None and image.is_missing
            add_row(
                columns,
                plain(posixpath.basename(use.path) or use.path),
                "missing" if is_missing else words.figure(use.allocated),
                words.figure(use.visible),
                words.figure(use.covered),
                ", ".join(map(plain, _holds(reading, use.path))),
                ", ".join(_needed_by(use)),
            )
        print_table(out, [column for column in columns if not column.is_empty])
    if with_memory := list(memories(reading)):
        print_memories(out, with_memory)


def _uses(reading: DomainReading, chain: DiskChain) -> list[LayerUse]:
    tree = LayerTree(reading.tree, reading.layers, reading.elsewhere)
    return [layer_use(tree, path, chain.layers[0]) for path in chain.layers]


def _held(reading: DomainReading, path: str, how: DiskSnapshot) -> list[str]:
    return [
        snapshot.name
        for snapshot in reading.tree
        if any(disk.how is how and disk.frozen == path for disk in snapshot.disks)
    ]


def _holds(reading: DomainReading, path: str) -> list[str]:
    inside = _held(reading, path, DiskSnapshot.INTERNAL)
    if len(inside) > 2:
        inside = [words.count(len(inside), "internal snapshot")]
    return [*_held(reading, path, DiskSnapshot.EXTERNAL), *inside]


def _needed_by(use: LayerUse) -> Iterator[str]:
    if use.branches > 1:
        yield words.count(use.branches - 1, "other branch")
    yield from (plain(name) for name in sorted(use.read_by))
