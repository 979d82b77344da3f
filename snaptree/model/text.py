"""Words for sentences: text that somebody else chose stays one line and obeys nothing, bytes have units."""

from __future__ import annotations

import re
import shlex

import humanize

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to say, not even by a number (its production 2, "Char"); libxml2 refuses it."""


def plain(text: str) -> str:
    """Text with everything that would move the cursor or reverse the line written as an escape."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shell_word(text: str) -> str:
    """Text as one word of a command to be copied: bash and zsh read it back, whatever is in it, and no screen obeys it.

    What is not printed as it is stands in the shells' own escapes. Source: bash(1), "QUOTING", on $'...'.
    """
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_in_shell_quotes, text))}'"


def _in_shell_quotes(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no text, as os.fsdecode keeps it
        return f"\\x{number - 0xDC00:02x}"
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def not_in_xml(text: str) -> str:
    """The first character that libvirt can't write down, in words; empty if there is none."""
    found = _NOT_IN_XML.search(text)
    return "" if found is None else f"{quoted(found[0])} (U+{ord(found[0]):04X})"


def fit_for_xml(text: str) -> str:
    """Text without the characters that libvirt can't write down."""
    return _NOT_IN_XML.sub("", text)


def quoted(name: str) -> str:
    """A snapshot's name as it stands in a sentence."""
    return f"“{plain(name)}”"


def size(number_of_bytes: float) -> str:
    """Bytes in binary units: `512 Bytes`, `1.2 GiB`, `−3.1 GiB`."""
    sign = "−" if number_of_bytes < 0 else ""
    return sign + humanize.naturalsize(abs(number_of_bytes), binary=True, format="%.1f")
