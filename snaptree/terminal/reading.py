"""What a listing is made of: all that was read of one machine, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from snaptree import words
from snaptree.model.costs import DomainCosts
from snaptree.model.estate import Domain, DomainLayers, Host
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import Severity, Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.operation import Operation, troubles_of_operation
from snaptree.terminal.console import plain


@dataclass(frozen=True, slots=True)
class DomainReading:
    """One machine with everything that a listing shows of it."""

    host: Host
    domain: Domain
    tree: SnapshotTree
    layers: DomainLayers
    costs: DomainCosts
    elsewhere: Elsewhere = ALONE
    unfinished: Operation | None = None
    """What was interrupted on it."""

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong with it, the worst first: what the window says too."""
        return worst_first(
            [
                *troubles_of_operation(self.unfinished),
                *troubles_of_layers(self.tree, self.layers),
                *troubles_of_tree(self.tree, is_complete=True),
            ]
        )


def looks_at_json(reading: DomainReading) -> dict[str, str] | None:
    """Which snapshot of which machine this one was made to look at; None if it was made for something else."""
    look = reading.layers.looks_at
    return None if look is None else {"snapshot": look.snapshot, "domain": look.domain, "uuid": look.domain_uuid}


def print_look(out: Console, reading: DomainReading) -> None:
    """Print what a machine was made to look at, if it was."""
    if reading.layers.looks_at is not None:
        out.print(f"{plain(reading.domain.name)} {words.looks_at(reading.layers.looks_at)}", soft_wrap=False)


def troubles_json(reading: DomainReading) -> list[dict[str, str]]:
    """What is wrong with a machine, the worst first."""
    return [{"severity": trouble.severity.word, "text": trouble.text} for trouble in reading.troubles]


def print_troubles(out: Console, reading: DomainReading) -> None:
    """Print what is wrong with a machine, each on a line of its own."""
    for trouble in reading.troubles:
        print_trouble(out, trouble)


def print_trouble(out: Console, trouble: Trouble, where: str = "", more: str = "") -> None:
    """Print a trouble on a line of its own."""
    style = "red" if trouble.severity is Severity.ERROR else "yellow"
    out.print(f"{where}{trouble.severity.word}: {plain(trouble.text)}{more}", style=style, soft_wrap=False)
