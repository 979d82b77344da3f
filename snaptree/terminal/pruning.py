"""What `snaptree prune` prints: what goes and what stays of each machine, and why."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.tree import SnapshotTree
from snaptree.plans.prune import Pruning
from snaptree.terminal.console import plain
from snaptree.terminal.table import Column, Cut, add_row, print_table


def pruning_json(pruning: Pruning) -> dict[str, Any]:
    """What stands beside a plan in `prune --json`: what was decided on each snapshot, and how deep the chain is."""
    return {
        "depth": {"before": pruning.depth, "after": pruning.depth_after},
        "falls_short": pruning.falls_short,
        "decisions": [
            {"name": decision.name, "keeps": decision.keeps, "reasons": list(decision.reasons)}
            for decision in pruning.decisions.values()
        ],
    }


def print_pruning(out: Console, domain: str, tree: SnapshotTree, pruning: Pruning, now: float) -> None:
    """Print what is decided on every snapshot of a machine, and what it comes to."""
    out.print(f"{plain(domain)}: {summary(pruning)}", style="bold", soft_wrap=False)
    columns = (
        Column("", cut=Cut.NOTHING),
        Column("Snapshot", turn=2, cut=Cut.MIDDLE, stays=True),
        Column("Age", right=True),
        Column("Why", turn=1, cut=Cut.END),
    )
    for name, decision in pruning.decisions.items():
        age = words.age(now - tree[name].created)
        add_row(columns, "kept" if decision.keeps else "goes", plain(name), age, plain(decision.reason))
    if pruning.decisions:
        print_table(out, columns)
    if pruning.falls_short:
        out.print(pruning.falls_short, style="yellow", soft_wrap=False)


def summary(pruning: Pruning) -> str:
    """What pruning a machine comes to, in one line: `35 of 41 snapshots go: frees 12.3 MiB, 42 layers become 7`."""
    goes, cost = len(pruning.goes), pruning.cost
    if not goes:
        return (
            f"all of its {words.count(len(pruning.decisions), 'snapshot')} stay"
            if pruning.decisions
            else "no snapshots"
        )
    parts = [f"frees {words.figure(cost.frees)}"]
    if cost.copies.bytes != 0:
        parts.append(f"copies {words.figure(cost.copies)}")
    if pruning.depth_after != pruning.depth:
        parts.append(f"{words.count(pruning.depth, 'layer')} become {pruning.depth_after}")
    verb = "goes" if goes == 1 else "go"
    return f"{goes} of {words.count(len(pruning.decisions), 'snapshot')} {verb}: {', '.join(parts)}"
