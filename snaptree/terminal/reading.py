"""What a listing is made of: all that was read of one machine, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console

from snaptree import words
from snaptree.model.troubles import Severity, Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.advice import Advice, Observed
from snaptree.plans.facts import Facts
from snaptree.plans.operation import troubles_of_operation
from snaptree.plans.situation import glance
from snaptree.terminal.console import plain


@dataclass(frozen=True)
class DomainReading(Observed):
    """One machine with everything that a listing shows of it."""

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

    @cached_property
    def of_no_use(self) -> Mapping[str, str]:
        """Its snapshots that nobody can rely on to go back to, each with the reason in a word or two."""
        return Facts(glance(self.host, self.domain, self.tree, self.layers, self.unfinished)).of_no_use


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


def print_trouble(out: Console, trouble: Trouble | Advice, where: str = "", more: str = "") -> None:
    """Print a trouble on a line of its own."""
    style = {Severity.ERROR: "red", Severity.WARNING: "yellow"}.get(trouble.severity, "")
    out.print(f"{where}{trouble.severity.word}: {plain(trouble.text)}{more}", style=style, soft_wrap=False)
