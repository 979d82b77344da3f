"""Text that somebody else chose (names, notes, paths, errors), shown as it is and never as markup.

`plans.wording.plain` makes one safe line of it. Here is what Qt needs on top of that.
"""

from __future__ import annotations

import html
import re

from snaptree.model.text import fit_for_xml
from snaptree.plans.wording import plain

_FIRST_STRONG_ISOLATE = "\u2068"
_POP_DIRECTIONAL_ISOLATE = "\u2069"
_ISOLATED = re.compile(
    f"({_FIRST_STRONG_ISOLATE}[^{_FIRST_STRONG_ISOLATE}{_POP_DIRECTIONAL_ISOLATE}\n]*{_POP_DIRECTIONAL_ISOLATE})"
)
"""What `in_sentence` made of a name. Whoever made one: that it ends where it began is all that it does."""


def line(text: str) -> str:
    """One safe line, as `plain` makes it, in which names stay apart that `in_sentence` set apart."""
    if text.isprintable():
        return text
    # Every other part is isolated.
    parts = enumerate(_ISOLATED.split(text))
    return "".join(in_sentence(part[1:-1]) if number % 2 else plain(part) for number, part in parts)


def lines(text: str) -> str:
    """Text of several lines, such as a note: every line safe, the lines kept."""
    return "\n".join(line(each.replace("\t", "    ")) for each in text.replace("\r\n", "\n").split("\n"))


def in_sentence(text: str) -> str:
    """A name between other words: one line, and its writing direction does not spill over."""
    shown = plain(text)
    return shown if shown.isascii() else f"{_FIRST_STRONG_ISOLATE}{shown}{_POP_DIRECTIONAL_ISOLATE}"


def tooltip(text: str) -> str:
    """Plain text for a tooltip. Qt takes a tooltip for rich text if it looks like it: so it always is, escaped."""
    if not text:
        return ""
    escaped = html.escape(lines(text)).replace("\n", "<br>")
    return f'<div style="white-space: pre-wrap">{escaped}</div>'


def note_of(text: str) -> str:
    """A note as somebody wrote or pasted it, without characters that nobody sees and libvirt can't write down."""
    return fit_for_xml(text).strip()


def menu_text(text: str) -> str:
    """Text for a menu item, a button or a tab, where `&` would mark a shortcut."""
    return line(text).replace("&", "&&")


def window_title(text: str) -> str:
    """Text for a window's title, where Qt replaces `[*]` by its mark of unsaved changes."""
    return line(text).replace("[*]", "[*][*]")
