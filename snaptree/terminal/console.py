"""Printing: for a screen, for a pipe, as JSON, and what someone else chose made safe."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Any

from rich.console import Console

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


def print_note(text: str) -> None:
    """Print text of several lines as it is, so that a file can take it; only a screen is spared what it would obey."""
    shown = "\n".join(plain(line) for line in text.split("\n")) if sys.stdout.isatty() else text
    sys.stdout.write(f"{shown}\n")


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


def plain(text: str) -> str:
    """Text that someone else chose, safe on a terminal: control characters are shown, not obeyed."""
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def _visible(character: str) -> str:
    return {"\n": "⏎", "\t": "⇥"}.get(character, f"\\x{ord(character):02x}")
