"""The inspector: facts, reasons and the drawing of the layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel, QToolButton, QWidget
from pytestqt.qtbot import QtBot

from snaptree.model.estate import DiskChain, DomainLayers, Image
from snaptree.model.figures import exact, unknown
from snaptree.plans.plan import Action, Finding
from snaptree.plans.rule import Verdict
from snaptree.plans.rules import RULES
from snaptree.ui.actions import Actions
from snaptree.ui.availability import Selection, is_of_the_snapshot, why_off
from snaptree.ui.inspector import Inspector, selection_sums
from snaptree.ui.layer_stack import LayerModel, label, size, stacks_of
from snaptree.ui.theme import LIGHT, Theme
from tests.model.overlaps import Merge, UnitOverlaps
from tests.ui.test_text import read_tooltip
from tests.ui.values import HOSTILE_NAMES, MIB, analysed, chain, layers_for, machine, snapshot


@pytest.fixture
def inspector(qtbot: QtBot, light: Theme) -> Inspector:
    window = QWidget()
    qtbot.addWidget(window)
    made = Inspector(Actions(window), window)
    made.resize(320, 800)
    window.resize(320, 800)
    window.show()
    return made


def show(inspector: Inspector, selection: Selection) -> dict[str, str]:
    inspector._actions.offer(selection)
    inspector.show_selection(selection)
    return {fact.title: fact.value for fact in inspector.facts.facts}


def test_a_snapshot_is_told_in_full(inspector: Inspector) -> None:
    every = [*chain(2), snapshot("best", "s2", days=0.5, memory=True, note="why\nand how")]
    facts = show(inspector, Selection(machine(every), ("best",)))
    assert inspector.title.text == "best"
    assert inspector.note.toPlainText() == "why\nand how"
    assert facts["Memory"] == "in a file of its own"
    assert facts["Saved memory"] == "5.0 MiB"
    assert facts["Parent"] == "s2"
    assert facts["Frees"] == "?"


def test_the_machine_is_told_where_no_snapshot_is_selected(inspector: Inspector) -> None:
    facts = show(inspector, Selection(machine(chain(3)), (), now=True))
    assert inspector.title.text == "web-01"
    assert facts["Snapshots"] == "3"
    assert facts["On disk"] == "4.0 MiB"
    assert facts["Descends from"] == "s3"


def test_several_snapshots_free_what_nobody_can_say_yet() -> None:
    sums = dict(selection_sums(machine(chain(3)), ("s1", "s2")))
    assert sums["Written"] == exact(2 * MIB)
    assert not sums["Frees"].is_known, "what several free is not the sum of what each frees"
    assert not dict(selection_sums(machine(chain(3), with_costs=False), ("s1",)))["Written"].is_known


def test_every_action_that_is_off_says_why(inspector: Inspector) -> None:
    show(inspector, Selection(machine(chain(3)), ("s1", "s2")))
    assert "Revert: A machine can be reverted to one snapshot only." in inspector.reasons.text()
    tooltip = read_tooltip(inspector._actions.revert.toolTip())
    assert "one snapshot only" in tooltip, "the greyed button says the same sentence"


def test_nothing_is_promised_of_a_revert_that_is_refused_for_what_the_snapshot_is(inspector: Inspector) -> None:
    first, second = chain(2)
    torn = replace(second, annotations=replace(second.annotations, half_deleted=True))
    show(inspector, Selection(machine([first, torn]), (first.name,)))
    assert "power cut" in inspector.meaning.text()
    show(inspector, Selection(machine([first, torn]), (torn.name,)))
    assert "can't be reverted to" in inspector.meaning.text()
    assert "Revert and look: " in inspector.reasons.text()
    show(inspector, Selection(machine([first, torn]), (first.name,), under_way="Take “x”"))
    assert "power cut" in inspector.meaning.text(), "it is the machine that is busy"


def test_what_a_snapshot_is_forbids_by_rules_that_name_it() -> None:
    of_the_snapshot = {
        rule.id
        for rule in RULES
        if Action.REVERT in rule.actions and rule.verdict is Verdict.REFUSE and "{snapshot}" in rule.reason
    }
    found = {name for name in of_the_snapshot if is_of_the_snapshot(Finding(name, "It is what it is."))}
    assert found == of_the_snapshot


def test_an_action_has_no_reason_to_be_off_without_cause() -> None:
    assert why_off(Action.TAKE, Selection()) is not None
    assert why_off(Action.TAKE, Selection(machine(chain(2)))) is None
    assert why_off(Action.REVERT, Selection(machine(chain(2)), now=True)) is not None
    assert why_off(Action.REVERT, Selection(machine(chain(2)), ("s1",))) is None
    assert why_off(Action.TAKE, Selection(machine(None))) is not None


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_and_notes_are_plain(inspector: Inspector, name: str) -> None:
    show(inspector, Selection(machine([snapshot(name, note=name)], name=name), (name,)))
    for shown in inspector.findChildren(QLabel):
        assert shown.textFormat() is Qt.TextFormat.PlainText or not shown.text()
    page = inspector.widget()
    assert page is not None
    assert page.minimumSizeHint().width() <= inspector.viewport().width(), "nothing runs out of sight"


# Layers


def test_the_active_layer_stands_on_top_and_names_who_froze_the_others() -> None:
    (stack,) = stacks_of(machine(chain(3)))
    assert [layer.role for layer in stack.layers] == ["active", "layer", "layer", "base"]
    assert label(stack.layers[0]) == "active"
    assert label(stack.layers[1]) == "frozen by s3"
    assert label(stack.layers[3]) == "base; frozen by s1"
    assert stack.is_live


def test_the_layer_of_the_selected_snapshot_is_marked() -> None:
    (stack,) = stacks_of(machine(chain(3)), "s2")
    assert [layer.is_selected for layer in stack.layers] == [False, False, True, False]


def test_a_branch_off_the_live_chain_has_a_stack_of_its_own() -> None:
    every = [*chain(3), snapshot("side", "s1", days=0.5), snapshot("side2", "side", days=0.4)]
    (stack,) = stacks_of(machine(every, "s3"), "side2")
    assert not stack.is_live
    assert [layer.path for layer in stack.layers] == ["/vm/side.qcow2", "/vm/s1.qcow2", "/vm/disk.qcow2"]


def test_missing_and_unreadable_layers_say_so_in_words() -> None:
    tree = machine(chain(2)).tree
    assert tree is not None
    layers = layers_for(tree)
    images = dict(layers.images)
    images["/vm/disk.qcow2"] = Image(
        "/vm/disk.qcow2", "qcow2", unknown("no such file"), problem="no such file", is_missing=True
    )
    images["/vm/s1.qcow2"] = Image("/vm/s1.qcow2", "qcow2", unknown("denied"), problem="permission denied")
    (stack,) = stacks_of(machine(chain(2), layers=DomainLayers(layers.chains, images)))
    assert size(stack.layers[2]) == "missing"
    assert size(stack.layers[1]) == "?"
    assert "permission denied" in label(stack.layers[1])


def test_a_circle_of_backing_files_ends() -> None:
    images = {
        "/vm/disk.qcow2": Image("/vm/disk.qcow2", "qcow2", exact(1), backing="/vm/other.qcow2"),
        "/vm/other.qcow2": Image("/vm/other.qcow2", "qcow2", exact(1), backing="/vm/disk.qcow2"),
    }
    shown = machine([snapshot("a")], layers=DomainLayers((DiskChain("vda", ("/vm/a.qcow2",)),), images))
    (stack,) = stacks_of(shown, "a")
    assert len(stack.layers) == 2


def test_internal_snapshots_are_held_by_their_image() -> None:
    (stack,) = stacks_of(
        machine([snapshot("i", internal=True)], layers=DomainLayers((DiskChain("vda", ("/vm/disk.qcow2",)),), {}))
    )
    assert label(stack.layers[0]) == "active, base; holds i"


def test_bars_are_to_scale(inspector: Inspector) -> None:
    tree = machine(chain(1)).tree
    assert tree is not None
    shown = machine(chain(1), layers=layers_for(tree, {"disk": exact(100 * MIB), "s1": exact(25 * MIB)}))
    show(inspector, Selection(shown))
    layers = inspector.layers
    picture = layers.viewport().grab().toImage()

    def filled(row: int, ground: set[str]) -> int:
        rect = layers.visualRect(layers.model().index(row, 0))
        y = rect.bottom() - 6
        return sum(picture.pixelColor(x, y).name() in ground for x in range(rect.left() + 1, rect.right()))

    width = layers.visualRect(layers.model().index(1, 0)).width()
    active = filled(1, {LIGHT.selected.name()})
    base = filled(2, {LIGHT.layer.name()})
    assert base > 0.9 * width - 120, "all of it but the letters"
    assert abs(active - width / 4) < width / 12


def test_layers_are_texts_for_screen_readers(qtbot: QtBot) -> None:
    model = LayerModel()
    model.show(stacks_of(machine(chain(2))))
    texts = [model.index(row, 0).data() for row in range(model.rowCount())]
    assert texts == [
        "vda: 3 layers",
        "s2.qcow2, 1.0 MiB, active",
        "s1.qcow2, 1.0 MiB, frozen by s2",
        "disk.qcow2, 1.0 MiB, base; frozen by s1",
    ]


def test_a_layer_says_what_of_it_shows_and_who_shares_it(inspector: Inspector) -> None:
    every = [*chain(3), snapshot("side", "s1", days=0.5), snapshot("tip", "side", days=0.4)]
    tree = machine(every, "s3").tree
    assert tree is not None
    shown = machine(every, "s3", layers=analysed(layers_for(tree)))
    (stack,) = stacks_of(shown)
    shared = stack.layers[2]
    assert shared.path == "/vm/s1.qcow2"
    assert "2 branches stand on it" in label(shared)
    show(inspector, Selection(shown))
    model = inspector.layers.model()
    rows = [model.index(row, 0) for row in range(model.rowCount())]
    said = {index.data(): index.data(Qt.ItemDataRole.ToolTipRole) for index in rows}
    base = next(text for name, text in said.items() if name.startswith("disk.qcow2"))
    assert "512.0 KiB of its data shows at the top of this stack" in base
    assert "512.0 KiB of its data is covered by layers above" in base
    assert rows[-1].data() == "shows, covered, other"


def test_the_parts_of_a_bar_are_painted_apart(inspector: Inspector) -> None:
    tree = machine(chain(1)).tree
    assert tree is not None
    shown = machine(chain(1), layers=analysed(layers_for(tree)))
    show(inspector, Selection(shown))
    view = inspector.layers
    base = next(
        view.visualRect(view.model().index(row, 0))
        for row in range(view.model().rowCount())
        if view.model().index(row, 0).data().startswith("disk.qcow2")
    )
    picture = view.viewport().grab().toImage()
    ratio = picture.devicePixelRatio()
    middle = base.top() + base.height() - 5

    def colours(left: float, right: float) -> set[str]:
        places = range(int(base.width() * left), int(base.width() * right))
        return {picture.pixelColor(int(x * ratio), int(middle * ratio)).name() for x in places}

    assert len(colours(0.3, 0.45)) == 1, "what shows is one plain colour"
    assert len(colours(0.6, 0.9)) > 1, "what is covered is hatched"


def test_without_an_analysis_there_is_no_legend(inspector: Inspector) -> None:
    show(inspector, Selection(machine(chain(2))))
    model = inspector.layers.model()
    assert not any("covered" in model.index(row, 0).data() for row in range(model.rowCount()))


def test_the_sums_of_many_selected_take_no_time(inspector: Inspector) -> None:
    """Not timed: the tree of layers is gone through once, not once for each snapshot."""
    every = chain(1000)
    tree = machine(every).tree
    assert tree is not None
    layers = analysed(layers_for(tree))
    asked: list[str] = []
    overlaps = next(iter(layers.overlaps.values()))

    class Counting(UnitOverlaps):
        def merge(self, bottom: str, top: str, into: str) -> Merge:
            asked.append(top)
            return Merge(0, 0, 0, 0)

    assert isinstance(overlaps, UnitOverlaps)
    counting = Counting(overlaps.units, overlaps.below)
    shown = machine(every, layers=replace(layers, overlaps=dict.fromkeys(layers.overlaps, counting)))
    asked.clear()
    sums = dict(selection_sums(shown, tuple(f"s{number}" for number in range(1, 1001, 2))))
    assert sums["Frees"].is_known
    assert len(asked) <= 2 * 500


def test_what_is_selected_anew_is_shown_from_its_beginning(qtbot: QtBot, inspector: Inspector) -> None:
    inspector.resize(300, 200)
    bar = inspector.verticalScrollBar()
    shown = machine(chain(3), "s3")
    inspector.show_selection(Selection(shown, ("s1",)))
    qtbot.waitUntil(lambda: bar.maximum() > 0)
    bar.setValue(bar.maximum())
    assert bar.value() > 0
    inspector.show_selection(Selection(machine(chain(3), "s3"), ("s1",)))
    assert bar.value() > 0, "news of the same one"
    inspector.show_selection(Selection(shown, ("s2",)))
    assert bar.value() == 0


def test_tab_goes_through_the_inspector_from_top_to_bottom(inspector: Inspector) -> None:
    shown = machine(chain(3), "s3")
    show(inspector, Selection(shown, ("s1",)))
    page = inspector.widget()
    assert page is not None
    first = next(each for each in inspector.findChildren(QToolButton) if each.isEnabled() and each.isVisible())
    first.setFocus()
    reached: list[int] = []
    for _ in range(20):
        focused = inspector.focusWidget()
        assert focused is not None
        place = focused.mapTo(page, QPoint(0, 0)).y()
        if reached and place < reached[-1]:
            break
        reached.append(place)
        QTest.keyClick(focused, Qt.Key.Key_Tab)
    assert inspector.layers.y() in reached
    assert inspector.focusPolicy() is Qt.FocusPolicy.NoFocus, "nothing would show that it had it"
