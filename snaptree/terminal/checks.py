"""`snaptree check`: what is found on machines and hosts, the worst first, each with the command that cures it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.text import shell_word
from snaptree.model.troubles import Severity
from snaptree.plans.advice import Advice, Cure
from snaptree.plans.intention import Delete, Prune
from snaptree.terminal.console import plain
from snaptree.terminal.policy_options import arguments_of
from snaptree.terminal.reading import print_trouble


@dataclass(frozen=True, slots=True)
class Finding:
    """A piece of advice, and where it holds."""

    advice: Advice
    host: str
    """Its address."""
    domain: str = ""
    """Empty for what machines share."""
    command: tuple[str, ...] = ()
    """What cures it; empty if nothing does."""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.advice.severity


def findings_on(
    host: str, domain: str, advice: Iterable[Advice], where: Sequence[str], program: str = "snaptree"
) -> list[Finding]:
    """Findings of a machine or a host. `where` are the options by which commands find that host."""
    return [
        Finding(each, host, domain, () if each.cure is None else (program, *where, *command_of(each.cure)))
        for each in advice
    ]


def command_of(cure: Cure) -> tuple[str, ...]:
    """The command that does what a cure wants, and its arguments."""
    match cure.intention:
        case Prune(policy=policy):
            options = arguments_of(policy)
            is_dashed = cure.domain.startswith("-")
            return ("prune", *options, *_names(cure.domain)) if is_dashed else ("prune", cure.domain, *options)
        case Delete(snapshots=names):
            return ("delete", *_names(cure.domain, *names))
        case _:
            return ("recover", *_names(cure.domain))


def _names(*names: str) -> tuple[str, ...]:
    """Names as arguments: none of them is taken for an option."""
    return ("--", *names) if any(name.startswith("-") for name in names) else names


def findings_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The document of `check --json`. `command` is null where nothing cures it."""
    return [
        {
            "host": each.host,
            "domain": each.domain or None,
            "kind": each.advice.kind.value,
            "severity": each.severity.word,
            "text": each.advice.text,
            "why": each.advice.why,
            "remedy": each.advice.remedy,
            "command": list(each.command) or None,
        }
        for each in findings
    ]


def print_findings(out: Console, findings: Sequence[Finding], machines: int) -> None:
    """Print findings, or that there are none on so many machines."""
    if not findings:
        out.print(f"Nothing found: {words.count(machines, 'machine')} looked at.")
        return
    for each in findings:
        print_trouble(out, each.advice, f"{plain(each.domain or each.host)}: ")
        for text in filter(None, (each.advice.why, each.advice.remedy)):
            out.print(f"  {plain(text)}", soft_wrap=False)
        if each.command:
            out.print(f"  {' '.join(map(shell_word, each.command))}", style="bold")  # as it is, to be copied
