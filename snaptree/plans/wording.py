"""Names, files and lists inside sentences for administrators. Whatever a guest or stranger named, it stays one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from snaptree.model.text import not_in_xml as not_in_xml
from snaptree.model.text import plain as plain
from snaptree.model.text import quoted as quoted
from snaptree.model.text import shell_word as shell_word
from snaptree.model.text import size as size

MOST_NAMED = 3
"""How many of a list are named before "and 4 more"."""


def listed(items: Iterable[str], show: Callable[[str], str] = str) -> str:
    """A list in words: "a", "a and b", "a, b, c and 4 more". The order is the caller's.

    `show` makes an item fit to be shown; of many it is asked about few.
    """
    items = items if isinstance(items, Sequence) else list(items)
    more = len(items) - MOST_NAMED if len(items) > MOST_NAMED + 1 else 0
    texts = [show(item) for item in (items[:MOST_NAMED] if more else items)]
    if more:
        texts.append(f"{more} more")
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def snapshots_named(names: Iterable[str]) -> str:
    """Snapshots in words, quoted."""
    return listed(names, quoted)


def files_named(paths: Iterable[str]) -> str:
    """Files in words, each once, in natural reading order of their paths."""
    return listed(sorted(set(paths)), plain)


def machines_named(names: Iterable[str]) -> str:
    """Virtual machines in words, each once."""
    return listed(sorted(set(names)), plain)


def version(number: int) -> str:
    """libvirt's integer version in words: 11003000 is 11.3.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
