"""Names, files and lists inside sentences for administrators. Whatever a guest or stranger named, it stays one line."""

from __future__ import annotations

from collections.abc import Iterable

from snaptree.model.text import plain as plain
from snaptree.model.text import quoted as quoted

MOST_NAMED = 3
"""How many of a list are named before "and 4 more"."""


def listed(items: Iterable[str]) -> str:
    """A list in words: "a", "a and b", "a, b, c and 4 more". The order is the caller's."""
    texts = list(items)
    if len(texts) > MOST_NAMED + 1:
        texts = [*texts[:MOST_NAMED], f"{len(texts) - MOST_NAMED} more"]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def snapshots_named(names: Iterable[str]) -> str:
    """Snapshots in words, quoted."""
    return listed(quoted(name) for name in names)


def files_named(paths: Iterable[str]) -> str:
    """Files in words, each once, in natural reading order of their paths."""
    return listed(plain(path) for path in sorted(set(paths)))


def machines_named(names: Iterable[str]) -> str:
    """Virtual machines in words, each once."""
    return listed(plain(name) for name in sorted(set(names)))


def version(number: int) -> str:
    """libvirt's integer version in words: 11003000 is 11.3.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
