"""What `snaptree compare` prints: the settings that differ, in words or as the difference of their XML."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.settings import Comparison
from snaptree.terminal.console import plain
from snaptree.terminal.table import Column, Cut, add_row, print_table

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def comparison_json(domain: str, host: str, comparison: Comparison) -> dict[str, Any]:
    """The document of `compare --json`; null stands for the machine as it is now, and for what is not set."""
    return {
        "domain": domain,
        "host": host,
        "before": comparison.before,
        "after": comparison.after,
        "settings": [asdict(change) for change in comparison.changes],
        "xml": list(comparison.xml),
    }


def print_comparison(out: Console, comparison: Comparison) -> None:
    """Print what differs, one setting a line."""
    before, after = plain(words.moment_named(comparison.before)), plain(words.moment_named(comparison.after))
    if not comparison.changes:
        out.print(f"The settings of {before} and {after} are the same.", soft_wrap=False)
        return
    columns = (
        Column("Setting", turn=3, cut=Cut.MIDDLE, stays=True),
        Column(before, "Before", turn=2, cut=Cut.MIDDLE, stays=True),
        Column(after, "After", turn=1, cut=Cut.MIDDLE, stays=True),
    )
    for change in comparison.changes:
        add_row(columns, plain(change.what), words.setting_value(change.before), words.setting_value(change.after))
    print_table(out, columns)


def print_xml(out: Console, comparison: Comparison) -> None:
    """Print the difference of the definitions as `diff -u` does."""
    for number, line in enumerate(comparison.xml):
        is_heading = number < 2 or line.startswith(("--- ", "+++ "))
        out.print(plain(line), style="bold" if is_heading else _STYLES.get(line[:1], ""))
