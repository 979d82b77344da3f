"""What was set otherwise: in the inspector, in a dialog of its own, and in the preview of a revert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import libvirt
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QSignalSpy
from PySide6.QtWidgets import QLabel, QWidget
from pytestqt.qtbot import QtBot

from snaptree.model.errors import SnapTreeError
from snaptree.model.settings import Comparison, SettingChange
from snaptree.ui.actions import Actions
from snaptree.ui.availability import Selection
from snaptree.ui.changed_settings import ChangedSettings, Moments, moments_to_tell, selected_moments
from snaptree.ui.compare_dialog import CompareDialog
from snaptree.ui.estate import HostEntry
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.theme import LIGHT, Theme
from tests.kit.machines import EmbeddedHost, Machine
from tests.ui.conftest import Driver
from tests.ui.values import HOSTILE_NAMES, chain, machine, snapshot

MEMORY = SettingChange("Memory", "2 GiB", "4 GiB")
DISK = SettingChange("Disk vdb", None, "/images/b.qcow2 (qcow2), bus virtio")


@pytest.fixture
def parent(qtbot: QtBot, light: Theme) -> QWidget:
    made = QWidget()
    qtbot.addWidget(made)
    made.resize(320, 400)
    made.show()
    return made


# What is compared


def test_a_selection_says_what_is_compared() -> None:
    shown = machine([*chain(3), snapshot("side", "s1", days=0.5)], "s3")
    where = shown.id

    def select(*names: str, now: bool = False) -> Selection:
        return Selection(shown, names, now)

    assert selected_moments(select("s2")) == Moments(where, "s2", None)
    assert selected_moments(select("s2", now=True)) == Moments(where, "s2", None)
    assert selected_moments(select("side", "s2")) == Moments(where, "s2", "side"), "the older one first"
    assert selected_moments(select("s1", "s2", "s3")) is None
    assert selected_moments(select("s1", "s2", now=True)) is None
    assert selected_moments(select(now=True)) is None
    assert selected_moments(Selection()) is None
    assert moments_to_tell(select("side")) == Moments(where, "s1", "side"), "with what it descends from"
    assert moments_to_tell(select()) == Moments(where, "s3", None)
    assert moments_to_tell(select("s1")) is None, "a root descends from nothing"
    assert moments_to_tell(select("s1", "s3")) == Moments(where, "s1", "s3")


def test_the_action_is_off_where_there_is_nothing_to_compare(parent: QWidget) -> None:
    actions = Actions(parent)
    shown = machine(chain(3))
    for names, is_on in (((), False), (("s1",), True), (("s1", "s2"), True), (("s1", "s2", "s3"), False)):
        actions.offer(Selection(shown, names))
        assert actions.compare.isEnabled() is is_on
    assert "Select two rows" in actions.compare.toolTip()


# The inspector


def test_the_inspector_asks_once_and_shows_the_answer(parent: QWidget) -> None:
    section = ChangedSettings(parent)
    asked = QSignalSpy(section.asked)
    selection = Selection(machine(chain(3)), ("s2",))
    section.show_selection(selection)
    section.show_selection(selection)
    assert asked.count() == 1
    moments = asked.at(0)[0]
    assert "reading" in section.since.text()
    section.answer(moments, Comparison("s1", "s2", (MEMORY, DISK)))
    assert section.since.text() == "Since s1:"
    assert section.changes.lines == ["Memory: 2 GiB → 4 GiB", f"Disk vdb added: {DISK.after}"]
    section.answer(moments, Comparison("s1", "s2", ()))
    assert section.since.text() == "Since s1: none."
    assert section.changes.isHidden()
    section.answer(moments, SnapTreeError("It is gone."))
    assert "It is gone." in section.since.text()


def test_answers_that_come_too_late_are_dropped(parent: QWidget) -> None:
    section = ChangedSettings(parent)
    shown = machine(chain(3))
    section.show_selection(Selection(shown, ("s2",)))
    section.show_selection(Selection(shown, ("s3",)))
    section.answer(Moments(shown.id, "s1", "s2"), Comparison("s1", "s2", (MEMORY,)))
    assert section.changes.isHidden()
    section.show_selection(Selection(shown, ("s1",)))
    assert section.isHidden(), "nothing to compare with"


def test_long_lists_end_in_how_many_more_there_are(parent: QWidget) -> None:
    section = ChangedSettings(parent)
    shown = machine(chain(2))
    section.show_selection(Selection(shown, ("s2",)))
    many = tuple(SettingChange(f"Setting {number}", "x" * 1000, None) for number in range(30))
    section.answer(Moments(shown.id, "s1", "s2"), Comparison("s1", "s2", many))
    lines = section.changes.lines
    assert lines[-1] == "and 22 more"
    assert all(len(line) < 150 for line in lines)


# The dialog


@dataclass
class Host:
    """A host whose backend answers when the test wants it to."""

    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    answer: Callable[[Comparison | SnapTreeError], None] = lambda _result: None

    @property
    def backend(self) -> Host:
        return self

    def compare(self, uuid: str, before: str | None, after: str | None, on_ready: Callable[..., None]) -> None:
        self.asked.append((uuid, before, after))
        self.answer = on_ready


def compare(host: Host, parent: QWidget, name: str = "web-01", before: str = "s1") -> CompareDialog:
    moments = Moments(machine(chain(2)).id, before, None)
    dialog = CompareDialog(cast("HostEntry", host), name, moments, parent)
    dialog.open()
    return dialog


def cells(dialog: CompareDialog) -> list[list[str]]:
    table = dialog.table
    items = [[table.item(row, column) for column in range(3)] for row in range(table.rowCount())]
    return [[item.text() for item in row if item is not None] for row in items]


XML = (
    "--- s1",
    "+++ Now",
    "@@ -1 +1 @@",
    '-<memory unit="GiB">2</memory>',
    '+<memory unit="GiB">4</memory>',
)


def test_the_dialog_is_there_before_the_answer(parent: QWidget) -> None:
    host = Host()
    dialog = compare(host, parent)
    assert dialog.isVisible()
    assert host.asked == [("web-01", "s1", None)]
    assert not dialog.copy_button.isEnabled()
    host.answer(Comparison("s1", None, (MEMORY, DISK), XML))
    assert dialog.summary.text() == "2 settings differ."
    assert cells(dialog) == [["Memory", "2 GiB", "4 GiB"], ["Disk vdb", "—", str(DISK.after)]]
    titles = [dialog.table.horizontalHeaderItem(column) for column in range(3)]
    assert [title.text() for title in titles if title is not None] == ["Setting", "s1", "Now"]
    dialog.copy_button.click()
    assert QGuiApplication.clipboard().text() == f"Memory: 2 GiB → 4 GiB\nDisk vdb added: {DISK.after}"
    dialog.tabs.setCurrentWidget(dialog.xml)
    dialog.copy_button.click()
    assert QGuiApplication.clipboard().text() == "\n".join(XML)
    dialog.close()


def test_what_was_added_and_removed_has_a_sign_and_a_colour(parent: QWidget) -> None:
    host = Host()
    dialog = compare(host, parent)
    host.answer(Comparison("s1", None, (MEMORY,), XML))
    colours = {}
    block = dialog.xml.document().firstBlock()
    while block.isValid():
        (shown,) = block.layout().formats()
        colours[block.text()[:4]] = shown.format.foreground().color()
        block = block.next()
    assert colours == {
        "--- ": LIGHT.dim, "+++ ": LIGHT.dim, "@@ -": LIGHT.dim, "-<me": LIGHT.error, "+<me": LIGHT.good,
    }  # fmt: skip
    dialog.close()


def test_nothing_differs_and_nothing_is_known_are_said(parent: QWidget) -> None:
    host = Host()
    dialog = compare(host, parent)
    host.answer(Comparison("s1", None, ()))
    assert dialog.summary.text() == "The settings are the same."
    assert not dialog.tabs.isEnabled()
    dialog.close()
    dialog = compare(host, parent)
    host.answer(SnapTreeError("No such snapshot.", hint="Refresh."))
    assert "No such snapshot. Refresh." in dialog.summary.text()
    dialog.close()


def test_an_answer_after_the_dialog_was_closed_has_nobody_to_show_it_to(qtbot: QtBot, parent: QWidget) -> None:
    host = Host()
    dialog = compare(host, parent)
    with qtbot.waitSignal(dialog.destroyed):
        dialog.close()
    host.answer(Comparison("s1", None, (MEMORY,), XML))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_and_values_are_plain(parent: QWidget, name: str) -> None:
    host = Host()
    dialog = compare(host, parent, name, name)
    host.answer(Comparison(name, None, (SettingChange(name, name, None),), (f"-{name}",)))
    for label in dialog.findChildren(QLabel):
        assert label.textFormat() is Qt.TextFormat.PlainText or not label.text()
    assert all(text.isprintable() for row in cells(dialog) for text in row)
    assert dialog.width() <= 900
    dialog.close()
    section = ChangedSettings(parent)
    shown = machine([snapshot(name), snapshot("child", name)])
    section.show_selection(Selection(shown, ("child",)))
    section.answer(Moments(shown.id, name, "child"), Comparison(name, "child", (SettingChange(name, None, name),)))
    for label in section.findChildren(QLabel):
        assert label.textFormat() is Qt.TextFormat.PlainText
    assert section.minimumSizeHint().width() <= 320


# The real window


@pytest.fixture
def grown(host: EmbeddedHost) -> Machine:
    """Of two snapshots the second one has more memory, and now the machine has a title."""
    made = host.make_machine(running=False)
    made.virsh_take("small")
    text = made.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    made.connection.handle.defineXML(text.replace("unit='KiB'>8192", "unit='KiB'>16384"))
    made.virsh_take("large")
    made.handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "<b>Grown</b>", None, None, 0)
    return made


@pytest.mark.qemu
def test_an_administrator_asks_what_was_different_then(
    open_window: Callable[..., Driver], host: EmbeddedHost, grown: Machine
) -> None:
    driver = open_window(host.uri)
    driver.show_machine(host.uri, grown.uuid)
    section = driver.window.inspector.changed
    driver.until(lambda: section.changes.lines == ["Title added: <b>Grown</b>"])
    driver.view.select(["large"])
    driver.until(lambda: section.changes.lines == ["Memory: 8 MiB → 16 MiB"])
    driver.view.select(["small"])
    assert section.isHidden()

    driver.window.actions_.compare.trigger()
    dialog = driver.dialog(CompareDialog)
    assert isinstance(dialog, CompareDialog)
    driver.until(dialog.table.rowCount)
    assert cells(dialog) == [["Title", "—", "<b>Grown</b>"], ["Memory", "8 MiB", "16 MiB"]]
    assert "+  <title>&lt;b&gt;Grown&lt;/b&gt;</title>" in dialog.xml.toPlainText()
    dialog.close()

    driver.window.actions_.revert_with_choices.trigger()
    preview = driver.plan_dialog()
    assert isinstance(preview, PlanDialog)
    shown = "\n".join(label.text() for label in preview.findChildren(QLabel))
    assert "Settings that change back" in shown
    assert "Memory: 16 MiB → 8 MiB\nTitle removed: <b>Grown</b>" in shown
    preview.close()
