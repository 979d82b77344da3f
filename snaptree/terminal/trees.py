"""What `snaptree tree` prints: one machine's snapshots, drawn in lanes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from snaptree import words
from snaptree.model.estate import Mark, Snapshot, SnapshotKind
from snaptree.model.folding import NOW, RowId, fold
from snaptree.model.lanes import LaneRow, draw_row, lay_out
from snaptree.model.saved_memory import saved_memory
from snaptree.plans.of_no_use import DOUBTFUL, HALF_DELETED
from snaptree.plans.wording import machines_named
from snaptree.terminal.console import iso_time, plain
from snaptree.terminal.memory import memory_json
from snaptree.terminal.plans import impact_json
from snaptree.terminal.reading import DomainReading, looks_at_json, print_look, print_troubles, troubles_json
from snaptree.terminal.table import Column, Cut, add_row, print_table


def tree_json(reading: DomainReading) -> dict[str, Any]:
    """The document of `tree --json`, with the keys of the design."""
    return {
        "domain": reading.domain.name,
        "host": reading.host.uri,
        "state": reading.domain.state.value,
        "current": reading.tree.current,
        "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
        "looks_at": looks_at_json(reading),
        "troubles": troubles_json(reading),
        "snapshots": [_snapshot_json(snapshot, reading) for snapshot in reading.tree],
    }


def _snapshot_json(snapshot: Snapshot, reading: DomainReading) -> dict[str, Any]:
    cost = reading.costs.snapshots[snapshot.name]
    reason = reading.of_no_use.get(snapshot.name)
    memory = saved_memory(snapshot, cost.memory, reading.layers)
    return {
        "name": snapshot.name,
        "parent": reading.tree.parents[snapshot.name],
        "kind": snapshot.kind.value,
        "state": snapshot.state.value,
        "created": iso_time(snapshot.created),
        "consistency": snapshot.consistency.value,
        "impact": impact_json(snapshot.annotations.impact),
        **_mark_json("pinned", snapshot.annotations.pinned),
        **_mark_json("known_good", snapshot.annotations.known_good),
        "half_deleted": reason == HALF_DELETED,
        "doubtful": reason == DOUBTFUL,
        "taken_by": snapshot.annotations.taken_by or None,
        "group": snapshot.annotations.group or None,
        "schedule": snapshot.annotations.schedule or None,
        "written": cost.written.bytes,
        "frees": cost.frees.bytes,
        "memory": cost.memory.bytes,
        "confidence": cost.written.confidence.value,
        "frees_confidence": cost.frees.confidence.value,
        "memory_confidence": cost.memory.confidence.value,
        "saved_memory": None if memory is None else memory_json(memory),
        "disks": [{"target": disk.target, "layer": disk.frozen} for disk in snapshot.disks],
        "note": snapshot.description,
    }


def _mark_json(key: str, mark: Mark | None) -> dict[str, Any]:
    return {
        key: mark is not None,
        f"{key}_by": None if mark is None else mark.by or None,
        f"{key}_at": None if mark is None or not mark.at else iso_time(mark.at),
    }


def print_tree(out: Console, reading: DomainReading) -> None:
    """Print one machine's tree, drawn in lanes, oldest first.

    Where it mixes kinds the heading names the usual one, and the others are marked: as in the window.
    """
    domain, costs, tree = reading.domain, reading.costs, reading.tree
    kinds = Counter(snapshot.kind for snapshot in tree)
    usual = kinds.most_common(1)[0][0] if kinds else None
    mostly = f", mostly {words.kind(usual)}" if usual is not None and len(kinds) > 1 else ""
    out.print(
        f"{plain(domain.name)}  ({domain.state.value}; {words.count(len(tree), 'snapshot')}{mostly}; "
        f"disk {words.figure(costs.disk)}; saved memory {words.figure(costs.memory)})",
        style="bold",
        soft_wrap=False,
    )
    print_look(out, reading)
    print_troubles(out, reading)
    layout = lay_out(fold(tree, unfolded=tree.snapshots).rows, straight_to=NOW)
    names = Column("Snapshot", turn=3, cut=Cut.MIDDLE, stays=True, kept=2 * layout.width + 1)
    marks = Column("Marks", turn=4, cut=Cut.END)
    ages = Column("Age")
    written, frees, memory = (Column(title, right=True) for title in ("Written", "Frees", "Memory"))
    consistency = Column("Consistency", turn=2)
    notes = Column("Note", turn=1, cut=Cut.END)
    columns = (names, marks, ages, written, frees, memory, consistency, notes)
    now = time.time()
    for row in layout:
        lanes = Text(_lanes_text(row, layout.width, tree.current), style="cyan")
        if not isinstance(row.id, str):
            add_row(columns, lanes + Text("Now", style="bold"), "", "", words.figure(costs.now), "", "", "", "")
            continue
        snapshot = tree[row.id]
        cost = costs.snapshots[row.id]
        name = Text(plain(snapshot.name), style="bold" if snapshot.name == tree.current else "")
        add_row(
            columns,
            lanes + name,
            ", ".join(_marks(snapshot, usual, reading)),
            words.age(now - snapshot.created),
            words.figure(cost.written),
            words.figure(cost.frees),
            "" if cost.memory.bytes == 0 else words.figure(cost.memory),
            snapshot.consistency.value,
            plain(snapshot.description),
        )
    if memory.is_empty:
        memory.turn = 2
    print_table(out, [column for column in columns if column is not marks or not marks.is_empty])


def _marks(snapshot: Snapshot, usual: SnapshotKind | None, reading: DomainReading) -> Iterator[str]:
    """What is worth knowing of a snapshot besides its figures, in the words of the window's badges."""
    if snapshot.problem:
        yield "damaged"
    if reason := reading.of_no_use.get(snapshot.name):
        yield reason
    if snapshot.delete_in_progress:
        yield "delete interrupted"
    if snapshot.annotations.pinned:
        yield "pinned"
    if snapshot.annotations.known_good:
        yield "known good"
    if snapshot.annotations.safety:
        yield "safety"
    if snapshot.annotations.group:
        yield "group"
    if names := reading.elsewhere.on(snapshot, reading.layers):
        yield f"base of {machines_named(names)}"
    if snapshot.kind is not usual:
        yield words.kind(snapshot.kind)


def _lanes_text(row: LaneRow[RowId], width: int, current: str | None) -> str:
    """A row's lines, with a mark for its node: full for snapshots, double for the current one, hollow for *Now*."""
    cells = draw_row(row, width)
    mark = "○" if row.id is NOW else "◉" if row.id == current else "●"
    return f"{cells[: 2 * row.lane]}{mark}{cells[2 * row.lane + 1 :]} "
