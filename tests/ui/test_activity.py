"""Work in the activity panel: how far it is, how it ended, and what can be taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtTest import QSignalSpy, QTest
from pytestqt.qtbot import QtBot

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.plans.operation import Operation, OperationState, Pause, Progress, last_undoable
from snaptree.plans.plan import (
    Action,
    DeleteSnapshot,
    Finding,
    Layer,
    MergeLayers,
    MergeWay,
    Plan,
    RemoveLeftover,
    Undo,
)
from snaptree.ui.activity import KEPT, Activity, title_of
from tests.ui.test_text import is_safe, read_tooltip
from tests.ui.values import HOSTILE_NAMES, NOW, URI

GIB = 2**30


def operation(
    number: int,
    state: OperationState = OperationState.DONE,
    *,
    action: Action = Action.REVERT,
    undo: bool = True,
    undone: bool = False,
    uuid: str = "web",
    progress: Progress | None = None,
    error: SnapTreeError | None = None,
    names: tuple[str, ...] = ("s1",),
    domain: str = "web-01",
    steps_done: int = 1,
) -> Operation:
    plan = Plan(
        action,
        URI,
        uuid,
        domain,
        names,
        steps=(DeleteSnapshot("s1", (), merges=True), DeleteSnapshot("s2", (), merges=True)),
        warnings=(Finding("pause", "The guest stands still meanwhile."),),
        undo=Undo("Goes back to before-revert.", "before-revert") if undo else None,
    )
    finished = NOW + number + 3 if state.is_over else None
    return Operation(number, plan, state, NOW + number, finished, progress, error, undone, steps_done)


@pytest.fixture
def activity(qtbot: QtBot) -> Activity:
    made = Activity()
    qtbot.addWidget(made)
    made.resize(900, 160)
    made.show()
    return made


def running(done: int | None, total: int | None, **more: object) -> Progress:
    return Progress("Merging s1 into its base", 0, 2, done, total, **more)  # type: ignore[arg-type]  # by name


def test_progress_is_told_and_drawn(activity: Activity) -> None:
    progress = running(40 * GIB, 50 * GIB, rate=2.0 * GIB, seconds_left=5.0, can_cancel=True)
    activity.show_operation(URI, operation(1, OperationState.RUNNING, progress=progress))
    row = activity.row(1)
    assert row.bar.value() / row.bar.maximum() == pytest.approx(0.8)
    assert row.detail.text == "Merging s1 into its base"
    assert row.figures.text == "Step 1 of 2: 40.0 GiB of 50.0 GiB, 2.0 GiB/s, 5 seconds left in this step"
    assert row.accessibleName().endswith(row.figures.text)
    assert not row.cancel.isHidden()
    assert row.cancel.isEnabled()


def test_what_nobody_knows_is_left_out() -> None:
    assert words.how_far(running(None, None)) == "Step 1 of 2"
    assert words.how_far(Progress("Reverting", 0, 1)) == ""
    assert words.how_far(Progress("Merging", 0, 1, share=0.435)) == "43 %"


def test_names_give_way_to_figures(activity: Activity) -> None:
    long = "Merging /var/lib/libvirt/images/a-machine-with-a-long-name.a-snapshot-with-a-longer-one into its base"
    progress = replace(running(40 * GIB, 50 * GIB, rate=2.0 * GIB, seconds_left=5.0), doing=long, remark="It is slow.")
    activity.show_operation(URI, operation(1, OperationState.RUNNING, progress=progress))
    row = activity.row(1)
    QTest.qWait(0)
    assert row.figures.width() >= row.figures.sizeHint().width()
    assert row.figures.toolTip() == ""
    assert read_tooltip(row.detail.toolTip()) == f"{long}: It is slow."
    widest = row.figures.minimumWidth()
    activity.show_operation(URI, operation(1, OperationState.RUNNING, progress=replace(progress, seconds_left=None)))
    assert row.figures.minimumWidth() == widest, "what stands beside it does not jump about"
    activity.show_operation(URI, operation(1))
    assert row.figures.isHidden()


def test_work_without_measure_is_shown_as_busy(activity: Activity) -> None:
    activity.show_operation(URI, operation(1, OperationState.RUNNING, progress=running(None, None)))
    assert activity.row(1).bar.maximum() == 0


def test_cancel_is_off_with_its_reason(activity: Activity) -> None:
    progress = running(1, 2, can_cancel=False, why_not_cancel="libvirt can't stop a delete.")
    activity.show_operation(URI, operation(1, OperationState.RUNNING, progress=progress))
    row = activity.row(1)
    assert not row.cancel.isEnabled()
    assert read_tooltip(row.cancel.toolTip()) == "libvirt can't stop a delete."


def test_cancel_undo_and_details_ask_for_the_right_thing(activity: Activity) -> None:
    cancels, undos = QSignalSpy(activity.cancel_wanted), QSignalSpy(activity.undo_wanted)
    details = QSignalSpy(activity.details_wanted)
    waiting = operation(1, OperationState.QUEUED)
    activity.show_operation(URI, waiting)
    activity.row(1).cancel.click()
    assert cancels.at(0) == [URI, waiting]
    done = operation(1)
    activity.show_operation(URI, done)
    activity.row(1).undo.click()
    assert undos.at(0) == [URI, done]
    error = SnapTreeError("It broke.", hint="Mend it.", details="libvirt error 1")
    activity.show_operation(URI, operation(2, OperationState.FAILED, error=error, uuid="db"))
    assert "It broke. Mend it" in activity.row(2).detail.text
    activity.row(2).details.click()
    assert details.at(0) == [error]


def test_only_the_last_change_of_a_machine_can_be_undone(activity: Activity) -> None:
    activity.show_operation(URI, operation(1))
    assert not activity.row(1).undo.isHidden()
    activity.show_operation(URI, operation(2))
    assert activity.row(1).undo.isHidden()
    assert not activity.row(2).undo.isHidden()
    activity.show_operation(URI, operation(3, uuid="db"))
    assert not activity.row(2).undo.isHidden(), "another machine is not in the way"
    activity.show_operation(URI, operation(2, undone=True))
    assert not activity.row(1).undo.isHidden()
    assert activity.row(2).undo.isHidden()
    assert activity.row(2).detail.text == "Done, and taken back since"


def test_undo_never_reaches_past_what_cannot_be_undone() -> None:
    assert last_undoable([operation(1), operation(2, action=Action.DELETE, undo=False)]) is None
    assert last_undoable([operation(1), operation(2, OperationState.RUNNING)]) is None
    failed_half_way = operation(2, OperationState.FAILED, steps_done=1)
    assert last_undoable([operation(1), failed_half_way]) is None
    failed_at_once = operation(2, OperationState.FAILED, steps_done=0)
    first = operation(1)
    assert last_undoable([first, failed_at_once]) is first
    undoing = operation(3, action=Action.UNDO, undo=False)
    assert last_undoable([first, operation(2, undone=True), undoing]) is first
    assert last_undoable([first], "another machine") is None


def test_a_plan_in_the_making_is_shown(activity: Activity) -> None:
    token = object()
    began = QSignalSpy(activity.began)
    activity.planning(token, "Revert web-01 to s1", URI, "web")
    assert began.count() == 1
    assert activity.under_way(URI, "web") == "Revert web-01 to s1"
    assert activity.under_way(URI, "another machine") == ""
    activity.planned(token)
    activity.planned(token)
    assert activity.operations == []
    assert activity.under_way(URI, "web") == ""


def test_what_changes_a_machine_is_under_way_from_its_plan_to_its_end(activity: Activity) -> None:
    done = operation(1)
    activity.show_operation(URI, done)
    assert activity.under_way(URI, "web") == ""
    activity.undoing(done)
    assert activity.under_way(URI, "web").startswith("Undo: ")
    activity.planned(done.id)
    assert activity.row(done.id).undo.isEnabled(), "it was not taken back"
    for state in (OperationState.QUEUED, OperationState.RUNNING):
        activity.show_operation(URI, operation(2, state))
        assert activity.under_way(URI, "web") == title_of(operation(2).plan)
    activity.show_operation(URI, replace(operation(2, OperationState.QUEUED), is_for_later=True))
    assert activity.under_way(URI, "web") == "", "what waits for tonight keeps nobody from pinning now"
    activity.show_operation(URI, operation(2))
    assert activity.under_way(URI, "web") == ""


def test_what_runs_comes_first_and_what_is_over_last(activity: Activity) -> None:
    paused = replace(running(None, None), pause=Pause.PAUSED)
    later = replace(operation(4, OperationState.QUEUED, uuid="m4"), is_for_later=True)
    for each in (
        operation(1, uuid="m1"),
        operation(2, OperationState.RUNNING, uuid="m2", progress=paused),
        operation(3, OperationState.QUEUED, uuid="m3"),
        later,
        operation(5, OperationState.QUEUED, uuid="m5"),
        operation(6, OperationState.RUNNING, uuid="m6"),
        operation(7, OperationState.FAILED, uuid="m7"),
    ):
        activity.show_operation(URI, each)
    QTest.qWait(0)

    def order() -> list[int]:
        return sorted(range(1, 8), key=lambda number: activity.row(number).y())

    assert order() == [6, 2, 3, 5, 4, 7, 1]
    activity.show_operation(URI, replace(operation(6, uuid="m6"), finished=NOW + 99))
    activity.show_operation(URI, operation(3, OperationState.RUNNING, uuid="m3"))
    QTest.qWait(0)
    assert order() == [3, 2, 5, 4, 6, 7, 1]


def test_the_controls_stay_where_they_are_from_the_first_moment_on(activity: Activity) -> None:
    layers = (Layer("/a", "qcow2"), Layer("/b", "qcow2"))
    merge = MergeLayers("vda", MergeWay.PULL, ("/a", "/b"), layers, is_live=True)
    plan = Plan(Action.PRUNE, URI, "web", "web-01", ("a", "b"), steps=(merge, DeleteSnapshot("c", (), merges=True)))
    begun = replace(operation(1, OperationState.RUNNING), plan=plan)
    row = None
    for progress in (
        None,
        running(None, None, can_cancel=True),
        running(40 * GIB, 50 * GIB, rate=2.0 * GIB, can_cancel=True, limit=8 << 20),
        Progress("Record", 1, 2, overall=0.5),
        Progress("Paused", 1, 2, overall=0.5, pause=Pause.PAUSED, can_cancel=True),
    ):
        activity.show_operation(URI, replace(begun, progress=progress))
        row = activity.row(1)
        assert not any(each.isHidden() for each in (row.bar, row.limit, row.pause, row.cancel))
        assert row.cancel.isEnabled() == (progress is None or progress.can_cancel)
        assert read_tooltip(row.cancel.toolTip())
    assert row is not None
    assert row.bar.value() / row.bar.maximum() == 0.5


def test_a_long_plan_is_folded_in_the_tooltip(activity: Activity) -> None:
    leftovers = tuple(RemoveLeftover(f"/layers/{number}", "nothing stands on it") for number in range(9))
    deletes = tuple(DeleteSnapshot(f"s{number}", (), merges=True) for number in range(30))
    plan = replace(operation(1).plan, steps=(*leftovers, *deletes), warnings=())
    activity.show_operation(URI, replace(operation(1), plan=plan))
    told = read_tooltip(activity.row(1).toolTip()).split("\n")
    assert told[0].startswith("1–9. Remove /layers/0, /layers/1, /layers/2 and 6 more")
    assert (len(told), told[-1]) == (16, "and 16 more")


def test_old_work_goes_from_the_list(activity: Activity) -> None:
    for number in range(KEPT + 5):
        activity.show_operation(URI, operation(number, uuid=f"m{number}"))
    assert len(activity.operations) == KEPT
    assert activity.operations[0].id == 5


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_stay_one_line_of_plain_text(activity: Activity, name: str) -> None:
    activity.show_operation(URI, operation(1, names=(name,), domain=name))
    assert activity.row(1).title.text == title_of(operation(1, names=(name,), domain=name).plan)
    assert is_safe(activity.row(1).title.text)
    assert "\n" not in activity.row(1).title.text
    read_tooltip(activity.row(1).toolTip())


def test_what_another_program_does_is_shown_and_not_waited_for(activity: Activity) -> None:
    began = QSignalSpy(activity.began)
    theirs = operation(1, OperationState.RUNNING, progress=Progress("Take s1", 0, 2, why_not_cancel="Stop that one."))
    activity.show_elsewhere(URI, replace(theirs, plan=replace(theirs.plan, schedule="nightly")))
    row = activity.row(1)
    assert row.title.text == "Revert web-01 to “s1” (schedule “nightly”)"
    assert (row.detail.text, row.figures.text) == ("Take s1", "Step 1 of 2")
    assert not row.cancel.isEnabled()
    assert read_tooltip(row.cancel.toolTip()) == "Stop that one."
    assert activity.running == []
    assert began.count() == 0, "the panel does not open for it"
    activity.show_elsewhere(URI, operation(1, OperationState.FAILED, error=SnapTreeError("No space is left.")))
    assert began.count() == 1, "unless it fails"
    activity.show_operation(URI, operation(2, OperationState.RUNNING))
    assert [each.id for each in activity.running] == [2]
