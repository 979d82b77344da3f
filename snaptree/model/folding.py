"""Folding: which rows a tree shows. Long stretches in which nothing happens become one row each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from snaptree.model.estate import Snapshot
    from snaptree.model.tree import SnapshotTree

FEWEST_HIDDEN: Final = 8
"""A fold that hides fewer saves too little room for what it keeps from sight."""
_CONTEXT: Final = 2
"""So many snapshots stay in sight at either end of a fold."""


class Now(Enum):
    """The row of the running state."""

    NOW = "Now"


NOW: Final = Now.NOW


@dataclass(frozen=True, slots=True)
class Fold:
    """A stretch of snapshots, each the only child of the one before, shown as one row."""

    hidden: tuple[str, ...]
    """Their names, oldest first; never empty."""

    @property
    def first(self) -> str:
        """The first of them; two readings of a tree mean the same fold by the same first name."""
        return self.hidden[0]

    @property
    def last(self) -> str:
        """The last of them."""
        return self.hidden[-1]

    def __len__(self) -> int:
        return len(self.hidden)


RowId = str | Fold | Now
"""What a row stands for: a snapshot by its name, a fold, or the running state."""


class Row(NamedTuple):
    """A row and the row that it descends from: what `lanes.lay_out` takes."""

    id: RowId
    parent: RowId | None


@dataclass(frozen=True, slots=True)
class VisibleRows:
    """The rows of a tree, parents before children, *Now* last."""

    rows: tuple[Row, ...]
    unfolded: Mapping[str, Fold]
    """Stretches that would be folds had they not been unfolded, by the name of their first snapshot."""

    @property
    def folds(self) -> tuple[Fold, ...]:
        """The folds among the rows."""
        return tuple(row.id for row in self.rows if isinstance(row.id, Fold))


def fold(
    tree: SnapshotTree,
    *,
    keep: Collection[str] = frozenset(),
    unfolded: Collection[str] = frozenset(),
    fewest: int = FEWEST_HIDDEN,
) -> VisibleRows:
    """Work out the rows of a tree.

    A fold hides only snapshots with one parent and one child that are not worth a row for themselves and not in
    `keep` (selected, found by a search, ...). A stretch stays open while any snapshot in it is in `unfolded`: who
    opens a fold adds all its names, and it stays open when snapshots in it or around it come and go.
    `unfolded=tree.snapshots` shows everything.
    """
    folds: dict[str, Fold] = {}
    opened: dict[str, Fold] = {}
    names, kept = set(unfolded), set(keep)
    for run in _runs(tree, kept):
        hidden = run[_CONTEXT : len(run) - _CONTEXT]
        if len(hidden) >= max(fewest, 1):
            (folds if names.isdisjoint(hidden) else opened)[hidden[0]] = Fold(hidden)
    return VisibleRows(_rows(tree, folds), MappingProxyType(opened))


def is_worth_a_row(snapshot: Snapshot) -> bool:
    """Whether a person marked it, or there is something wrong with it."""
    return (
        snapshot.annotations.pinned is not None
        or snapshot.annotations.known_good is not None
        or snapshot.delete_in_progress
        or snapshot.annotations.half_deleted
        or snapshot.annotations.doubtful
        or bool(snapshot.problem)
    )


def _runs(tree: SnapshotTree, keep: set[str]) -> list[tuple[str, ...]]:
    """Every longest line of snapshots that a fold may hide, in the reading order of their first."""
    runs: dict[str, list[str]] = {}
    run_ending_in: dict[str, list[str]] = {}
    for snapshot in tree:
        parent = tree.parents[snapshot.name]
        if (
            parent is None
            or snapshot.name == tree.current
            or snapshot.name in keep
            or len(tree.children(snapshot.name)) != 1
            or is_worth_a_row(snapshot)
        ):
            continue
        run = run_ending_in.pop(parent, None)
        if run is None:
            run = runs[snapshot.name] = []
        run.append(snapshot.name)
        run_ending_in[snapshot.name] = run
    return [tuple(run) for run in runs.values()]


def _rows(tree: SnapshotTree, folds: Mapping[str, Fold]) -> tuple[Row, ...]:
    row_of: dict[str, Fold] = {name: hides for hides in folds.values() for name in hides.hidden}
    rows = []
    for name, parent in tree.parents.items():
        hides = row_of.get(name)
        if hides is None or hides.first == name:
            rows.append(Row(name if hides is None else hides, None if parent is None else row_of.get(parent, parent)))
    rows.append(Row(NOW, tree.current))
    return tuple(rows)
