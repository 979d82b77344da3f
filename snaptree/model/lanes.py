"""Lanes: a tree in rows, drawn like a commit graph. Straight lines of descent stay straight, branches get lanes.

A *chain* is a straight line of descent: it keeps one lane from the row of the parent that it forks from (or its
own first row, for a root) to its last row. Two chains share a lane only where one ended above the other.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    Id = TypeVar("Id", bound=Hashable)
else:
    Id = TypeVar("Id")

_NONE = -1
_REPLAY_AT_LEAST = 16
"""A few rows are replayed faster than a keyframe for each would be kept."""


@dataclass(frozen=True, slots=True)
class LaneRow(Generic[Id]):
    """All that is needed to paint one row. Lanes count from 0 at the left; tuples are sorted."""

    id: Id
    lane: int
    """Where the node stands."""
    enters: bool
    """A line comes from above, in the node's lane."""
    leaves: bool
    """The line goes on below, in the node's lane."""
    forks: tuple[int, ...]
    """Lanes to which lines go from the node; each begins at this row's bottom edge."""
    through: tuple[int, ...]
    """Lanes whose lines pass from the top edge to the bottom edge; a fork may cross them."""


class LaneLayout(Generic[Id]):
    """The rows of a tree with their lanes. Rows are made when asked for: only those on screen are ever needed."""

    def __init__(
        self,
        ids: list[Id],
        lanes: list[int],
        enters: bytearray,
        leaves: bytearray,
        forks: dict[int, tuple[int, ...]],
    ) -> None:
        self._ids = ids
        self._lanes = lanes
        self._enters = enters
        self._leaves = leaves
        self._forks = forks
        self.width = 1 + max(lanes, default=-1)
        """How many lanes there are."""
        self._keyframe_rows: list[int] = []
        self._keyframes: list[frozenset[int]] = []
        self._set_keyframes()

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[LaneRow[Id]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> LaneRow[Id]:
        """Make one row; the work grows with the lanes in use there, not with the rows above."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        lane = self._lanes[row]
        return LaneRow(
            id=self._ids[row],
            lane=lane,
            enters=bool(self._enters[row]),
            leaves=bool(self._leaves[row]),
            forks=self._forks.get(row, ()),
            through=tuple(sorted(self._lines_into(row) - {lane})),
        )

    def _lines_into(self, row: int) -> set[int]:
        """Lanes with a line across the top edge of a row, replayed from the nearest keyframe above."""
        keyframe = bisect_right(self._keyframe_rows, row) - 1
        lines = set(self._keyframes[keyframe])
        for earlier in range(self._keyframe_rows[keyframe], row):
            self._pass(earlier, lines)
        return lines

    def _pass(self, row: int, lines: set[int]) -> None:
        """Turn the lines across the top edge of a row into those across its bottom edge."""
        if self._leaves[row]:
            lines.add(self._lanes[row])
        else:
            lines.discard(self._lanes[row])
        lines.update(self._forks.get(row, ()))

    def _set_keyframes(self) -> None:
        """Note the lines into a row now and then, as often as they change about as much as they are many."""
        lines: set[int] = set()
        changes = _REPLAY_AT_LEAST
        for row in range(len(self)):
            if changes >= max(len(lines), _REPLAY_AT_LEAST):
                self._keyframe_rows.append(row)
                self._keyframes.append(frozenset(lines))
                changes = 0
            self._pass(row, lines)
            changes += 1 + len(self._forks.get(row, ()))


def lay_out(nodes: Iterable[tuple[Id, Id | None]], straight_to: Id | None = None) -> LaneLayout[Id]:
    """Give every node a lane. Nodes are (id, parent's id) in the order of the rows, parents before children.

    The line of descent down to `straight_to` (the *Now* row) has lane 0 for itself and never bends, unless it
    is that one node alone. Elsewhere a line goes straight on to the child with the most descendants, the first of
    equals. Never more lanes than leaves. Takes O(n log n). Raises ValueError if a parent does not stand above.
    """
    ids, parents, row_of = _number(nodes)
    straight_on, forks = _chains(parents, _NONE if straight_to is None else row_of[straight_to])
    lanes = [_NONE] * len(ids)
    free: list[int] = []
    used = 0
    if straight_to is not None and parents[row_of[straight_to]] != _NONE:
        row = row_of[straight_to]
        while parents[row] != _NONE:
            row = parents[row]
        lanes[row] = 0
        used = 1
    fork_lanes: dict[int, tuple[int, ...]] = {}
    for row in range(len(ids)):
        heads = forks.get(row, [])
        for head in [row, *heads] if lanes[row] == _NONE else heads:
            if free:
                lanes[head] = heapq.heappop(free)
            else:
                lanes[head] = used
                used += 1
        if heads:
            fork_lanes[row] = tuple(sorted(lanes[head] for head in heads))
        if straight_on[row] == _NONE:
            heapq.heappush(free, lanes[row])
        else:
            lanes[straight_on[row]] = lanes[row]
    return LaneLayout(
        ids,
        lanes,
        enters=bytearray(parent != _NONE for parent in parents),
        leaves=bytearray(child != _NONE for child in straight_on),
        forks=fork_lanes,
    )


def _number(nodes: Iterable[tuple[Id, Id | None]]) -> tuple[list[Id], list[int], dict[Id, int]]:
    """Ids by row, parents as rows, and rows by id."""
    ids: list[Id] = []
    parents: list[int] = []
    row_of: dict[Id, int] = {}
    for row, (node, parent) in enumerate(nodes):
        if node in row_of or (parent is not None and parent not in row_of):
            raise ValueError(f"row {row}: {node!r} appears twice, or its parent {parent!r} does not stand above it")
        ids.append(node)
        parents.append(_NONE if parent is None else row_of[parent])
        row_of[node] = row
    return ids, parents, row_of


def _chains(parents: list[int], end_of_straight: int) -> tuple[list[int], dict[int, list[int]]]:
    """For every row: the child its line goes straight on to; and the other children, which fork off."""
    sizes = [1] * len(parents)
    for row in range(len(parents) - 1, -1, -1):
        if parents[row] != _NONE:
            sizes[parents[row]] += sizes[row]
    straight_on = [_NONE] * len(parents)
    row = end_of_straight
    on_path = set()
    while row != _NONE:
        on_path.add(row)
        row = parents[row]
    for row, parent in enumerate(parents):
        if parent == _NONE:
            continue
        chosen = straight_on[parent]
        if chosen == _NONE or row in on_path or (chosen not in on_path and sizes[row] > sizes[chosen]):
            straight_on[parent] = row
    forks: dict[int, list[int]] = {}
    for row, parent in enumerate(parents):
        if parent != _NONE and straight_on[parent] != row:
            forks.setdefault(parent, []).append(row)
    return straight_on, forks


def draw_text(layout: LaneLayout[Id], label: Callable[[Id], str] = str) -> str:
    """Draw the lanes with box characters, one line a row: `┯ ┿ ┷` are nodes, `╺` is one without straight lines."""
    return "\n".join(f"{draw_row(row, layout.width)}  {label(row.id)}" for row in layout)


def draw_row(row: LaneRow[Id], width: int) -> str:
    """Draw one row, padded to `width` lanes of two characters each, the last one without its gap."""
    cells = [" "] * (2 * width - 1)
    ends = [row.lane, *row.forks]
    leftmost, rightmost = min(ends), max(ends)
    for lane in row.through:
        cells[2 * lane] = "┼" if leftmost < lane < rightmost else "│"
    for lane in row.forks:
        cells[2 * lane] = "╭" if lane == leftmost else "╮" if lane == rightmost else "┬"
    cells[2 * row.lane] = {(False, True): "┯", (True, True): "┿", (True, False): "┷", (False, False): "╺"}[
        row.enters, row.leaves
    ]
    for cell in range(2 * leftmost + 1, 2 * rightmost):
        if cells[cell] == " ":
            cells[cell] = "─"
    return "".join(cells)
