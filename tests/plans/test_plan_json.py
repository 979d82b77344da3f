"""Plans as JSON and in the journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import Consistency, DiskSnapshot, Mark, MemorySnapshot, Remarks
from snaptree.model.figures import Confidence, Figure, unknown
from snaptree.model.settings import SettingChange
from snaptree.plans.intention import Capture, Delete, Revert, Take
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    Finding,
    Forecast,
    ForgetMemory,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    Layer,
    MakeLook,
    MergeLayers,
    MergeWay,
    Plan,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    StateAfter,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
    Undo,
)
from snaptree.plans.plan_json import plan_from_record, plan_to_json, plan_to_record
from snaptree.plans.plan_words import describe_step, steps_in_words
from snaptree.plans.planner import make_plan
from tests.plans.situations import a_machine

_Value = TypeVar("_Value")
_texts = st.text(max_size=8)
_names = st.lists(_texts, max_size=3).map(tuple)
_seconds = st.none() | st.floats(0, 1e6)
_figures = st.builds(unknown, _texts) | st.builds(
    Figure, st.integers(0, 2**62), st.sampled_from(sorted(set(Confidence) - {Confidence.UNKNOWN})), _texts
)
_layers = st.builds(Layer, _texts, _texts)
_bytes = st.integers(0, 2**50)


def _mappings(values: st.SearchStrategy[_Value]) -> st.SearchStrategy[Mapping[str, _Value]]:
    return st.dictionaries(_texts, values, max_size=2).map(MappingProxyType)


_findings = st.builds(Finding, _texts, _texts, _texts)
_marks = st.none() | st.builds(Mark, _texts, st.integers(0, 2**40))
_remarks = st.builds(Remarks, _texts, _marks, _marks, st.booleans())
_describes = st.builds(DescribeSnapshot, _texts, _remarks, _remarks)
_steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        TakeSnapshot,
        name=_texts,
        description=_texts,
        memory=st.sampled_from(MemorySnapshot),
        memory_file=st.none() | _texts,
        disks=_mappings(st.sampled_from(DiskSnapshot)),
        overlays=_mappings(_texts),
        quiesce=st.sampled_from(Freeze),
        consistency=st.sampled_from(Consistency),
        expected_current=st.none() | _texts,
        safety=st.booleans(),
        memory_bytes=_bytes,
        live=st.booleans(),
        group=_texts,
        schedule=_texts,
    ),
    st.builds(FreezeFileSystems, st.booleans(), st.floats(0.5, 60.0)),
    st.builds(ThawFileSystems),
    st.builds(RevertToSnapshot, _texts, st.sampled_from(StateAfter), st.none() | _texts, _bytes, st.booleans()),
    st.builds(StopMachine),
    st.builds(DropManagedSave),
    st.builds(
        ForkAtSnapshot,
        name=_texts,
        state_after=st.sampled_from(StateAfter),
        bases=_mappings(_layers),
        overlays=_mappings(_texts),
        owns_overlays=st.booleans(),
        memory_file=st.none() | _texts,
        expected_current=st.none() | _texts,
        memory_bytes=_bytes,
    ),
    st.builds(DeleteSnapshot, _texts, _names, st.booleans()),
    st.builds(EndOrphanedMerge, _names),
    st.builds(
        MergeLayers,
        target=_texts,
        way=st.sampled_from(MergeWay),
        layers=st.lists(_texts, min_size=2, max_size=4).map(tuple),
        stack=st.lists(_layers, max_size=4).map(tuple),
        is_live=st.booleans(),
    ),
    st.builds(
        RecordLayers,
        moved=_mappings(_layers),
        removed=_names,
        parents=_mappings(st.none() | _texts),
        overlays=_mappings(_mappings(_texts)),
        revert_overlays=_mappings(_mappings(_texts)),
        forgotten=_names,
    ),
    st.builds(ForgetMemory, _texts, _texts, _texts),
    st.builds(RemoveLeftover, _texts, _texts),
    _describes,
    st.builds(RenameSnapshot, _texts, _texts, st.none() | _texts, _names, _mappings(_mappings(_texts))),
    st.builds(
        CopyOut,
        snapshot=_texts,
        target=_texts,
        source=_layers,
        base=st.none() | _layers,
        path=_texts,
        copies=st.none() | _bytes,
    ),
    st.builds(
        MakeLook,
        snapshot=_texts,
        machine=_texts,
        uuid=_texts,
        disks=_mappings(_texts),
        bases=_mappings(_layers),
        connect_networks=st.booleans(),
        nvram=st.none() | _texts,
    ),
    st.builds(StartLook, _texts, _texts),
    st.builds(RemoveLook, _names),
)
_plans = st.builds(
    Plan,
    action=st.sampled_from(Action),
    host_uri=_texts,
    domain_uuid=_texts,
    domain=_texts,
    snapshots=_names,
    steps=st.lists(_steps, max_size=3).map(tuple),
    forecast=st.builds(
        Forecast,
        _figures,
        _figures,
        _figures,
        _seconds,
        _seconds,
        st.none() | _bytes,
        st.none() | _bytes,
        st.none() | _bytes,
    ),
    warnings=st.lists(_findings, max_size=2).map(tuple),
    refusals=st.lists(_findings, max_size=2).map(tuple),
    undo=st.none()
    | st.builds(
        Undo,
        _texts,
        st.none() | _texts,
        _names,
        st.lists(_describes, max_size=2).map(tuple),
        st.none() | st.tuples(_texts, _texts),
        st.none() | _texts,
    ),
    expected_chains=_mappings(_names),
    settings=st.lists(st.builds(SettingChange, _texts, st.none() | _texts, st.none() | _texts), max_size=2).map(tuple),
    recovers=st.none() | st.integers(1),
)


@given(_plans)
def test_the_journal_gives_back_what_it_was_given(plan: Plan) -> None:
    assert plan_from_record(json.loads(json.dumps(plan_to_record(plan)))) == plan


@pytest.mark.parametrize(
    "damage", [{"version": 99}, {"version": None}, {"action": "dance"}, {"steps": [{"kind": "?"}]}]
)
def test_records_of_other_versions_are_told_apart(damage: dict[str, object]) -> None:
    record = plan_to_record(make_plan(Take("a"), a_machine().build()))
    with pytest.raises((ValueError, KeyError, TypeError)):
        plan_from_record(record | damage)


def test_plans_recorded_before_they_said_all_that_they_say_now_are_understood() -> None:
    plan = make_plan(Revert("a"), a_machine().external("a").build())
    record = plan_to_record(plan)
    del record["settings"]
    for step in record["steps"]:
        del step["memory_bytes"]
        step.pop("is_internal", None)
    assert plan_from_record(record) == plan


def test_undos_recorded_before_descriptions_could_be_undone_are_understood() -> None:
    plan = make_plan(Revert("a"), a_machine().external("a").build())
    record = plan_to_record(plan)
    del record["undo"]["describe"], record["undo"]["rename"]
    assert plan.undo is not None
    assert plan_from_record(record) == plan


@given(_plans)
def test_every_document_has_the_same_keys(plan: Plan) -> None:
    document = plan_to_json(plan)
    json.dumps(document)
    assert list(document) == [
        "action", "domain", "snapshots", "steps", "forecast", "warnings", "refusals", "settings", "undo",
    ]  # fmt: skip
    assert list(document["forecast"]) == [
        "copies",
        "frees",
        "peak_extra",
        "seconds",
        "pause_seconds",
        "likely_extra",
        "growth_per_day",
        "free",
        "confidence",
    ]
    assert document["forecast"]["confidence"] == {
        "copies": plan.forecast.copies.confidence.value,
        "frees": plan.forecast.frees.confidence.value,
        "peak_extra": plan.forecast.peak_extra.confidence.value,
    }
    assert "confidence" not in plan_to_record(plan)["forecast"], "the journal keeps whole figures"
    assert all({"kind", "says"} <= set(step) for step in document["steps"])
    assert all(set(warning) == {"rule", "reason"} for warning in document["warnings"])
    assert all(set(change) == {"what", "before", "after"} for change in document["settings"])
    assert all(set(refusal) == {"rule", "reason", "remedy"} for refusal in document["refusals"])


@given(_steps)
def test_every_step_has_one_line_of_words(step: Step) -> None:
    assert describe_step(step).isprintable()


def test_documents_of_real_plans() -> None:
    machine = a_machine().external("a").external("b")
    revert = plan_to_json(make_plan(Revert("a"), machine.build()))
    assert [step["kind"] for step in revert["steps"]] == ["take", "revert"]
    assert revert["undo"] is True
    refused = plan_to_json(make_plan(Delete(("a",)), machine.domain(has_managed_save=True).build()))
    assert refused["steps"] == []
    assert refused["refusals"][0]["rule"] == "managed-save"
    assert refused["undo"] is False


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (RevertToSnapshot("a", StateAfter.AS_CAPTURED, None), "Revert to “a”"),
        (RevertToSnapshot("a", StateAfter.PAUSED, None), "Revert to “a” and leave the machine paused"),
        (RevertToSnapshot("a", StateAfter.OFF, None), "Revert to “a” and leave the machine off"),
        (StopMachine(), "Turn the machine off at once, like pulling the plug"),
        (DropManagedSave(), "Throw away the memory that the managed save put aside"),
        (
            ForkAtSnapshot("a", StateAfter.RUNNING, {}, {"vda": "/images/vda.1"}, True, None, None),
            "Revert to “a” on new layers (/images/vda.1) and let the machine run",
        ),
        (DeleteSnapshot("a", (), merges=True), "Delete “a” and merge its layer"),
        (DeleteSnapshot("a", (), merges=False), "Delete “a”"),
        (ForgetMemory("a", "b", "/images/a.mem"), "Record in libvirt that “a” holds the disks only"),
        (RemoveLeftover("/images/a.mem", "nobody needs it"), "Remove /images/a.mem: nobody needs it"),
        (DescribeSnapshot("a", Remarks(), Remarks(pinned=Mark())), "Pin “a”"),
        (DescribeSnapshot("a", Remarks(pinned=Mark()), Remarks()), "Unpin “a”"),
        (DescribeSnapshot("a", Remarks(), Remarks(known_good=Mark())), "Mark “a” as known good"),
        (DescribeSnapshot("a", Remarks(known_good=Mark()), Remarks()), "Take the mark “known good” off “a”"),
        (DescribeSnapshot("a", Remarks(), Remarks(half_deleted=True)), "Mark “a” as half deleted"),
        (DescribeSnapshot("a", Remarks(half_deleted=True), Remarks()), "Take the mark “half deleted” off “a”"),
        (DescribeSnapshot("a", Remarks(), Remarks("x")), "Write a note on “a”"),
        (DescribeSnapshot("a", Remarks("x"), Remarks("y", Mark())), "Pin “a” and change the note of “a”"),
        (DescribeSnapshot("a", Remarks("x"), Remarks()), "Remove the note of “a”"),
        (DescribeSnapshot("a", Remarks("x"), Remarks("x")), "Leave what is said about “a” as it is"),
        (RenameSnapshot("a", "b", None, (), {}), "Rename “a” to “b”"),
    ],
)
def test_sentences_of_steps(step: Step, says: str) -> None:
    assert describe_step(step) == says


def test_a_snapshot_is_described_by_what_it_holds() -> None:
    from snaptree.model.estate import DomainState
    from snaptree.plans.take import take_step

    running = a_machine(state=DomainState.RUNNING).build()
    says = {capture: describe_step(take_step(Take("a", capture=capture), running)) for capture in Capture}
    assert says[Capture.DISKS] == "Take the snapshot “a” (disks only, as after a power cut, new layer)"
    assert says[Capture.DISKS_AND_MEMORY] == "Take the snapshot “a” (disks and memory, new layer)"
    assert says[Capture.INTERNAL] == "Take the snapshot “a” (disks and memory, inside the image)"


def test_files_that_go_for_one_reason_stand_together_in_words() -> None:
    files = [RemoveLeftover(f"/vm/{name}", "it was merged") for name in "cab"]
    other = RemoveLeftover("/vm/x.mem", "its memory goes")
    assert steps_in_words([DeleteSnapshot("a", (), merges=False), *files, other]) == [
        ("1.", "Delete “a”"),
        ("2–4.", "Remove /vm/a, /vm/b and /vm/c: it was merged"),
        ("5.", "Remove /vm/x.mem: its memory goes"),
    ]
    assert steps_in_words([]) == []
