"""Words for sentences: text that somebody else chose stays one line and obeys nothing, bytes have units."""

from __future__ import annotations

import humanize


def plain(text: str) -> str:
    """Text with everything that would move the cursor or reverse the line written as an escape."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def quoted(name: str) -> str:
    """A snapshot's name as it stands in a sentence."""
    return f"“{plain(name)}”"


def size(number_of_bytes: float) -> str:
    """Bytes in binary units: `512 Bytes`, `1.2 GiB`, `−3.1 GiB`."""
    sign = "−" if number_of_bytes < 0 else ""
    return sign + humanize.naturalsize(abs(number_of_bytes), binary=True, format="%.1f")
