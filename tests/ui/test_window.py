"""The real window over real QEMU: what a person sees and does, and what the machine holds afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import libvirt
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QAction, QImage, QShortcut
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog, QLabel, QMenu, QMessageBox, QPushButton, QToolButton

from snaptree.hosts.running import begin_run
from snaptree.jobs import host_backend
from snaptree.jobs.host_backend import Phase
from snaptree.model.estate import Consistency
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Action
from snaptree.ui.application import save_screenshot
from snaptree.ui.compare_dialog import CompareDialog
from snaptree.ui.connect_dialog import ConnectDialog
from snaptree.ui.estate_model import host_title
from snaptree.ui.machine import MachineId
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.settings import HostRequest, SafetySnapshot, Settings, ThemeChoice
from snaptree.ui.snapshot_model import Column
from snaptree.ui.take_choices import Kind
from snaptree.ui.take_dialog import TakeDialog
from snaptree.ui.template_dialog import TemplateDialog
from snaptree.ui.theme import DARK, LIGHT, colours_of
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, NOW, EmbeddedHost, Machine, unchanged
from tests.ui.conftest import Driver, spin
from tests.ui.test_text import read_tooltip

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    """A running machine with two internal snapshots, each with content of its own."""
    made = host.make_machine()
    made.write(1)
    made.virsh_take("first", note="clean install")
    made.write(2)
    made.virsh_take("second")
    made.write(3)
    return made


@pytest.fixture
def driver(open_window: OpenWindow, host: EmbeddedHost, machine: Machine) -> Driver:
    """A window that shows that machine."""
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    return driver


# Looking


def test_a_machine_is_shown_with_its_tree_and_costs(driver: Driver) -> None:
    assert driver.names() == ["first", "second", "Now"]
    model = driver.view.snapshot_model
    memory = model.index(0, Column.MEMORY)
    # What snapshots hold is exact even while the machine writes: no "~", and no "≤" once it was analysed.
    driver.until(lambda: str(memory.data())[0].isdigit())
    assert model.index(0, Column.NOTE).data() == "clean install"
    assert driver.window.windowTitle() == driver.machine.domain.name
    assert driver.window.page.facts.text.startswith("running · snapshots are internal and with memory")


def test_changes_made_elsewhere_appear_and_the_selection_stays(driver: Driver, machine: Machine) -> None:
    driver.view.select(["first"])
    machine.virsh_take("by-virsh")
    driver.until(lambda: "by-virsh" in driver.names())
    assert driver.view.selected_names() == ("first",)
    machine.handle.snapshotLookupByName("second").delete()
    driver.until(lambda: "second" not in driver.names())
    assert driver.view.selected_names() == ("first",)
    assert driver.window.inspector.title.text == "first"


def test_a_machine_that_goes_takes_nothing_with_it(driver: Driver, host: EmbeddedHost, machine: Machine) -> None:
    other = host.make_machine(running=False)
    driver.until(lambda: driver.session.estate.machine(MachineId(host.uri, other.uuid)))
    machine.handle.destroy()
    machine.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
    driver.until(lambda: driver.window.chosen == host.uri)
    assert "1 virtual machine" in driver.window.page.message.text.text()
    driver.show_machine(host.uri, other.uuid)


def test_a_machine_without_snapshots_offers_to_take_one(open_window: OpenWindow, host: EmbeddedHost) -> None:
    bare = host.make_machine(running=False)
    driver = open_window(host.uri)
    driver.show_machine(host.uri, bare.uuid)
    page = driver.window.page.message
    assert page.isVisible()
    assert page.title.text() == "No snapshots yet"
    page.button.click()
    assert driver.dialog(TakeDialog)


def test_the_search_finds_a_snapshot_and_shows_its_machine(driver: Driver, host: EmbeddedHost) -> None:
    host.make_machine(name="unrelated", running=False)
    driver.until(lambda: len(driver.window.model.rows[0].machines) == 2)
    QTest.keyClick(driver.window, Qt.Key.Key_F, Qt.KeyboardModifier.ControlModifier)
    assert driver.window.estate_view.search.hasFocus()
    QTest.keyClicks(driver.window.estate_view.search, "clean inst")
    assert [each.domain.name for each in driver.window.model.rows[0].machines] == [driver.machine.domain.name]


HOSTILE = (
    "<b>x</b>",
    'it\'s "quoted" & <i>more</i>',
    "\N{RIGHT-TO-LEFT OVERRIDE}exe.gnp",
    "x" * 240,
    "\N{PARTY POPPER} emoji",
    "שלום",
    "%s {} $name [*]",
    "<img src=x>\x9b31m",
)


def test_hostile_names_from_libvirt_are_plain_text_everywhere(open_window: OpenWindow, host: EmbeddedHost) -> None:
    names = [name.replace("/", "|") for name in HOSTILE]  # libvirt takes no "/"
    hostile = host.make_machine(name="<b>vm<b> & [*]", running=False, directory=host.directory)
    for name in names:
        hostile.virsh_take(escape(name), note=escape(f"<h1>{name}</h1>"))
    driver = open_window(host.uri)
    driver.show_machine(host.uri, hostile.uuid)
    assert len(driver.names()) == len(names) + 1
    assert all(name.isprintable() for name in driver.names())
    assert driver.names()[0] == "<b>x<|b>"
    assert driver.window.windowTitle() == "<b>vm<b> & [*][*]"
    for name in names:
        driver.view.select([name])
        driver.window.actions_.delete.trigger()
        dialog = driver.plan_dialog()
        for label in (*driver.window.findChildren(QLabel), *dialog.findChildren(QLabel)):
            assert label.textFormat() is Qt.TextFormat.PlainText or not label.text()
        dialog.reject()
        for column in Column:
            index = driver.view.currentIndex().siblingAtColumn(column)
            read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole) or "<div >")


# Taking


def test_a_snapshot_is_taken(driver: Driver, machine: Machine) -> None:
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    assert dialog.name.text().startswith("snapshot-")
    dialog.name.selectAll()
    QTest.keyClicks(dialog.name, "before-update")
    QTest.keyClicks(dialog.note, "why not")
    QTest.keyClick(dialog.name, Qt.Key.Key_Return)  # sooner than any plan can be there
    assert not dialog.take_button.isEnabled()
    dialog.accept()
    driver.until(dialog.take_button.isEnabled)
    assert dialog.isVisible(), "nothing is taken by a plan that nobody saw"
    assert not driver.operations
    QTest.keyClick(dialog.name, Qt.Key.Key_Return)
    driver.last_operation()
    driver.until(lambda: "before-update" in driver.names())
    taken = machine.tree()["before-update"]
    assert taken.description == "why not"
    assert taken.parent == "second"
    assert QApplication.activeModalWidget() is None


def test_file_systems_that_cannot_be_frozen_are_taken_as_they_are_only_if_that_is_ticked(
    driver: Driver, machine: Machine
) -> None:
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    frozen = dialog.choices.buttons[Kind.FROZEN]
    driver.until(lambda: not frozen.isEnabled())
    assert "guest agent" in frozen.accessibleDescription()
    dialog.choices.gives_way.click()
    driver.until(frozen.isEnabled)
    frozen.click()
    driver.until(dialog.take_button.isEnabled)
    dialog.accept()
    driver.last_operation()
    taken = machine.tree().current
    assert taken is not None
    assert machine.tree()[taken].consistency is Consistency.CRASH
    driver.until(lambda: taken in driver.names())
    driver.view.select([taken])
    assert "did not pause the guest" in driver.window.inspector.subtitle.text()


def take_dialog(driver: Driver) -> TakeDialog:
    """The dialog, with its plans made."""
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    driver.until(lambda: dialog.choices.kind is not None and dialog.take_button.isEnabled())
    return dialog


def test_disks_are_chosen_and_files_put_elsewhere(open_window: OpenWindow, host: EmbeddedHost, tmp_path: Path) -> None:
    two = host.make_machine(disks=("qcow2", "qcow2"))
    driver = open_window(host.uri)
    driver.show_machine(host.uri, two.uuid)
    dialog = take_dialog(driver)
    assert list(dialog.disks.ticks) == ["vda", "vdb"]
    dialog.choices.buttons[Kind.INTERNAL].click()
    assert not dialog.disks.ticks["vdb"].isEnabled(), "internal snapshots hold every disk"
    assert not dialog.places.layers.isEnabled()
    dialog.choices.buttons[Kind.MEMORY].click()
    dialog.disks.ticks["vdb"].click()
    dialog.places.toggle.click()
    assert dialog.places.layers.isVisible()
    dialog.places.layers.setText(str(tmp_path / "nowhere"))
    driver.until(lambda: "nowhere" in dialog.choices.buttons[Kind.MEMORY].accessibleDescription())
    assert not dialog.take_button.isEnabled()
    assert dialog.choices.buttons[Kind.MEMORY].isEnabled(), "what is chosen stays so, and the plan says why it can't be"
    dialog.places.layers.setText(f"{tmp_path}/")
    dialog.places.memory.setText(str(tmp_path))
    driver.until(dialog.take_button.isEnabled)
    dialog.accept()
    driver.last_operation()
    (taken,) = two.tree()
    assert two.active_layers() == {"vda": tmp_path / f"disk0.{taken.name}", "vdb": two.directory / "disk1.qcow2"}
    assert taken.memory_file == str(tmp_path / f"disk0.{taken.name}.mem")
    two.handle.destroy()


def test_a_directory_is_chosen_where_it_is_this_computer(driver: Driver, tmp_path: Path) -> None:
    dialog = take_dialog(driver)
    dialog.choices.buttons[Kind.DISKS].click()
    dialog.places.toggle.click()
    (choose, _memory) = (
        button for button in dialog.places.findChildren(QToolButton) if button.accessibleName().startswith("Choose")
    )
    choose.click()
    asked = driver.dialog(QFileDialog)
    assert isinstance(asked, QFileDialog)
    asked.setDirectory(str(tmp_path.parent))
    asked.selectFile(tmp_path.name)
    asked.accept()
    driver.until(lambda: dialog.places.layers.text() == str(tmp_path))


def test_each_choice_says_what_it_costs(driver: Driver) -> None:
    dialog = take_dialog(driver)
    for kind in (Kind.DISKS, Kind.MEMORY, Kind.LIVE, Kind.INTERNAL):
        said = dialog.choices.buttons[kind].accessibleDescription()
        assert " now; " in said
        assert said.endswith(" free")


def test_what_the_guest_changes_meanwhile_is_said_once_it_is_measured(
    open_window: OpenWindow, host: EmbeddedHost
) -> None:
    large = host.make_machine(running=False)
    large.handle.setMaxMemory(160 << 10)
    large.handle.create()
    driver = open_window(host.uri)
    driver.show_machine(host.uri, large.uuid)
    live = take_dialog(driver).choices.buttons[Kind.LIVE]
    driver.until(lambda: "its memory; " in live.accessibleDescription())
    large.handle.destroy()


def test_a_template_names_new_snapshots_from_now_on(driver: Driver) -> None:
    dialog = take_dialog(driver)
    dialog.template_button.click()
    asked = driver.dialog(TemplateDialog)
    assert isinstance(asked, TemplateDialog)
    asked.template.setText("{vm}-{when}")
    assert not asked.ok_button.isEnabled()
    asked.template.setText("{vm}-{kind}")
    asked.ok_button.click()
    vm = driver.machine.domain.name
    assert dialog.name.text() == f"{vm}-{dialog.choices.kind}"
    dialog.choices.buttons[Kind.DISKS].click()
    assert dialog.name.text() == f"{vm}-disks", "it follows what is chosen"
    assert dialog.name.selectedText() == f"{vm}-disks", "and typing replaces it"
    dialog.name.setText("mine")
    dialog.choices.buttons[Kind.INTERNAL].click()
    assert dialog.name.text() == "mine", "but for a name that somebody wrote"
    dialog.reject()
    again = take_dialog(driver)
    assert again.name.text() == f"{vm}-{again.choices.kind}"


def test_every_part_of_taking_is_reached_by_the_keyboard(driver: Driver) -> None:
    dialog = take_dialog(driver)
    dialog.places.toggle.click()
    reached = {dialog.focusWidget()}
    for _ in range(30):
        QTest.keyClick(dialog.focusWidget(), Qt.Key.Key_Tab)
        reached.add(dialog.focusWidget())
    kind = dialog.choices.kind
    assert kind is not None
    wanted = {
        *(dialog.name, dialog.template_button, dialog.note, dialog.choices.buttons[kind], dialog.choices.gives_way),
        *(*dialog.disks.ticks.values(), dialog.places.toggle, dialog.take_button),
    }
    if kind is not Kind.INTERNAL:
        wanted.add(dialog.places.layers)
    assert {each for each in wanted if each.isEnabled()} <= reached
    chosen = dialog.choices.buttons[kind]
    chosen.setFocus()
    QTest.keyClick(chosen, Qt.Key.Key_Up)
    assert dialog.choices.kind not in (None, kind), "arrow keys choose another"


def test_names_that_cannot_be_are_refused_at_once(driver: Driver) -> None:
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    for name, reason in (
        ("second", "There is a snapshot “second” already."),
        ("a/b", "has “/” in it"),
        ("", "a name"),
    ):
        dialog.name.setText(name)
        assert reason in dialog.name_problem.text()
        assert not dialog.take_button.isEnabled()
    dialog.name.setText("good")
    driver.until(lambda: dialog.take_button.isEnabled() and not dialog.name_problem.text())


def test_what_a_machine_cannot_hold_is_greyed_with_its_reason(open_window: OpenWindow, host: EmbeddedHost) -> None:
    raw = host.make_machine(disks=("raw",))
    driver = open_window(host.uri)
    driver.show_machine(host.uri, raw.uuid)
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    inside = dialog.choices.buttons[Kind.INTERNAL]
    driver.until(lambda: not inside.isEnabled())
    assert any("Not now: " in label.text() for label in dialog.findChildren(QLabel))


# Reverting


def test_one_click_reverts_and_one_click_takes_it_back(driver: Driver, machine: Machine) -> None:
    before = machine.contents()
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    driver.last_operation()
    assert QApplication.activeModalWidget() is None, "nothing was asked"
    after = machine.contents()
    assert after[NOW] == before["first"]
    driver.until(lambda: driver.machine.tree is not None and driver.machine.tree.current == "first")
    (safety,) = [each for each in machine.tree() if each.annotations.safety]
    assert after[safety.name] == before[NOW]
    driver.until(lambda: safety.name in driver.names())
    assert driver.window.activity.isVisible()
    driver.window.actions_.undo.trigger()
    driver.until(lambda: len(driver.operations) == 2)
    driver.last_operation()
    assert machine.contents() == before
    driver.until(lambda: driver.names() == ["first", "second", "Now"])
    assert not driver.window.actions_.undo.isEnabled()


def run_another(driver: Driver, begin: Callable[[], object]) -> None:
    """Begin an operation, and wait for its end."""
    count = len(driver.operations)
    begin()
    driver.until(lambda: len(driver.operations) > count)
    driver.last_operation()


def test_taking_a_revert_back_is_previewed_if_something_was_written_since(
    driver: Driver, host: EmbeddedHost, machine: Machine
) -> None:
    layered = host.make_machine(running=False)
    layered.write(1)
    layered.virsh_take_disk_only("first")
    for each in (machine, layered):
        driver.show_machine(host.uri, each.uuid)
        driver.view.select(["first"])
        run_another(driver, driver.window.actions_.revert.trigger)
        each.write(9)
        written = each.contents()
        driver.until(driver.window.actions_.undo.isEnabled)
        driver.window.actions_.undo.trigger()
        preview = driver.plan_dialog()
        assert not preview.run_button.isDefault(), "what is lost needs more than Enter"
        assert any("is lost for good" in label.text() for label in preview.findChildren(QLabel))
        assert each.contents() == written
        preview.reject()
        assert driver.window.activity.row(driver.operations[-1].id).undo.isEnabled(), "it can still be taken back"
        driver.window.actions_.undo.trigger()
        run_another(driver, driver.plan_dialog().run_button.click)
        assert not any(snapshot.annotations.safety for snapshot in each.tree())


def test_a_revert_that_changes_more_than_disks_is_previewed(driver: Driver, host: EmbeddedHost) -> None:
    running, changed = host.make_machine(), host.make_machine(running=False)
    running.virsh_take_disk_only("mark")
    changed.virsh_take("mark")
    changed.handle.setMaxMemory(changed.handle.maxMemory() * 2)
    for machine, why in ((running, "is running now, and is off afterwards"), (changed, "Settings of the machine")):
        driver.show_machine(host.uri, machine.uuid)
        driver.view.select(["mark"])
        driver.window.actions_.revert.trigger()
        dialog = driver.plan_dialog()
        assert any(why in label.text() for label in dialog.findChildren(QLabel)), why
        dialog.reject()
    assert driver.operations == []
    assert running.is_running


def test_taking_a_take_back_is_previewed_for_what_it_took_is_gone_then(driver: Driver, machine: Machine) -> None:
    driver.window.actions_.take.trigger()
    dialog = driver.dialog(TakeDialog)
    assert isinstance(dialog, TakeDialog)
    dialog.name.setText("third")
    driver.until(dialog.take_button.isEnabled)
    dialog.accept()
    driver.last_operation()
    driver.until(lambda: "third" in driver.names())
    driver.until(driver.window.actions_.undo.isEnabled)
    driver.window.actions_.undo.trigger()
    preview = driver.plan_dialog()
    assert not preview.run_button.isDefault(), "what can't be undone needs more than Enter"
    assert "third" in machine.tree().snapshots
    preview.run_button.click()
    driver.until(lambda: len(driver.operations) == 2)
    driver.last_operation()
    driver.until(lambda: "third" not in driver.names())
    assert "third" not in machine.tree().snapshots
    assert not driver.window.actions_.undo.isEnabled()


def test_without_the_safety_snapshot_the_loss_is_named_first(driver: Driver, machine: Machine) -> None:
    Settings().safety_snapshot = SafetySnapshot.NEVER
    before = machine.contents()
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    dialog = driver.plan_dialog()
    assert not dialog.ticks[0].isChecked()
    assert any("lost" in label.text() for label in dialog.findChildren(QLabel))
    dialog.ticks[0].setChecked(True)
    driver.until(dialog.run_button.isEnabled)
    dialog.reject()
    assert machine.contents() == before


def test_asked_each_time_the_preview_comes_first_with_the_safety_snapshot_ticked(
    driver: Driver, machine: Machine
) -> None:
    Settings().safety_snapshot = SafetySnapshot.ASK
    before = machine.contents()
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    dialog = driver.plan_dialog()
    assert dialog.ticks[0].isChecked()
    assert machine.contents() == before
    dialog.run_button.click()
    driver.last_operation()
    (safety,) = [each for each in machine.tree() if each.annotations.safety]
    assert machine.contents()[safety.name] == before[NOW]
    driver.until(driver.window.actions_.undo.isEnabled)


def test_a_revert_without_a_safety_snapshot_offers_no_undo(driver: Driver, machine: Machine) -> None:
    Settings().safety_snapshot = SafetySnapshot.NEVER
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    dialog = driver.plan_dialog()
    assert any("This can't be undone" in label.text() for label in dialog.findChildren(QLabel))
    assert not dialog.run_button.isDefault(), "what can't be undone needs more than Enter"
    dialog.run_button.click()
    driver.last_operation()
    assert not any(each.annotations.safety for each in machine.tree())
    assert not driver.window.actions_.undo.isEnabled()
    assert "Nothing was done that could be taken back" in read_tooltip(driver.window.actions_.undo.toolTip())


def test_what_the_machine_is_afterwards_can_be_chosen(driver: Driver, machine: Machine) -> None:
    before = machine.contents()
    driver.view.select(["first"])
    driver.window.actions_.revert_with_choices.trigger()
    dialog = driver.plan_dialog()
    assert dialog.alternatives is not None
    dialog.alternatives.setCurrentText("Off")
    driver.until(dialog.run_button.isEnabled)
    dialog.run_button.click()
    driver.last_operation()
    assert not machine.is_running
    assert machine.contents()[NOW] == before["first"]


def test_a_managed_save_is_thrown_away_when_its_box_is_ticked(driver: Driver, machine: Machine) -> None:
    machine.handle.managedSave()
    before = machine.contents()
    driver.until(lambda: driver.machine.domain.has_managed_save)
    driver.view.select(["first"])
    assert driver.window.actions_.revert.isEnabled(), "there is a way, and the preview has it"
    driver.window.actions_.revert.trigger()
    dialog = driver.dialog(PlanDialog)
    assert isinstance(dialog, PlanDialog)
    assert not dialog.run_button.isEnabled()
    assert any("--drop-managed-save" in label.text() for label in dialog.findChildren(QLabel))
    assert machine.handle.hasManagedSaveImage()
    (box,) = [tick for tick in dialog.ticks if "managed save" in tick.text()]
    assert not box.isChecked()
    box.setChecked(True)
    driver.until(dialog.run_button.isEnabled)
    dialog.run_button.click()
    driver.last_operation()
    assert not machine.handle.hasManagedSaveImage()
    assert machine.contents()[NOW] == before["first"]


def test_now_is_nothing_to_revert_to(driver: Driver) -> None:
    row = driver.view.snapshot_model.rowCount() - 1
    driver.view.selectRow(row)
    assert driver.view.now_is_selected()
    assert not driver.window.actions_.revert.isEnabled()
    assert not driver.window.actions_.delete.isEnabled()
    assert driver.window.actions_.take.isEnabled()


# Deleting


def test_deleting_shows_what_it_does_before_it_does_it(driver: Driver, machine: Machine) -> None:
    before = machine.contents()
    driver.view.setFocus()
    driver.view.select(["first"])
    driver.press(Qt.Key.Key_Delete)
    dialog = driver.plan_dialog()
    assert not dialog.run_button.isDefault(), "what can't be undone needs more than Enter"
    dialog.run_button.click()
    driver.last_operation()
    driver.until(lambda: driver.names() == ["second", "Now"])
    del before["first"]
    assert machine.contents() == before
    assert not driver.window.actions_.undo.isEnabled()


def test_layers_are_merged_and_the_selection_line_adds_up(open_window: OpenWindow, host: EmbeddedHost) -> None:
    layered = host.make_machine()
    for number in range(1, 4):
        layered.write(number, offset=number * MIB, length=MIB)
        layered.virsh_take_disk_only(f"s{number}")
    before = layered.contents()
    driver = open_window(host.uri)
    driver.show_machine(host.uri, layered.uuid)
    driver.view.select(["s2", "s3"])
    # The layer that s3 froze moves down, and what runs now: 1 MiB together. It is being written to.
    driver.until(lambda: ", copies ~1.0 MiB, " in driver.window.page.sums.text)
    assert ", written 2." in driver.window.page.sums.text
    assert driver.window.page.sums.text.startswith("2 selected: frees ~")
    driver.window.actions_.delete.trigger()
    dialog = driver.plan_dialog()
    dialog.run_button.click()
    driver.last_operation()
    driver.until(lambda: driver.names() == ["s1", "Now"])
    after = layered.contents()
    assert {name: after[name] for name in ("s1", NOW)} == {name: before[name] for name in ("s1", NOW)}
    driver.view.select(["s1"])
    driver.until(lambda: " second" in driver.window.page.sums.text)  # learned from how long those two took


def test_delete_in_the_search_box_deletes_a_letter(driver: Driver) -> None:
    driver.view.select(["first"])
    driver.window.estate_view.start_search()
    driver.press(Qt.Key.Key_Delete, driver.window.estate_view.search)
    assert QApplication.activeModalWidget() is None


# Work that goes on


class Hold:
    """Lets changes wait before they begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        monkeypatch.setattr(host_backend, "begin_run", self._begin_run)

    def _begin_run(self, *arguments: Any, **options: Any) -> Any:
        assert self.released.wait(60)
        return begin_run(*arguments, **options)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    hold = Hold(monkeypatch)
    yield hold
    hold.released.set()


def test_the_window_does_not_leave_work_half_done(driver: Driver, hold: Hold, machine: Machine) -> None:
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    driver.until(lambda: driver.operations)
    driver.window.close()
    assert driver.window.isVisible()
    box = driver.dialog(QMessageBox)
    assert isinstance(box, QMessageBox)
    assert "Revert" in box.text()
    next(button for button in box.buttons() if "Done" in button.text()).click()
    spin(0.2)
    assert driver.window.isVisible()
    hold.released.set()
    driver.until(lambda: not driver.window.isVisible())
    assert driver.operations[-1].state is OperationState.DONE


def test_while_a_machine_is_changed_nothing_else_is_planned_for_it(
    driver: Driver, hold: Hold, host: EmbeddedHost, machine: Machine
) -> None:
    other = host.make_machine(running=False)
    other.virsh_take("first")
    actions = driver.window.actions_
    driver.view.select(["first"])
    actions.revert.trigger()
    assert not actions.revert.isEnabled(), "from the first moment on"
    driver.until(lambda: driver.operations)
    for action in (actions.take, actions.take_group, actions.revert, actions.delete, actions.undo):
        assert not action.isEnabled()
    assert "This is still to be done: Revert" in read_tooltip(actions.delete.toolTip())
    assert actions.pin.isEnabled()
    driver.show_machine(host.uri, other.uuid)
    driver.view.select(["first"])
    assert actions.revert.isEnabled(), "another machine is another matter"
    driver.show_machine(host.uri, machine.uuid)
    driver.view.select(["first"])
    assert not actions.revert.isEnabled()
    hold.released.set()
    driver.last_operation()
    driver.until(actions.revert.isEnabled)
    assert actions.undo.isEnabled()


def test_queued_work_can_be_cancelled(driver: Driver, hold: Hold, host: EmbeddedHost, machine: Machine) -> None:
    other = host.make_machine(running=False)
    other.virsh_take("first")
    before = machine.contents()
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    driver.until(lambda: len(driver.operations) == 1)
    driver.show_machine(host.uri, other.uuid)
    driver.view.select(["first"])
    driver.window.actions_.revert.trigger()
    driver.until(lambda: len(driver.operations) == 2)
    queued = driver.operations[-1]
    driver.window.activity.row(queued.id).cancel.click()
    driver.until(lambda: driver.operations[-1].state is OperationState.CANCELLED)
    driver.window.activity.row(driver.operations[0].id)
    hold.released.set()
    driver.last_operation()
    assert machine.contents()[NOW] == before["first"]


# Hosts


def test_a_host_that_cannot_be_reached_says_why(driver: Driver, host: EmbeddedHost) -> None:
    bad = "qemu+unix:///session?socket=/nowhere/libvirt-sock"
    driver.window.actions_.add_host.trigger()
    dialog = driver.dialog(ConnectDialog)
    assert isinstance(dialog, ConnectDialog)
    dialog.address.setEditText(bad)
    dialog.connect_button.click()
    driver.until(lambda: bad in driver.session.estate)
    driver.until(lambda: driver.session.estate[bad].status.phase is Phase.FAILED)
    page = driver.window.page.message
    driver.until(lambda: "Cannot connect" in page.title.text())
    assert page.text.text(), "what to do"
    assert not page.details.text(), "libvirt's words are in the title"
    assert page.button.isVisible()
    page.button.click()
    driver.until(lambda: driver.session.estate[bad].status.phase is Phase.FAILED)
    assert Settings().hosts == [HostRequest(bad)]
    driver.window.actions_.remove_host.trigger()
    assert bad not in driver.session.estate
    assert Settings().hosts == []
    driver.until(lambda: driver.session.estate[host.uri].machines())
    assert driver.window.chosen == host.uri
    assert driver.window.estate_view.list.currentIndex().data() == host_title(driver.session.estate[host.uri])


def test_a_read_only_connection_shows_everything_and_changes_nothing(
    open_window: OpenWindow, host: EmbeddedHost, machine: Machine
) -> None:
    driver = open_window(host.uri, read_only=True)
    driver.show_machine(host.uri, machine.uuid)
    driver.view.select(["first"])
    actions = driver.window.actions_
    assert not any(action.isEnabled() for action in (actions.take, actions.revert, actions.delete, actions.prune))
    reason = actions.reasons[Action.DELETE]
    assert reason is not None
    assert "read-only" in reason.reason
    assert driver.window.page.banners["read-only"].isVisible()
    assert "read-only" in driver.window.page.banners["read-only"].text.lower()


@pytest.mark.daemon
def test_a_lost_connection_is_said_and_regained_with_the_selection(
    open_window: OpenWindow, daemon: LibvirtDaemon
) -> None:
    far = daemon.make_machine()
    for name in ("one", "two", "three"):
        far.virsh_take(name)
    driver = open_window(daemon.uri)
    driver.show_machine(daemon.uri, far.uuid)
    driver.view.select(["two"])
    daemon.kill()
    banner = driver.window.page.banners["connection"]
    driver.until(lambda: banner.isVisible() and "lost" in banner.text)
    driver.until(lambda: "Next try in" in banner.text)
    assert driver.names() == ["one", "two", "three", "Now"], "what was read stays"
    assert driver.view.selected_names() == ("two",)
    assert not driver.window.actions_.revert.isEnabled()
    daemon.start()
    driver.window.actions_.retry.trigger()
    driver.until(lambda: driver.session.estate[daemon.uri].status.phase is Phase.CONNECTED)
    driver.until(lambda: not banner.isVisible())
    assert driver.view.selected_names() == ("two",)
    driver.until(driver.window.actions_.delete.isEnabled)


# The window itself


def test_dark_and_light_are_changed_while_it_runs(driver: Driver) -> None:
    theme = driver.window._theme
    theme.choose(ThemeChoice.LIGHT)
    assert colours_of(driver.window.palette()) is LIGHT
    theme.choose(ThemeChoice.DARK)
    assert colours_of(driver.window.palette()) is DARK
    picture = driver.view.viewport().grab().toImage()
    assert picture.pixelColor(picture.width() - 4, picture.height() - 4) == DARK.base
    icon = driver.window.actions_.take.icon().pixmap(16, 16).toImage()
    assert any(icon.pixelColor(x, y) == DARK.text for x in range(16) for y in range(16))
    theme.choose(ThemeChoice.SYSTEM)


def test_the_shape_of_the_window_is_remembered(driver: Driver, open_window: OpenWindow, host: EmbeddedHost) -> None:
    driver.window.resize(1100, 700)
    driver.window.actions_.inspector.setChecked(False)
    driver.window.close()
    again = open_window(host.uri)
    assert again.window.inspector.isHidden()
    driver.until(lambda: again.window.chosen == driver.window.chosen)


def test_a_narrow_window_leaves_the_tree_its_room(driver: Driver) -> None:
    window, inspector = driver.window, driver.window.actions_.inspector
    window.resize(800, 500)
    assert not window.inspector.isVisible()
    driver.until(lambda: window.page.width() > 400)
    inspector.trigger()
    assert window.inspector.isVisible(), "asked for"
    inspector.trigger()
    window._save_shape()
    assert Settings().text("inspector") == "shown"
    window.resize(1280, 800)
    assert window.inspector.isVisible()


def test_no_two_actions_have_a_shortcut_in_common(driver: Driver) -> None:
    window = driver.window
    actions = [each for each in window.findChildren(QAction) if each.shortcuts()]
    keys = [key.toString() for each in actions for key in each.shortcuts()]
    keys += [each.key().toString() for each in window.findChildren(QShortcut)]
    assert all(len(each.shortcuts()) == 1 for each in actions), "others differ by platform"
    assert sorted(set(keys)) == sorted(keys)


def test_the_settings_are_compared_by_keyboard(driver: Driver) -> None:
    driver.view.setFocus()
    driver.view.select(["first"])
    QTest.keyClick(driver.view, Qt.Key.Key_D, Qt.KeyboardModifier.ControlModifier)
    assert driver.dialog(CompareDialog)


def test_everything_can_be_reached_by_keyboard(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    window = driver.window
    bar = window.menuBar()
    titles = [action.text() for action in bar.actions()]
    for menu in bar.findChildren(QMenu):
        texts = [action.text() for action in menu.actions() if not action.isSeparator()]
        letters = [text[text.index("&") + 1].lower() for text in texts]
        assert len(set(letters)) == len(letters), f"two items share a letter: {texts}"
    letters = [title[title.index("&") + 1].lower() for title in titles]
    assert len(set(letters)) == len(letters)
    reached = set()
    driver.view.setFocus()
    for _ in range(40):
        QTest.keyClick(QApplication.focusWidget() or window, Qt.Key.Key_Tab)
        reached.add(QApplication.focusWidget())
    assert {window.estate_view.search, window.estate_view.list, driver.view} <= reached
    for widget in reached:
        assert widget is not None
        text = getattr(widget, "text", str)
        assert widget.accessibleName() or text(), f"{widget} has no name for a screen reader"
    window.estate_view.list.setFocus()
    QTest.keyClick(window.estate_view.list, Qt.Key.Key_Tab)
    assert QApplication.focusWidget() is driver.view, "from a machine to its snapshots"
    opened: list[list[QAction | None]] = []
    monkeypatch.setattr(window, "_pop_up", lambda parts, _place: opened.append(parts))  # offscreen there are no menus
    for widget in (driver.view, window.estate_view.list):
        widget.setFocus()
        QTest.keyClick(widget, Qt.Key.Key_F10, Qt.KeyboardModifier.ShiftModifier)
        assert window.actions_.take in opened.pop()


def test_a_picture_of_the_window_is_written(host: EmbeddedHost, machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "window.png"
    save_screenshot([host.uri], path)
    picture = QImage(str(path))
    assert (picture.width(), picture.height()) == (1280, 800)
    colours = {picture.pixelColor(x, y).rgb() for x in range(300, 900, 2) for y in range(100, 300, 2)}
    assert len(colours) > 20, "the tree is on it"


def test_a_subtree_is_deleted_when_that_is_ticked(driver: Driver, machine: Machine) -> None:
    driver.view.select(["first"])
    driver.window.actions_.delete.trigger()
    dialog = driver.plan_dialog()
    assert "1 snapshot that descends" in dialog.ticks[0].text()
    assert dialog.heading.text().startswith("Delete “first” of ")
    assert "second" in read_tooltip(dialog.ticks[0].toolTip())
    dialog.ticks[0].setChecked(True)
    assert not dialog.run_button.isEnabled(), "the plan before is no longer what would be run"
    assert dialog.heading.text().startswith("Delete 2 snapshots of ")
    driver.until(dialog.run_button.isEnabled)
    dialog.run_button.click()
    driver.last_operation()
    driver.until(lambda: not driver.names() or driver.names() == ["Now"])
    assert list(machine.tree()) == []


def test_a_merge_is_slowed_down_and_stopped(driver: Driver, host: EmbeddedHost) -> None:
    """The limit stands beside the progress. What is stopped leaves all that is kept as it was, and can be finished."""
    machine = host.make_machine()
    for number, name in enumerate(("lower", "upper")):
        machine.write(number, length=4 * MIB)
        machine.virsh_take_disk_only(name)
    machine.write(5, offset=4 * MIB, length=4 * MIB)
    driver.show_machine(host.uri, machine.uuid)
    before = machine.contents()
    driver.view.select(["upper"])
    driver.window.actions_.delete.trigger()
    dialog = driver.plan_dialog()
    (tick,) = [tick for tick in dialog.ticks if "slowed down" in tick.text()]
    tick.setChecked(True)
    driver.until(dialog.run_button.isEnabled)
    # As somebody would in the preview's stead: the limit holds from the first byte on.
    backend = driver.session.estate[host.uri].backend
    backend.operation_changed.connect(lambda operation: backend.limit(operation.id, 1 << 20))
    dialog.run_button.click()
    driver.until(lambda: driver.operations and (progress := driver.operations[-1].progress) and progress.done)
    row = driver.window.activity.row(driver.operations[-1].id)
    assert row.limit.isVisible()
    assert row.cancel.isEnabled()
    assert "asked whether" in read_tooltip(row.cancel.toolTip())
    row.cancel.click()
    box = driver.dialog(QMessageBox)
    assert isinstance(box, QMessageBox)
    assert "1 snapshot (“upper”) is a mixture" in box.informativeText()
    assert box.defaultButton().text() == "&Keep Going", "nothing is left to do after this merge but what belongs to it"
    box.defaultButton().click()
    assert driver.operations[-1].state is OperationState.RUNNING
    row.limit.setValue(2)
    row.cancel.click()
    box = driver.dialog(QMessageBox)
    assert isinstance(box, QMessageBox)
    next(each for each in box.buttons() if each.text() == "Stop &Now").click()
    driver.until(lambda: driver.operations[-1].state is OperationState.INTERRUPTED)
    assert unchanged(before, machine.contents() | {"upper": before["upper"]})
    machine.check_images()
    banner = driver.window.page.banners["unfinished"]
    driver.until(banner.isVisible)
    next(each for each in banner.findChildren(QPushButton) if "Finish" in each.text()).click()
    driver.plan_dialog().run_button.click()
    driver.last_operation()
    assert unchanged(before, machine.contents(), "upper")


def test_what_is_pinned_is_left_out_of_a_delete_by_a_tick(driver: Driver, machine: Machine) -> None:
    before = machine.contents()
    driver.view.select(["second"])
    driver.window.actions_.pin.trigger()
    driver.last_operation()
    driver.until(lambda: driver.machine.tree is not None and driver.machine.tree["second"].annotations.pinned)
    driver.settle()
    driver.view.select(["first", "second"])
    driver.window.actions_.delete.trigger()
    dialog = driver.dialog(PlanDialog)
    assert isinstance(dialog, PlanDialog)
    driver.until(lambda: any("Leave it out" in label.text() for label in dialog.findChildren(QLabel)))
    assert not dialog.run_button.isEnabled()
    (tick,) = [each for each in dialog.ticks if "pinned" in each.text()]
    tick.setChecked(True)
    driver.until(dialog.run_button.isEnabled)
    assert dialog.heading.text().startswith("Delete “first” of ")
    run_another(driver, dialog.run_button.click)
    assert unchanged(before, machine.contents(), "first")
