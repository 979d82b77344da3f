"""Text of others is shown as it is: no markup, no hidden characters, nothing that reorders its neighbours."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import Qt
from PySide6.QtGui import QTextDocument
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from snaptree.plans.wording import plain
from snaptree.ui.labels import ElidedLabel, PlainLabel, PlainLines
from snaptree.ui.plan_view import FoldedNames, Notice
from snaptree.ui.text import in_sentence, lines, menu_text, tooltip, window_title
from tests.ui.values import HOSTILE_NAMES


def read_tooltip(text: str) -> str:
    """What a person reads in the tooltip that Qt makes of a text."""
    assert text.startswith("<div "), "Qt guesses whether a text is rich: it must not have to"
    document = QTextDocument()
    document.setHtml(text)
    return document.toPlainText()


def is_safe(shown: str) -> bool:
    """Whether nothing in it moves or reorders anything: what isolates a name ends where it began."""
    without = re.sub("\u2068([^\u2068\u2069\n]*)\u2069", r"\1", shown)
    return all(character.isprintable() or character == "\n" for character in without)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_tooltips_show_names_as_they_are(name: str) -> None:
    assert read_tooltip(tooltip(f"Snapshot {name}")) == lines(f"Snapshot {name}")


@given(st.text())
def test_tooltips_show_any_text(text: str) -> None:
    if text:
        # Qt lets nothing but spaces at the ends of a document go.
        assert read_tooltip(tooltip(text)).rstrip(" ") == lines(text).rstrip(" ")


@given(st.text())
def test_nothing_invisible_reaches_the_screen(text: str) -> None:
    assert is_safe(lines(text))
    assert "\n" not in in_sentence(text)


def test_lines_stay_lines() -> None:
    assert lines("one\r\ntwo\n\tthree") == "one\ntwo\n    three"


@given(st.text(min_size=1))
def test_a_name_does_not_turn_the_sentence_around(name: str) -> None:
    shown = in_sentence(name)
    if not shown.isascii():
        assert shown.startswith("\N{FIRST STRONG ISOLATE}")
        assert shown.endswith("\N{POP DIRECTIONAL ISOLATE}")
        assert shown[1:-1] == plain(name)


def test_an_ampersand_is_no_shortcut(qtbot: QtBot) -> None:
    button = QPushButton(menu_text("R&D server"))
    qtbot.addWidget(button)
    assert button.shortcut().isEmpty()


def test_a_window_title_keeps_its_brackets(qtbot: QtBot) -> None:
    label = PlainLabel()
    qtbot.addWidget(label)
    label.setWindowTitle(window_title("vm [*] two"))
    label.show()
    assert label.windowTitle() == "vm [*][*] two"
    assert label.windowHandle().title().startswith("vm [*] two")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_labels_never_take_text_for_markup(qtbot: QtBot, name: str) -> None:
    label = PlainLabel(name)
    qtbot.addWidget(label)
    assert label.textFormat() is Qt.TextFormat.PlainText
    assert label.text() == lines(name)


def test_a_long_path_is_wrapped_rather_than_cut(qtbot: QtBot) -> None:
    label = PlainLabel("/var/lib/libvirt/images/" + "x" * 200)
    qtbot.addWidget(label)
    assert label.minimumSizeHint().width() < 150
    line = label.fontMetrics().height()
    assert label.heightForWidth(200) >= 6 * line
    assert label.heightForWidth(4000) < 2 * line


def test_an_elided_label_tells_the_rest_in_its_tooltip(qtbot: QtBot) -> None:
    label = ElidedLabel()
    qtbot.addWidget(label)
    label.set_text("<b>" + "x" * 100, "why")
    label.resize(80, 20)
    label.show()
    assert read_tooltip(label.toolTip()) == "<b>" + "x" * 100 + "\nwhy"
    label.resize(4000, 20)
    assert read_tooltip(label.toolTip()) == "why"
    assert label.text == "<b>" + "x" * 100


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_what_sets_a_name_apart_is_never_shown(qtbot: QtBot, name: str) -> None:
    """Whatever shows a sentence shows the name in it once made safe, and no sign of ours."""
    said = f"Since “{in_sentence(name)}”: none."
    label, elided, folded, many = PlainLabel(said), ElidedLabel(said), FoldedNames([name] * 20), PlainLines()
    many.show_lines([said])
    notice = Notice("info", said, said)
    for widget in (label, elided, folded, many, notice):
        qtbot.addWidget(widget)
    folded.more.click()
    shown = (
        *(each.text() for each in (label, folded.label, notice.text, notice.more)),
        *many.lines,
        elided.text,
        lines(said),
        menu_text(said),
        window_title(said),
        read_tooltip(tooltip(said)),
    )
    for text in shown:
        assert r"\u206" not in text
        assert is_safe(text)
    assert all(text == said for text in (label.text(), elided.text, notice.text.text(), *many.lines))
