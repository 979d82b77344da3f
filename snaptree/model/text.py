"""Text that somebody else chose, made safe for a sentence: it stays one line, and obeys nothing."""

from __future__ import annotations


def plain(text: str) -> str:
    """Text with everything that would move the cursor or reverse the line written as an escape."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def quoted(name: str) -> str:
    """A snapshot's name as it stands in a sentence."""
    return f"“{plain(name)}”"
