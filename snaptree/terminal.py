"""What the terminal commands print: trees, lists and plans, for people and as JSON."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from snaptree import words
from snaptree.model.costs import DomainCosts, host_disk
from snaptree.model.estate import Domain, DomainLayers, Host, Snapshot, SnapshotKind
from snaptree.model.folding import NOW, RowId, fold
from snaptree.model.lanes import LaneRow, draw_row, lay_out
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import Severity, Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import describe_step, plan_to_json
from snaptree.terminal_table import Column, Cut, add_row, print_table


@dataclass(frozen=True, slots=True)
class DomainReading:
    """One machine with everything that a listing shows of it."""

    host: Host
    domain: Domain
    tree: SnapshotTree
    layers: DomainLayers
    costs: DomainCosts
    elsewhere: Elsewhere = ALONE

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


# Trees


def tree_json(reading: DomainReading) -> dict[str, Any]:
    """The document of `tree --json`, with the keys of the design."""
    return {
        "domain": reading.domain.name,
        "host": reading.host.uri,
        "state": reading.domain.state.value,
        "current": reading.tree.current,
        "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
        "troubles": troubles_json(reading),
        "snapshots": [_snapshot_json(snapshot, reading) for snapshot in reading.tree],
    }


def troubles_json(reading: DomainReading) -> list[dict[str, str]]:
    """What is wrong with a machine, the worst first."""
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
    print_table(out, [column for column in columns if column is not marks or not marks.is_empty])


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


def print_troubles(out: Console, reading: DomainReading) -> None:
    """Print what is wrong with a machine, each on a line of its own."""
    for trouble in reading.troubles:
        _print_trouble(out, trouble)


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
                    "troubles": troubles_json(reading),
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
            Column("Virtual machine", short_title="VM", turn=3, cut=Cut.MIDDLE, stays=True),
            Column("State"),
            Column("Snapshots", right=True),
            Column("Depth", right=True, turn=4),
            Column("Disk", right=True),
            Column("Saved memory", short_title="Memory", right=True, turn=2, stays=True),
            Column("Current", turn=1, cut=Cut.MIDDLE),
        )
        for reading in machines:
            add_row(
                columns,
                plain(reading.domain.name) + (_MARK if reading.troubles else ""),
                reading.domain.state.value,
                str(len(reading.tree)),
                str(reading.tree.depth),
                words.figure(reading.costs.disk),
                words.figure(reading.costs.memory),
                plain(reading.tree.current or "—"),
            )
        print_table(out, columns)
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
