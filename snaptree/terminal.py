"""What the terminal commands print: trees, lists and plans, for people and as JSON."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from snaptree import words
from snaptree.model.costs import DomainCosts, host_disk
from snaptree.model.estate import Domain, DomainLayers, Host, Snapshot, SnapshotKind
from snaptree.model.folding import NOW, RowId, fold
from snaptree.model.lanes import LaneRow, draw_row, lay_out
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import Severity, Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import describe_step, plan_to_json


@dataclass(frozen=True, slots=True)
class DomainReading:
    """One machine with everything that a listing shows of it."""

    host: Host
    domain: Domain
    tree: SnapshotTree
    layers: DomainLayers
    costs: DomainCosts

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong with it, the worst first: what the window says too."""
        return worst_first(
            [*troubles_of_layers(self.tree, self.layers), *troubles_of_tree(self.tree, is_complete=True)]
        )


_ENDLESS = 10_000
"""Columns where nobody looks: what is piped on is never cut."""


def console(*, stderr: bool = False) -> Console:
    """A console that takes what users named as it is: no markup, no highlighting, no emoji codes."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _ENDLESS
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def print_json(value: Any) -> None:
    """Print one JSON document. Integers are bytes, times ISO 8601 in UTC."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


def plain(text: str) -> str:
    """Text that someone else chose, safe on a terminal: control characters are shown, not obeyed."""
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def _visible(character: str) -> str:
    return {"\n": "⏎", "\t": "⇥"}.get(character, f"\\x{ord(character):02x}")


# Tables


_GAP = 2
"""Blanks between columns."""
_SHORTEST = 5
"""Columns of the screen down to which a text is cut."""


class _Cut(Enum):
    """What of a text gives way."""

    NOTHING = auto()
    MIDDLE = auto()
    """Names differ at their ends."""
    END = auto()


@dataclass(slots=True)
class _Column:
    """One column of a table. Figures, ages and states have no turn: they are never cut."""

    title: str
    short_title: str = ""
    """What stands in its place on a narrow screen."""
    turn: int = 0
    """When it gives way to a narrow screen: 1 is first, 0 is never."""
    cut: _Cut = _Cut.NOTHING
    right: bool = False
    stays: bool = False
    """It is cut, but never left out."""
    cells: list[Text] = field(default_factory=list)
    kept: int = 0
    """How much of the beginning of each cell is never cut: a tree's lines."""

    def add(self, text: str | Text) -> None:
        """Add the next row's cell."""
        self.cells.append(Text(text) if isinstance(text, str) else text)

    @property
    def is_empty(self) -> bool:
        """Whether no row has anything here."""
        return not any(cell.plain for cell in self.cells)

    @property
    def width(self) -> int:
        """Columns of the screen that it takes."""
        return max(cell_len(self.title), *(cell.cell_len for cell in self.cells), 0)

    @property
    def least(self) -> int:
        """The width down to which it can be cut."""
        if self.cut is _Cut.NOTHING:
            text = max((cell.cell_len for cell in self.cells), default=0)
        else:
            text = self.kept + _SHORTEST
        return min(self.width, max(cell_len(self.short_title or self.title), text))

    def narrow(self, width: int) -> None:
        """Cut its title and cells to a width that is not less than its `least`."""
        if cell_len(self.title) > width:
            self.title = self.short_title
        for index, cell in enumerate(self.cells):
            if cell.cell_len <= width:
                continue
            if self.cut is _Cut.END:
                cell.truncate(width, overflow="ellipsis")
            else:
                self.cells[index] = _without_middle(cell, self.kept + (width - self.kept) // 2, width)


def _add_row(columns: Sequence[_Column], *cells: str | Text) -> None:
    for column, cell in zip(columns, cells, strict=True):
        column.add(cell)


def _without_middle(text: Text, head: int, width: int) -> Text:
    """A text cut to a width: as much of its beginning as is said, and of its end what there is room for."""
    start, end = len(text), len(text)
    while cell_len(text.plain[:start]) > head:
        start -= 1
    while cell_len(text.plain[end - 1 :]) < width - head:
        end -= 1
    return Text.assemble(text[:start], "…", text[end:])


def _print_table(out: Console, columns: Sequence[_Column]) -> None:
    """Print a table as wide as the screen, wider only if what must stay whole needs it."""
    shown = _those_that_fit(columns, out.width)
    table = Table(box=None, pad_edge=False, header_style="dim", width=_width_of(shown))
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    if out.is_terminal:
        out.print(table)
        return
    # A pipe gets no blanks that fill the last column.
    with out.capture() as capture:
        out.print(table)
    out.file.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _those_that_fit(columns: Sequence[_Column], room: int) -> list[_Column]:
    """The columns that are shown in so much room, cut or left out in their turn."""
    shown = list(columns)
    widths = [column.width for column in columns]
    by_turn = sorted((column for column in columns if column.turn), key=lambda column: column.turn)

    def slack() -> int:
        return room - sum(widths) - _GAP * (len(shown) - 1)

    for column in by_turn:
        place = shown.index(column)
        widths[place] = max(column.least, min(widths[place], widths[place] + slack()))
        if slack() < 0 and not column.stays:
            del shown[place], widths[place]
    for column in reversed(by_turn):  # what left last may have left more room than was missing
        if column in shown and slack() > 0:
            place = shown.index(column)
            widths[place] = min(column.width, widths[place] + slack())
    for column, width in zip(shown, widths, strict=True):
        if width < column.width:
            column.narrow(width)
    return shown


def _width_of(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


# Trees


def tree_json(reading: DomainReading) -> dict[str, Any]:
    """The document of `tree --json`, with the keys of the design."""
    return {
        "domain": reading.domain.name,
        "host": reading.host.uri,
        "state": reading.domain.state.value,
        "current": reading.tree.current,
        "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
        "troubles": _troubles_json(reading),
        "snapshots": [_snapshot_json(snapshot, reading) for snapshot in reading.tree],
    }


def _troubles_json(reading: DomainReading) -> list[dict[str, str]]:
    return [{"severity": trouble.severity.word, "text": trouble.text} for trouble in reading.troubles]


def _snapshot_json(snapshot: Snapshot, reading: DomainReading) -> dict[str, Any]:
    cost = reading.costs.snapshots[snapshot.name]
    return {
        "name": snapshot.name,
        "parent": reading.tree.parents[snapshot.name],
        "kind": snapshot.kind.value,
        "state": snapshot.state.value,
        "created": iso_time(snapshot.created),
        "consistency": snapshot.consistency.value,
        "pinned": snapshot.annotations.pinned,
        "written": cost.written.bytes,
        "frees": cost.frees.bytes,
        "memory": cost.memory.bytes,
        "confidence": cost.written.confidence.value,
        "frees_confidence": cost.frees.confidence.value,
        "memory_confidence": cost.memory.confidence.value,
        "disks": [{"target": disk.target, "layer": disk.frozen} for disk in snapshot.disks],
        "note": snapshot.description,
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
    for trouble in reading.troubles:
        _print_trouble(out, trouble)
    layout = lay_out(fold(tree, unfolded=tree.snapshots).rows, straight_to=NOW)
    names = _Column("Snapshot", turn=3, cut=_Cut.MIDDLE, stays=True, kept=2 * layout.width + 1)
    marks = _Column("Marks", turn=4, cut=_Cut.END)
    ages = _Column("Age")
    written, frees, memory = (_Column(title, right=True) for title in ("Written", "Frees", "Memory"))
    consistency = _Column("Consistency", turn=2)
    notes = _Column("Note", turn=1, cut=_Cut.END)
    columns = (names, marks, ages, written, frees, memory, consistency, notes)
    now = time.time()
    for row in layout:
        lanes = Text(_lanes_text(row, layout.width, tree.current), style="cyan")
        if not isinstance(row.id, str):
            _add_row(columns, lanes + Text("Now", style="bold"), "", "", words.figure(costs.now), "", "", "", "")
            continue
        snapshot = tree[row.id]
        cost = costs.snapshots[row.id]
        name = Text(plain(snapshot.name), style="bold" if snapshot.name == tree.current else "")
        _add_row(
            columns,
            lanes + name,
            ", ".join(_marks(snapshot, usual, reading.layers)),
            words.age(now - snapshot.created),
            words.figure(cost.written),
            words.figure(cost.frees),
            "" if cost.memory.bytes == 0 else words.figure(cost.memory),
            snapshot.consistency.value,
            plain(snapshot.description),
        )
    if memory.is_empty:
        memory.turn = 2
    _print_table(out, [column for column in columns if column is not marks or not marks.is_empty])


def _marks(snapshot: Snapshot, usual: SnapshotKind | None, layers: DomainLayers) -> Iterator[str]:
    """What is worth knowing of a snapshot besides its figures, in the words of the window's badges."""
    if snapshot.problem:
        yield "damaged"
    if snapshot.delete_in_progress:
        yield "delete interrupted"
    if any((image := layers.images.get(disk.frozen or "")) and image.is_missing for disk in snapshot.disks):
        yield "image missing"
    if snapshot.annotations.pinned:
        yield "pinned"
    if snapshot.annotations.known_good:
        yield "known good"
    if snapshot.annotations.safety:
        yield "safety"
    if snapshot.kind is not usual:
        yield words.kind(snapshot.kind)


def _print_trouble(out: Console, trouble: Trouble, where: str = "", more: str = "") -> None:
    """Print a trouble on a line of its own."""
    style = "red" if trouble.severity is Severity.ERROR else "yellow"
    out.print(f"{where}{trouble.severity.word}: {plain(trouble.text)}{more}", style=style)


def _lanes_text(row: LaneRow[RowId], width: int, current: str | None) -> str:
    """A row's lines, with a mark for its node: full for snapshots, double for the current one, hollow for *Now*."""
    cells = draw_row(row, width)
    mark = "○" if row.id is NOW else "◉" if row.id == current else "●"
    return f"{cells[: 2 * row.lane]}{mark}{cells[2 * row.lane + 1 :]} "


# Lists


_MARK = " !"
"""Stands after the name of a machine that has troubles."""


def list_json(hosts: Iterable[Host], readings: Iterable[DomainReading]) -> list[dict[str, Any]]:
    """The document of `list --json`: hosts, with their machines and totals."""
    return [
        {
            "host": host.uri,
            "libvirt": _version(host.libvirt_version),
            "read_only": host.read_only,
            "totals": {"disk": host_disk(r.costs for r in machines).bytes},
            "domains": [
                {
                    "domain": reading.domain.name,
                    "uuid": reading.domain.uuid,
                    "state": reading.domain.state.value,
                    "snapshots": len(reading.tree),
                    "depth": reading.tree.depth,
                    "current": reading.tree.current,
                    "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
                    "troubles": _troubles_json(reading),
                }
                for reading in machines
            ],
        }
        for host, machines in _by_host(hosts, readings)
    ]


def print_list(out: Console, hosts: Iterable[Host], readings: Iterable[DomainReading]) -> None:
    """Print hosts and their machines. Below stands the worst trouble of each machine that is marked with a `!`."""
    for host, machines in _by_host(hosts, readings):
        disk = words.figure(host_disk(reading.costs for reading in machines))
        access = ", read-only" if host.read_only else ""
        heading = f"{plain(host.uri)}  (libvirt {_version(host.libvirt_version)}{access}; disk {disk})"
        out.print(heading, style="bold", soft_wrap=False)
        columns = (
            _Column("Virtual machine", short_title="VM", turn=3, cut=_Cut.MIDDLE, stays=True),
            _Column("State"),
            _Column("Snapshots", right=True),
            _Column("Depth", right=True, turn=4),
            _Column("Disk", right=True),
            _Column("Saved memory", short_title="Memory", right=True, turn=2, stays=True),
            _Column("Current", turn=1, cut=_Cut.MIDDLE),
        )
        for reading in machines:
            _add_row(
                columns,
                plain(reading.domain.name) + (_MARK if reading.troubles else ""),
                reading.domain.state.value,
                str(len(reading.tree)),
                str(reading.tree.depth),
                words.figure(reading.costs.disk),
                words.figure(reading.costs.memory),
                plain(reading.tree.current or "—"),
            )
        _print_table(out, columns)
        for reading in machines:
            if troubles := reading.troubles:
                more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
                _print_trouble(out, troubles[0], f"{plain(reading.domain.name)}: ", more)


def _by_host(hosts: Iterable[Host], readings: Iterable[DomainReading]) -> list[tuple[Host, list[DomainReading]]]:
    """Every host with its machines, one without machines too."""
    machines: dict[str, list[DomainReading]] = {}
    for reading in readings:
        machines.setdefault(reading.host.uri, []).append(reading)
    return [(host, machines.get(host.uri, [])) for host in hosts]


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


# Plans


def print_plan(out: Console, plan: Plan) -> None:
    """Print what a plan would do, what it costs and what to know. Refusals are the caller's to say."""
    for number, step in enumerate(plan.steps, start=1):
        out.print(f"{number}. {plain(describe_step(step))}")
    for warning in plan.warnings:
        out.print(f"Note: {plain(warning.reason)}", style="yellow")
    if plan.steps:
        forecast = plan.forecast
        out.print(
            f"Frees {words.figure(forecast.frees)}, copies {words.figure(forecast.copies)}, "
            f"needs up to {words.figure(forecast.peak_extra)} meanwhile."
        )
        out.print(f"Can be undone: {plain(plan.undo.text)}" if plan.undo else "This can't be undone.")


def result_json(plan: Plan, operation: Operation) -> dict[str, Any]:
    """The plan's document with what came of it under `result`."""
    error = operation.error
    return plan_to_json(plan) | {
        "result": {
            "state": operation.state.value,
            "steps_done": operation.steps_done,
            "seconds": None if operation.finished is None else round(operation.finished - operation.started, 3),
            "error": None
            if error is None
            else {"summary": error.summary, "hint": error.hint, "details": error.details},
        }
    }
