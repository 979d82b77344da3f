"""Plans of notes, marks and names: what they say, what they leave alone, and how they are taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.errors import VanishedError
from snaptree.model.estate import Annotations, DomainState, Mark, Remarks
from snaptree.model.tree import SnapshotTree
from snaptree.plans.aftermath import after
from snaptree.plans.describe import clean_note
from snaptree.plans.intention import Capture, Delete, Describe, Intention, Rename, Revert, Take, TakeBack
from snaptree.plans.plan import Action, DescribeSnapshot, Plan, RenameSnapshot, Undo
from snaptree.plans.planner import make_plan
from snaptree.plans.rules import why_not
from snaptree.plans.situation import Situation, glance
from tests.plans.situations import NOW, SituationBuilder, a_machine

AMINA = Mark("amina", NOW - 1000)
_marks = st.none() | st.builds(Mark, st.sampled_from(["amina", "björn", ""]), st.integers(1, 5))
_remarks = st.builds(Remarks, st.sampled_from(["", "one", "two"]), _marks, _marks)
_describes = st.builds(
    Describe,
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from(["", "two", "three"]),
    st.none() | st.booleans(),
    st.none() | st.booleans(),
)


def two(**fields: object) -> SituationBuilder:
    """a and b, external, and Carol who asks."""
    return a_machine(user="carol").external("a").external("b").having(**fields)


def pinned(builder: SituationBuilder, *names: str) -> SituationBuilder:
    for name in names:
        builder.snapshot(name, annotations=Annotations(pinned=AMINA))
    return builder


def run(plan: Plan, situation: Situation) -> Situation:
    """The situation that a plan leads to."""
    assert not plan.is_refused, plan.refusals
    for step in plan.steps:
        situation = after(situation, step)
    return situation


def rules(plan: Plan) -> list[str]:
    return [finding.rule for finding in (*plan.refusals, *plan.warnings)]


def said(situation: Situation) -> dict[str, Remarks]:
    return {snapshot.name: snapshot.remarks for snapshot in situation.tree}


def undo_of(plan: Plan) -> Undo:
    assert plan.undo is not None
    return plan.undo


# Notes and marks


def test_who_marks_a_snapshot_and_when_is_said() -> None:
    situation = pinned(two(), "b").build()
    plan = make_plan(Describe(("a", "b"), pinned=True), situation)
    mark = Mark("carol", situation.now)
    assert plan.steps == (DescribeSnapshot("a", Remarks(), Remarks(pinned=mark)),), "amina pinned the other one"
    assert plan.snapshots == ("a",)
    assert undo_of(plan).text == "Unpin “a”."
    assert plan.action is Action.DESCRIBE
    assert not plan.asks_first
    assert plan.expected_chains == {}, "what takes writes meanwhile does not matter"


def test_what_is_so_already_takes_no_step() -> None:
    plan = make_plan(Describe(("b",), note=" ", known_good=False), two().build())
    assert plan.steps == ()
    assert plan.undo is None
    assert not plan.is_refused


@pytest.mark.parametrize(
    ("intention", "text"),
    [
        (Describe(("a", "b"), known_good=True), "Take the mark “known good” off “a” and “b”."),
        (Describe(("a",), note="x"), "Give “a” the earlier note back."),
        (Describe(("a",), note="x", pinned=True), "Unpin “a” and give “a” the earlier note back."),
    ],
)
def test_what_undo_does_is_said(intention: Describe, text: str) -> None:
    assert undo_of(make_plan(intention, two().build())).text == text


@given(_describes, _remarks, _remarks)
def test_undo_says_exactly_what_was_said(intention: Describe, one: Remarks, other: Remarks) -> None:
    builder = two()
    tree = builder.build().tree
    snapshots = [tree["a"].with_remarks(one), tree["b"].with_remarks(other)]
    situation = builder.having(tree=SnapshotTree.build(snapshots, "b")).build()
    plan = make_plan(intention, situation)
    then = run(plan, situation)
    for name in ("a", "b"):
        now = then.tree[name].remarks
        before = situation.tree[name].remarks
        if name not in intention.snapshots:
            assert now == before
            continue
        assert now.note == (before.note if intention.note is None else intention.note)
        assert (now.pinned is not None) == (before.pinned is not None if intention.pinned is None else intention.pinned)
        if now.pinned is not None and before.pinned is not None:
            assert now.pinned == before.pinned, "it stays with whoever pinned it first"
    assert (plan.undo is None) == (said(then) == said(situation))
    if plan.undo is not None:
        assert said(run(make_plan(TakeBack(plan.undo), then), then)) == said(situation)


@given(_describes, _describes)
def test_undo_leaves_what_others_said_since(intention: Describe, others: Describe) -> None:
    situation = two().build()
    plan = make_plan(intention, situation)
    if plan.undo is None:
        return
    since = run(make_plan(others, run(plan, situation)), run(plan, situation))
    back = make_plan(TakeBack(plan.undo), since)
    if back.is_refused:
        assert rules(back) == ["said-otherwise-since"] * len(back.refusals)
        assert set(others.snapshots) & set(intention.snapshots)
        return
    then = run(back, since)
    for name in ("a", "b"):
        if name not in intention.snapshots:
            assert then.tree[name].remarks == since.tree[name].remarks
        elif intention.note is None:
            assert then.tree[name].description == since.tree[name].description


def test_a_note_that_somebody_else_changed_since_is_not_overwritten() -> None:
    situation = two().build()
    plan = make_plan(Describe(("a",), note="mine", pinned=True), situation)
    since = run(make_plan(Describe(("a",), note="theirs"), run(plan, situation)), run(plan, situation))
    back = make_plan(TakeBack(undo_of(plan)), since)
    (refusal,) = back.refusals
    assert refusal.rule == "said-otherwise-since"
    assert "the note of “a”" in refusal.reason


def test_undo_of_what_is_gone() -> None:
    situation = two().build()
    plan = make_plan(Describe(("a", "b"), pinned=True), situation)
    left = replace(situation, tree=SnapshotTree.build([situation.tree["a"]], "a"))
    back = make_plan(TakeBack(undo_of(plan)), left)
    assert back.snapshots == ("a",)
    with pytest.raises(VanishedError, match="“a”"):
        make_plan(TakeBack(undo_of(plan)), replace(situation, tree=SnapshotTree.build([], None)))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree"),
        ("  \n", ""),
        ("Größe\t🌳", "Größe\t🌳"),
    ],
)
def test_a_note_is_as_libvirt_gives_it_back(text: str, note: str) -> None:
    assert clean_note(text) == note


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x1f", "\ufffe", "\uffff", "\ud800"])
def test_a_note_that_libvirt_cannot_write_down_is_refused_in_words(character: str) -> None:
    for intention in (Describe(("a",), note=f"one{character}two"), Take("c", description=f"one{character}two")):
        (refusal,) = make_plan(intention, two().build()).refusals
        assert refusal.rule == "note-not-allowed"
        assert f"U+{ord(character):04X}" in refusal.reason
        assert refusal.reason.isprintable()
    assert not make_plan(Describe(("a",), pinned=True), two().build()).is_refused


def test_what_xml_has_is_written_down() -> None:
    note = "tab\tline\nDEL \x7f C1 \x85\x9f bidi \u202e last \ufffd first \ue000 🌳\U0010ffff"
    plan = make_plan(Describe(("a",), note=note), two().build())
    assert not plan.is_refused
    (step,) = plan.steps
    assert isinstance(step, DescribeSnapshot)
    assert step.after.note == note


# What marks protect


@pytest.mark.parametrize("mark", ["pinned", "known_good"])
def test_marks_keep_snapshots_out_of_deletes_of_several(mark: str) -> None:
    marked = Annotations(pinned=AMINA) if mark == "pinned" else Annotations(known_good=AMINA)
    builder = a_machine().external("a").external("b").external("c").external("d")
    for name in ("b", "d"):
        builder.snapshot(name, annotations=marked)
    rule = mark.replace("_", "-")
    for intention in (
        Delete(("a", "b", "c", "d")),
        Delete(("a",), subtree=True),
        Delete(("a", "b", "d"), by_own_jobs=True),
    ):
        plan = make_plan(intention, builder.build())
        (refusal,) = [refusal for refusal in plan.refusals if refusal.rule == rule]
        assert "“b” and “d” are" in refusal.reason
        assert plan.steps == ()
    assert rule not in rules(make_plan(Delete(("a", "c")), builder.build()))
    alone = make_plan(Delete(("b",)), builder.build())
    assert not alone.is_refused
    (warning,) = [warning for warning in alone.warnings if warning.rule == f"{rule}-alone"]
    assert "by amina" in warning.reason
    assert why_not(Action.DELETE, builder.build(), "b") is None


def test_no_undo_deletes_what_was_marked_since() -> None:
    situation = a_machine().internal("a").build()
    take = make_plan(Take("b", capture=Capture.INTERNAL), situation)
    taken = run(take, situation)
    then = run(make_plan(Describe(("b",), pinned=True), taken), taken)
    back = make_plan(TakeBack(undo_of(take)), then)
    assert rules(back) == ["pinned"]
    assert "“b” is pinned" in back.refusals[0].reason

    revert = make_plan(Revert("a"), situation)
    reverted = run(revert, situation)
    safety = undo_of(revert).delete[0]
    then = run(make_plan(Describe((safety,), known_good=True), reverted), reverted)
    back = make_plan(TakeBack(undo_of(revert)), then)
    assert not back.is_refused
    assert "undo-keeps-snapshot" in rules(back)
    assert safety in run(back, then).tree


# Names


def test_a_rename_keeps_the_tree() -> None:
    situation = a_machine().external("a").external("b").revert("a").external("c").build()
    plan = make_plan(Rename("a", "base"), situation)
    assert plan.steps == (RenameSnapshot("a", "base", None, ("b", "c"), {}),)
    assert not plan.asks_first
    then = run(plan, situation)
    assert then.tree.parents == {"base": None, "b": "base", "c": "base"}
    assert then.tree.current == "c"
    assert set(then.recorded_disks) == {"base", "b", "c"}
    back = make_plan(TakeBack(undo_of(plan)), then)
    assert run(back, then).tree == situation.tree


def test_a_rename_names_the_layers_in_use_since_a_revert() -> None:
    situation = a_machine().external("a").external("b").revert("a").build()
    overlays = {"vda": dict(situation.tree["a"].revert_overlays)["vda"]}
    (own,) = make_plan(Rename("a", "base"), situation).steps
    assert isinstance(own, RenameSnapshot)
    assert own.revert_overlays == {"base": overlays}
    (childs,) = make_plan(Rename("b", "leaf"), situation).steps
    assert isinstance(childs, RenameSnapshot)
    assert childs.revert_overlays == {"a": overlays}
    assert childs.records.revert_overlays == {"a": overlays}
    assert childs.records.forgotten == ("b",)


@pytest.mark.parametrize(
    ("name", "rule"), [("b", "name-taken"), ("a", "name-taken"), ("a b", "name-not-allowed"), ("", "name-not-allowed")]
)
def test_new_names_are_held_to_the_same_rules(name: str, rule: str) -> None:
    plan = make_plan(Rename("a", name), two().build())
    assert rules(plan) == [rule]
    assert plan.steps == ()


def test_a_name_that_we_do_not_give_does_not_come_back() -> None:
    plan = make_plan(Rename("a b", "a"), a_machine().external("a").renamed("a", "a b").build())
    assert not plan.is_refused
    assert plan.undo is None
    assert plan.asks_first


# What is in the way


@pytest.mark.parametrize("intention", [Describe(("a",), pinned=True), Rename("a", "c")])
def test_what_forbids_any_change_forbids_these(intention: Intention) -> None:
    assert "block-job-running" in rules(make_plan(intention, two(block_jobs=("vda",)).build()))
    assert "read-only-connection" in rules(make_plan(intention, two().host(read_only=True).build()))
    assert "unreadable-snapshot" in rules(make_plan(intention, two().snapshot("a", problem="odd").build()))
    assert "finish-interrupted-delete" in rules(
        make_plan(intention, two().snapshot("a", delete_in_progress=True).build())
    )
    saved = two().domain(has_managed_save=True).state(DomainState.OFF).build()
    assert not make_plan(intention, saved).is_refused, "nothing is started, and no disk changes"


def test_a_window_greys_what_can_not_be_said() -> None:
    situation = two().host(read_only=True).build()
    at_a_glance = glance(situation.host, situation.domain, situation.tree)
    for action in (Action.DESCRIBE, Action.RENAME):
        reason = why_not(action, at_a_glance, "a")
        assert reason is not None
        assert reason.rule == "read-only-connection"
    situation = a_machine().internal("a").build()
    at_a_glance = glance(situation.host, situation.domain, situation.tree)
    assert why_not(Action.DESCRIBE, at_a_glance, "a") is None
    reason = why_not(Action.RENAME, at_a_glance, "a")
    assert reason is not None
    assert reason.rule == "rename-internal"
