"""The table of snapshots: rows, lanes, folds, figures, and the user's place in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PySide6.QtCore import QItemSelectionModel, QModelIndex, QPoint, Qt
from PySide6.QtGui import QColor
from PySide6.QtTest import QAbstractItemModelTester, QSignalSpy, QTest
from pytestqt.qtbot import QtBot

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Annotations, Consistency, DomainLayers, DomainState, Image, Mark
from snaptree.model.figures import Confidence, Figure, exact, unknown
from snaptree.model.folding import Fold
from snaptree.ui import icons, snapshot_delegate
from snaptree.ui.snapshot_delegate import those_that_fit, width_of_lanes
from snaptree.ui.snapshot_model import Badge, Column, Shown, SnapshotModel, Tone
from snaptree.ui.snapshot_view import SnapshotView
from snaptree.ui.theme import LIGHT, Theme
from tests.ui.test_text import read_tooltip
from tests.ui.values import HOSTILE_NAMES, MIB, chain, layers_for, machine, snapshot


@pytest.fixture
def model(qtbot: QtBot) -> Iterator[SnapshotModel]:
    """A model that Qt's own tester watches; whatever breaks its rules ends the test."""
    made = SnapshotModel()
    tester = QAbstractItemModelTester(made, QAbstractItemModelTester.FailureReportingMode.Fatal)
    yield made
    tester.deleteLater()
    made.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, light: Theme) -> SnapshotView:
    made = SnapshotView()
    QAbstractItemModelTester(made.snapshot_model, QAbstractItemModelTester.FailureReportingMode.Fatal, made)
    qtbot.addWidget(made)
    made.resize(900, 400)
    with qtbot.waitExposed(made):
        made.show()
    made.setFocus()
    return made


def rows(model: SnapshotModel, column: Column = Column.TREE) -> list[str]:
    return [str(model.index(row, column).data()) for row in range(model.rowCount())]


def row_named(model: SnapshotModel, text: str) -> int:
    return rows(model).index(text)


BRANCHED = [
    snapshot("base", days=90),
    snapshot("left", "base", days=60),
    snapshot("right", "base", days=50, memory=True, note="before the\nupgrade"),
    snapshot("leaf", "right", days=1),
]


# Rows


def test_the_tree_ends_with_now(model: SnapshotModel) -> None:
    model.show(Shown(machine(BRANCHED)))
    assert rows(model) == ["base", "left", "right", "leaf", "Now"]
    assert rows(model, Column.AGE) == ["90 days", "60 days", "50 days", "a day", "running"]
    assert model.lane_count == 2
    now = model.lane_row(4)
    assert now is not None
    assert (now.lane, now.enters, now.leaves) == (0, True, False)


def test_a_long_run_is_one_row_until_it_is_opened(model: SnapshotModel) -> None:
    shown = Shown(machine(chain(40)))
    model.show(shown)
    assert rows(model) == ["s1", "s2", "s3", "34 more snapshots", "s38", "s39", "s40", "Now"]
    fold = model.row_id(3)
    assert isinstance(fold, Fold)
    model.show(replace(shown, unfolded=frozenset(fold.hidden)))
    assert model.rowCount() == 41
    assert model.opened_fold(3) == fold
    model.show(replace(shown, folds=False))
    assert model.rowCount() == 41


def test_what_a_search_finds_is_not_folded_away(model: SnapshotModel) -> None:
    model.show(Shown(machine(chain(40)), search="S20"))
    assert "s20" in rows(model)


def test_what_is_selected_is_not_folded_away_when_the_tree_grows(model: SnapshotModel) -> None:
    model.show(Shown(machine(chain(50)), selected=frozenset({"s39"})))
    assert "s39" in rows(model)


def test_a_fold_can_be_walked_to_but_not_selected(model: SnapshotModel) -> None:
    model.show(Shown(machine(chain(40))))
    flags = model.flags(model.index(3, 0))
    assert flags & Qt.ItemFlag.ItemIsEnabled
    assert not flags & Qt.ItemFlag.ItemIsSelectable


def test_new_costs_change_data_and_nothing_else(model: SnapshotModel) -> None:
    model.show(Shown(machine(BRANCHED, with_costs=False)))
    resets, changes = QSignalSpy(model.modelReset), QSignalSpy(model.dataChanged)
    model.show(Shown(machine(BRANCHED)))
    assert resets.count() == 0
    assert changes.count() == 1
    assert rows(model, Column.WRITTEN)[0] == "1.0 MiB"


def test_another_parent_is_drawn_though_the_rows_are_the_same(model: SnapshotModel) -> None:
    model.show(Shown(machine([snapshot("a", days=3), snapshot("b", "a", days=2), snapshot("c", "b")], "c")))
    assert model.lane_count == 1
    model.show(Shown(machine([snapshot("a", days=3), snapshot("b", "a", days=2), snapshot("c", "a")], "c")))
    assert model.lane_count == 2


def test_thousands_of_rows_obey_qt(model: SnapshotModel) -> None:
    dice = random.Random(7)
    snapshots = [snapshot("root", days=10_000)]
    for number in range(5_000):
        parent = dice.choice(snapshots[-6:]).name
        snapshots.append(snapshot(f"s{number}", parent, days=9_999 - number))
    model.show(Shown(machine(snapshots), folds=False))
    assert model.rowCount() == 5_002
    model.show(Shown(machine(snapshots[:2_500])))
    model.show(Shown(machine(None)))
    assert model.rowCount() == 0


# Sorting


def test_columns_sort_and_the_tree_comes_back(model: SnapshotModel) -> None:
    sizes = {"disk": exact(5 * MIB), "right": exact(9 * MIB)}
    every = machine(BRANCHED)
    assert every.tree is not None
    model.show(Shown(machine(BRANCHED, layers=layers_for(every.tree, sizes))))
    tree = rows(model)
    model.sort(Column.WRITTEN, Qt.SortOrder.DescendingOrder)
    assert rows(model)[:2] == ["leaf", "base"], "leaf froze the image of right, base the first one"
    assert model.lane_row(0) is None
    model.sort(Column.AGE, Qt.SortOrder.AscendingOrder)
    assert rows(model) == ["leaf", "right", "left", "base", "Now"]
    model.sort(-1)
    assert rows(model) == tree


@pytest.mark.parametrize("order", list(Qt.SortOrder))
def test_what_is_not_known_is_sorted_last(model: SnapshotModel, order: Qt.SortOrder) -> None:
    tree = machine(chain(4)).tree
    assert tree is not None
    layers = layers_for(tree, {"s1": unknown("permission denied"), "s2": exact(9 * MIB)})
    model.show(Shown(machine(chain(4), layers=layers)))
    model.sort(Column.WRITTEN, order)
    assert rows(model)[-2:] == ["s2", "Now"], "s2 froze the image of s1, whose size nobody knows"


# What is said


def test_unknown_figures_say_why(model: SnapshotModel) -> None:
    tree = machine(chain(2)).tree
    assert tree is not None
    model.show(Shown(machine(chain(2), layers=layers_for(tree, {"disk": unknown("permission denied")}))))
    index = model.index(0, Column.WRITTEN)
    assert index.data() == "?"
    assert "permission denied" in read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole))


def test_confidence_is_shown(model: SnapshotModel) -> None:
    tree = machine(chain(2)).tree
    assert tree is not None
    sizes = {"disk": Figure(MIB, Confidence.UPPER_BOUND), "s2": Figure(3 * MIB, Confidence.LIVE)}
    model.show(Shown(machine(chain(2), layers=layers_for(tree, sizes))))
    assert rows(model, Column.WRITTEN) == ["≤ 1.0 MiB", "1.0 MiB", "~3.0 MiB"]


def test_now_is_marked_when_it_was_certainly_written_to(model: SnapshotModel) -> None:
    tree = machine(chain(2)).tree
    assert tree is not None
    now = 2
    model.show(Shown(machine(chain(2), layers=layers_for(tree, {"s2": exact(200 * 1024)}))))
    assert not model.badges(now), "the tables of an empty overlay are no change"
    model.show(Shown(machine(chain(2), layers=layers_for(tree, {"s2": exact(20 * MIB)}))))
    assert [badge.text for badge in model.badges(now)] == ["changed"]
    model.show(Shown(machine(chain(2), layers=layers_for(tree, {"s2": unknown("busy")}))))
    assert not model.badges(now)


def test_badges_say_what_is_out_of_the_ordinary(model: SnapshotModel) -> None:
    marked = Annotations(pinned=Mark(), known_good=Mark(), safety=True)
    snapshots = [
        *chain(3),
        snapshot("marked", "s3", days=0.5, annotations=marked),
        snapshot("inside", "marked", days=0.4, internal=True),
        snapshot("off", "inside", days=0.3, state=DomainState.OFF),
        snapshot("torn", "off", days=0.2, problem="no <disks>"),
        snapshot("mixture", "torn", days=0.1, annotations=Annotations(half_deleted=True)),
        snapshot("doubtful", "mixture", days=0.05, annotations=Annotations(doubtful=True)),
    ]
    shown = machine(snapshots)
    assert shown.costs is not None
    model.show(
        Shown(replace(shown, costs=replace(shown.costs, of_no_use=dict.fromkeys(["doubtful", "s2"], "doubtful"))))
    )
    texts = {name: [badge.text for badge in model.badges(row)] for row, name in enumerate(rows(model))}
    assert texts["s1"] == [], "what most have is said once, above the table"
    assert texts["marked"] == ["pinned", "known good", "safety"]
    assert texts["inside"] == ["internal"]
    assert texts["off"] == ["offline"]
    assert texts["torn"] == ["damaged"]
    assert texts["mixture"] == ["half deleted"]
    assert texts["doubtful"] == texts["s2"] == ["doubtful"], "by its mark, and by what layers and records tell"


def test_a_missing_image_is_named(model: SnapshotModel) -> None:
    tree = machine(chain(3)).tree
    assert tree is not None
    layers = layers_for(tree)
    gone = Image("/vm/s1.qcow2", "qcow2", unknown("no such file"), problem="no such file", is_missing=True)
    shown = machine(chain(3), layers=DomainLayers(layers.chains, {**layers.images, gone.path: gone}))
    model.show(Shown(shown))
    row = row_named(model, "s2")
    assert [badge.text for badge in model.badges(row)] == ["image missing"]
    assert "/vm/s1.qcow2" in read_tooltip(model.index(row, 0).data(Qt.ItemDataRole.ToolTipRole))
    assert shown.worst is not None
    assert "/vm/s1.qcow2" in shown.worst.text


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_plain_everywhere(model: SnapshotModel, name: str) -> None:
    model.show(Shown(machine([snapshot(name, note=f"{name}\n{name}")])))
    for column in Column:
        index = model.index(0, column)
        text = str(index.data())
        assert text.isprintable()
        read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole) or "<div >")
    assert str(model.index(0, Column.TREE).data(Qt.ItemDataRole.AccessibleTextRole)).isprintable()


def test_the_reading_of_nothing_is_nothing(model: SnapshotModel) -> None:
    model.show(Shown(machine(None, error=SnapTreeError("denied"))))
    assert rows(model) == []
    model.show(Shown(machine([])))
    assert rows(model) == ["Now"]


# The view


def select(view: SnapshotView, *names: str) -> None:
    view.select(names)
    assert set(view.selected_names()) == set(names)


def test_selection_and_folds_survive_new_snapshots(view: SnapshotView) -> None:
    view.show_machine(machine(chain(40)))
    view.toggle_fold(3)
    select(view, "s7", "s9")
    grown = [*chain(40), snapshot("new", "s40", days=0.1)]
    view.show_machine(machine(grown))
    assert view.selected_names() == ("s7", "s9")
    assert "s20" in rows(view.snapshot_model), "the fold stays open"
    view.show_machine(machine([each for each in grown if each.name != "s9"]))
    assert view.selected_names() == ("s7",)


def test_a_renamed_snapshot_stays_selected(view: SnapshotView) -> None:
    before = chain(4)
    view.show_machine(machine(before, "s4"))
    view.select(["s2"])
    renamed = [before[0], replace(before[1], name="new"), replace(before[2], parent="new"), before[3]]
    view.show_machine(machine(renamed, "s4"))
    assert view.selected_names() == ("new",)
    assert view.currentIndex().data() == "new"


def test_what_a_deleted_snapshot_descended_from_is_selected_in_its_place(view: SnapshotView) -> None:
    view.show_machine(machine(chain(4), "s4"))
    view.select(["s3", "s4"])
    left = chain(4)[:2]
    view.show_machine(machine(left, "s2"))
    assert view.selected_names() == ("s2",)
    view.show_machine(machine([], None))
    view.show_machine(machine(left, "s2"))
    view.select(["s1", "s2"])
    view.show_machine(machine([replace(left[1], parent=None)], "s2"))
    assert view.selected_names() == ("s2",), "what is still there of several"
    view.show_machine(machine([snapshot("other")], "other"))
    assert view.now_is_selected(), "nothing else stands for it"


def test_each_machine_keeps_its_own_place(view: SnapshotView) -> None:
    web, db = machine(chain(40)), machine(chain(5, "d"), name="db-01")
    view.show_machine(web)
    select(view, "s2")
    view.show_machine(db)
    assert view.selected_names() == ()
    select(view, "d1")
    view.show_machine(web)
    assert view.selected_names() == ("s2",)
    view.show_machine(db)
    assert view.selected_names() == ("d1",)


def test_the_scrolled_place_survives(view: SnapshotView) -> None:
    many = chain(300)
    view.show_machine(machine(many))
    view.folds = False
    view.verticalScrollBar().setValue(1_200)
    top = view.snapshot_model.row_id(view.rowAt(0))
    view.show_machine(machine([*many, snapshot("branch", "s3", days=0.1)], "s300"))
    assert view.snapshot_model.row_id(view.rowAt(0)) == top


def test_the_first_look_is_at_now(view: SnapshotView) -> None:
    view.show_machine(machine(chain(300)))
    view.folds = False
    view.show_machine(machine(chain(300), name="other"))
    bar = view.verticalScrollBar()
    assert bar.maximum() > 0
    assert bar.value() == bar.maximum()


def test_selection_survives_sorting(view: SnapshotView) -> None:
    view.show_machine(machine(BRANCHED))
    select(view, "left", "leaf")
    view.sortByColumn(Column.AGE, Qt.SortOrder.DescendingOrder)
    assert set(view.selected_names()) == {"left", "leaf"}
    view.show_machine(machine([*BRANCHED, snapshot("more", "leaf", days=0.1)]))
    assert rows(view.snapshot_model)[0] == "base", "still sorted by age"
    assert set(view.selected_names()) == {"left", "leaf"}


def test_the_keyboard_opens_and_closes_folds(view: SnapshotView) -> None:
    view.show_machine(machine(chain(40)))
    view.setCurrentIndex(view.snapshot_model.index(2, 0))
    QTest.keyClick(view, Qt.Key.Key_Down)
    QTest.keyClick(view, Qt.Key.Key_Return)
    assert view.snapshot_model.rowCount() == 41
    assert view.currentIndex().data() == "s4"
    QTest.keyClick(view, Qt.Key.Key_Left)
    assert view.snapshot_model.rowCount() == 8
    QTest.keyClick(view, Qt.Key.Key_Right)
    assert view.snapshot_model.rowCount() == 41


def test_a_click_opens_a_fold_and_its_sign_closes_it(view: SnapshotView) -> None:
    view.show_machine(machine(chain(40)))
    model = view.snapshot_model

    def click(index: QModelIndex, where: QPoint | None = None) -> None:
        place = where or view.visualRect(index).center()
        QTest.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=place)

    click(model.index(3, Column.NOTE))
    assert model.rowCount() == 41
    click(model.index(3, Column.TREE))
    assert model.rowCount() == 41, "a click on the name selects"
    assert view.selected_names() == ("s4",)
    delegate = view.itemDelegate()
    assert isinstance(delegate, snapshot_delegate.SnapshotDelegate)
    index = model.index(3, Column.TREE)
    click(index, delegate.fold_sign(view.visualRect(index), 3).center())
    assert model.rowCount() == 8


def test_selecting_across_a_fold_selects_only_what_is_in_sight(view: SnapshotView) -> None:
    view.show_machine(machine(chain(40)))
    view.setCurrentIndex(view.snapshot_model.index(2, 0))
    for _ in range(2):
        QTest.keyClick(view, Qt.Key.Key_Down, Qt.KeyboardModifier.ShiftModifier)
    assert view.selected_names() == ("s3", "s38")


def test_selecting_what_is_folded_away_opens_the_fold(view: SnapshotView) -> None:
    view.show_machine(machine(chain(40)))
    select(view, "s20")
    assert view.snapshot_model.rowCount() == 41


def test_a_double_click_changes_nothing(view: SnapshotView) -> None:
    view.show_machine(machine(BRANCHED))
    before = rows(view.snapshot_model)
    place = view.visualRect(view.snapshot_model.index(1, 0)).center()
    QTest.mouseDClick(view.viewport(), Qt.MouseButton.LeftButton, pos=place)
    assert rows(view.snapshot_model) == before
    assert view.indexWidget(view.snapshot_model.index(1, 0)) is None


def test_now_can_be_selected_but_is_no_snapshot(view: SnapshotView) -> None:
    view.show_machine(machine(BRANCHED))
    index = view.snapshot_model.index(4, 0)
    view.selectionModel().select(
        index, QItemSelectionModel.SelectionFlag.Select | QItemSelectionModel.SelectionFlag.Rows
    )
    assert view.now_is_selected()
    assert view.selected_names() == ()


def test_a_name_that_is_too_long_is_elided_and_told_in_the_tooltip(view: SnapshotView) -> None:
    name = "x" * 255
    view.show_machine(machine([snapshot(name)]))
    assert view.columnWidth(Column.TREE) < view.width()
    assert view.horizontalScrollBar().maximum() == 0
    assert name in read_tooltip(view.snapshot_model.index(0, 0).data(Qt.ItemDataRole.ToolTipRole))


# Painting


def colour_at(view: SnapshotView, x: int, y: int) -> QColor:
    picture = view.viewport().grab().toImage()
    ratio = picture.devicePixelRatio()
    return picture.pixelColor(round(x * ratio), round(y * ratio))


def test_a_straight_line_is_one_unbroken_lane(view: SnapshotView) -> None:
    view.show_machine(machine(chain(6)))
    x = snapshot_delegate.PADDING + snapshot_delegate.lane_pitch(1) // 2
    first = view.visualRect(view.snapshot_model.index(0, 0)).center().y()
    last = view.visualRect(view.snapshot_model.index(6, 0)).center().y()
    line = [colour_at(view, x, y) for y in range(first + 8, last - 8)]
    between_marks = [colour for colour in line if colour == LIGHT.lane(0)]
    row = view.rowHeight(0)
    assert len(between_marks) > len(line) * (row - 10) // row, "unbroken but for the marks of the snapshots"


def test_a_branch_has_a_colour_and_a_lane_of_its_own(view: SnapshotView) -> None:
    view.show_machine(machine(BRANCHED, "leaf"))
    x = snapshot_delegate.PADDING + snapshot_delegate.lane_pitch(2) + snapshot_delegate.lane_pitch(2) // 2
    top = view.visualRect(view.snapshot_model.index(1, 0)).top()
    assert colour_at(view, x, top + 1) == LIGHT.lane(1)


def test_rows_meet_on_whole_pixels_at_every_scale() -> None:
    class Metrics:
        def __init__(self, height: int) -> None:
            self._height = height

        def height(self) -> int:
            return self._height

    for height in range(8, 60):
        row = snapshot_delegate.row_height(Metrics(height))  # type: ignore[arg-type]  # all it needs is a height
        assert row > height
        assert all((row * percent) % 100 == 0 for percent in (100, 125, 150, 175, 200))


def test_many_lanes_stay_within_reason() -> None:
    wide = machine([snapshot("root", days=100), *(snapshot(f"b{number}", "root") for number in range(60))])
    assert wide.tree is not None
    model = SnapshotModel()
    model.show(Shown(wide))
    assert model.lane_count == 60
    assert snapshot_delegate.width_of_lanes(model, model.rowCount() - 1) == snapshot_delegate.lane_pitch(60)


def test_names_have_room_beside_their_lanes_in_a_narrow_table(view: SnapshotView) -> None:
    forks = [snapshot("root"), *(snapshot(f"nightly-2026110{number}", "root") for number in range(1, 6))]
    view.show_machine(machine(forks, forks[-1].name))
    view.resize(320, 300)
    name = view.fontMetrics().horizontalAdvance("nightly-20261103")
    assert view.columnWidth(Column.TREE) >= width_of_lanes(view.snapshot_model, 0) + name


def test_each_consistency_has_a_sign_and_a_sentence(view: SnapshotView) -> None:
    taken = [snapshot(each.value, days=9, annotations=Annotations(consistency=each)) for each in Consistency]
    view.show_machine(machine(taken))
    view.resize(1000, 400)
    pictures, model = set(), view.snapshot_model
    for row, name in enumerate(rows(model)[:-1]):
        cell = view.visualRect(model.index(row, Column.TREE))
        sign = cell.adjusted(cell.width() - snapshot_delegate._SIGN, 0, 0, 0)
        picture = view.viewport().grab(sign).toImage()
        pictures.add(bytes(picture.constBits()))
        index = model.index(row, Column.TREE)
        said = words.consistency(Consistency(name))
        assert said in str(index.data(Qt.ItemDataRole.AccessibleTextRole))
        tip = read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole))
        assert tip.count(words.consistency_in_full(Consistency(name))) == 1
    assert len(pictures) == len(Consistency), "no two look alike"


def test_what_is_wrong_is_badged_beside_a_long_name_too(view: SnapshotView) -> None:
    every = [snapshot("nightly-20261103-of-the-long-kind", problem="its XML can't be read")]
    view.show_machine(machine(every))
    view.resize(300, 200)
    row = view.visualRect(view.snapshot_model.index(0, 0))
    picture = view.viewport().grab(row).toImage()
    places = [(x, y) for x in range(picture.width()) for y in range(picture.height())]
    reds = [x for x, y in places if (colour := picture.pixelColor(x, y)).red() - colour.green() > 60]
    assert max(reds) - min(reds) >= icons.SIZE // 2, "by its sign, as its words would leave the name no room"


def test_marks_stay_where_other_badges_give_way_and_what_is_hidden_is_counted(view: SnapshotView) -> None:
    marks = (
        Badge("pinned", "", stays=True, icon="pin"),
        Badge("known good", "", Tone.GOOD, stays=True, icon="known-good"),
    )
    others = (Badge("safety", ""), Badge("group", ""), Badge("internal", ""))

    def shown(room: int, for_words: int, most: int) -> list[str]:
        fitting = those_that_fit((*marks, *others), view.font(), room, for_words, most)
        return [badge.text or badge.icon for badge in fitting]

    every = sum(view.fontMetrics().horizontalAdvance(each.text) + 20 for each in (*marks, *others))
    assert shown(every, every, every) == ["pinned", "known good", "safety", "group", "internal"]
    assert shown(0, every, every) == ["pinned", "known good", "+3"]
    assert shown(0, 110, every) == ["pin", "known-good", "+3"], "signs, where words don't fit"
    assert shown(0, 0, 110) == ["pin", "known-good", "+3"], "or would take the name's room"
    assert shown(0, 0, 0) == ["+5"]

    wrong = Badge("damaged", "", Tone.ERROR, stays=True, icon="error")
    for for_words, says in ((every, "damaged"), (0, "error")):
        (badge,) = those_that_fit((wrong,), view.font(), 0, for_words, every)
        assert (badge.text or badge.icon) == says


def test_a_pinned_snapshot_that_is_known_good_says_so_in_a_narrow_column(view: SnapshotView) -> None:
    both = Annotations(pinned=Mark("root", 1), known_good=Mark("root", 1))
    name = "a-snapshot-with-rather-a-long-name-of-its-own"
    view.show_machine(machine([snapshot(name), snapshot("s2", name)], "s2"))
    marked = machine([snapshot(name, annotations=both), snapshot("s2", name)], "s2")
    for width, takes in ((360, 30), (160, 6)):
        view.horizontalHeader().resizeSection(Column.TREE, width)
        view.show_machine(marked)
        picture = view.viewport().grab().toImage()
        greens = [x for x in range(width) for y in range(view.rowHeight(0)) if picture.pixelColor(x, y) == LIGHT.good]
        assert max(greens) - min(greens) > takes
