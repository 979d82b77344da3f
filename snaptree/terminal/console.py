"""Printing: for a screen, for a pipe, as JSON, and what someone else chose made safe."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Any

from rich.console import Console

from snaptree.terminal.escaping import plain as plain
from snaptree.terminal.escaping import plain_lines

_ENDLESS = 10_000
"""Columns where nobody looks: what is piped on is never cut."""


class _Console(Console):
    """Prints text as it is: no markup, no highlighting, no emoji codes, and nothing that a terminal would obey."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; a text may have several lines."""
        super().print(*(plain_lines(each) if isinstance(each, str) else each for each in objects), **options)


def console(*, stderr: bool = False) -> Console:
    """A console that takes what users named as it is."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _ENDLESS
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def print_json(value: Any) -> None:
    """Print one JSON document. Integers are bytes, times ISO 8601 in UTC; what can't be seen is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = (each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)
    sys.stdout.write(f"{''.join(shown)}\n")


def print_note(text: str) -> None:
    """Print text of several lines as it is, so that a file can take it; only a screen is spared what it would obey."""
    sys.stdout.write(f"{plain_lines(text) if sys.stdout.isatty() else text}\n")


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")
