"""What somebody else chose, on a terminal: shown, and never obeyed."""

from __future__ import annotations


def plain(text: str) -> str:
    """One line of text in which nothing moves the cursor, sets a colour or turns the reading direction.

    Whatever is not to be seen (control characters, old and new, and marks of direction) is written as an escape.
    """
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def plain_lines(text: str) -> str:
    """The same of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _visible(character: str) -> str:
    return {"\n": "⏎", "\t": "⇥"}.get(character, repr(character)[1:-1])
