"""Plans as users meet them: what happens in which order, what it costs, and how it is taken back."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from snaptree.model.errors import SnapTreeError, VanishedError
from snaptree.model.estate import Consistency, DiskSnapshot, DomainState, MemorySnapshot
from snaptree.model.figures import Confidence, exact
from snaptree.model.growth import DAY
from snaptree.plans.aftermath import after
from snaptree.plans.intention import Capture, Delete, Revert, Take, TakeBack
from snaptree.plans.plan import (
    DeleteSnapshot,
    DropManagedSave,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    MergeLayers,
    Plan,
    RecordLayers,
    RemoveLeftover,
    RevertToSnapshot,
    StateAfter,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
    Undo,
)
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from snaptree.plans.speed import A_MOMENT, Sample, Speed, Way
from snaptree.plans.take import take_step
from tests.plans.situations import DEBIAN_12, DEBIAN_13, MIB, NOW, SituationBuilder, a_machine, disk

RUNNING = DomainState.RUNNING


def the_take(plan: Plan) -> TakeSnapshot:
    step = plan.steps[0]
    assert isinstance(step, TakeSnapshot)
    return step


def steps(plan: Plan) -> list[str]:
    """In short: "take a", "revert b", "delete c", "merge d", "commit f2 f1 live", "forget a", "remove /e"."""
    words = []
    for step in plan.steps:
        match step:
            case TakeSnapshot():
                words.append(f"take {'safety' if step.safety else step.name}")
            case RevertToSnapshot():
                words.append(f"revert {step.name}")
            case ForkAtSnapshot():
                words.append(f"fork {step.name}")
            case StopMachine():
                words.append("stop")
            case DropManagedSave():
                words.append("drop managed save")
            case DeleteSnapshot():
                words.append(f"{'merge' if step.merges else 'delete'} {step.name}")
            case MergeLayers():
                names = [posixpath.basename(path) for path in step.layers]
                words.append(f"{step.way.value} {' '.join(names)}{' live' if step.is_live else ''}")
            case RecordLayers():
                words.append(" ".join(["forget", *step.forgotten]))
            case RemoveLeftover():
                words.append(f"remove {step.path}")
    return words


def carried_out(plan: Plan, situation: Situation) -> Situation:
    assert not plan.is_refused, plan.refusals
    for step in plan.steps:
        situation = after(situation, step)
    return situation


def rules(plan: Plan) -> set[str]:
    return {warning.rule for warning in plan.warnings}


# Taking


def test_an_external_snapshot_names_every_file() -> None:
    machine = a_machine(disk("vda"), disk("sda", device="cdrom", path="/iso/debian.iso", read_only=True), state=RUNNING)
    plan = make_plan(Take("daily", capture=Capture.DISKS_AND_MEMORY), machine.build())
    step = the_take(plan)
    assert step.overlays == {"vda": "/images/vda.daily"}
    assert step.memory_file == "/images/vda.daily.mem"
    assert step.disks == {"vda": DiskSnapshot.EXTERNAL, "sda": DiskSnapshot.NO}
    assert step.memory is MemorySnapshot.EXTERNAL
    assert step.consistency is Consistency.MEMORY
    assert plan.expected_chains["vda"] == ("/images/vda.qcow2",)
    assert plan.forecast.peak_extra.bytes is not None
    assert plan.forecast.peak_extra.bytes >= 512 * MIB


def test_names_do_not_grow_with_the_chain() -> None:
    step = the_take(make_plan(Take("c"), a_machine().external("a").external("b").build()))
    assert step.overlays == {"vda": "/images/vda.c"}


def test_disks_that_differ_by_their_suffix_get_files_of_their_own() -> None:
    machine = a_machine(disk("vda", path="/d/x.qcow2"), disk("vdb", path="/d/x.img", format="raw"))
    overlays = the_take(make_plan(Take("a"), machine.build())).overlays
    assert len(set(overlays.values())) == 2


A_BASE: dict[str, Any] = {"dependants": MappingProxyType({"/images/vda.qcow2": frozenset({"clone"})})}
"""A clone stands on the machine's disk."""


@pytest.mark.parametrize(
    ("machine", "kind"),
    [
        (a_machine(), "internal"),
        (a_machine(state=RUNNING), "internal"),
        (a_machine().internal("a"), "internal"),
        (a_machine().external("a"), "external"),
        (a_machine().internal("a").external("b"), "external"),
        (a_machine().external("a").current(None), "external"),
        (a_machine(disk(format="raw")), "external"),
        (a_machine(disk("vda"), disk("vdb", format="raw")).internal("a"), "external"),
        (a_machine(state=RUNNING, has_pflash=True, nvram_format="raw"), "external"),
        (a_machine(**A_BASE), "external"),
        (a_machine().internal("a").having(**A_BASE), "external"),
        (a_machine(disk(type="network", path=None)), "internal"),
    ],
)
def test_the_best_kind_follows_the_tree_and_what_the_machine_allows(machine: SituationBuilder, kind: str) -> None:
    step = take_step(Take("new"), machine.build())
    assert (DiskSnapshot.EXTERNAL in step.disks.values()) == (kind == "external")


def test_another_kind_than_the_last_one_is_never_taken_without_a_word() -> None:
    plan = make_plan(Take("b"), a_machine().internal("a").having(**A_BASE).build())
    assert plan.warnings[0].rule == "another-kind"
    for words in ("“b” is taken on new layers", "inside the images", "clone"):
        assert words in plan.warnings[0].reason
    for machine in (a_machine(**A_BASE), a_machine(disk(format="raw")), a_machine().internal("a")):
        assert "another-kind" not in {finding.rule for finding in make_plan(Take("b"), machine.build()).warnings}


def test_why_a_take_cannot_be_undone_is_said() -> None:
    plan = make_plan(Take("b", capture=Capture.DISKS), a_machine().internal("a").build())
    assert plan.undo is None
    assert plan.warns_of_finality
    (why,) = (finding for finding in plan.warnings if finding.rule == "no-undo-of-take")
    assert "“b” can't be undone" in why.reason
    assert why.reason.endswith(".")


@pytest.mark.parametrize("version", [DEBIAN_12, DEBIAN_13])
def test_what_a_revert_removes_is_not_said_to_stay(version: int) -> None:
    machine = a_machine(version=version, takes_new_layers=frozenset({"/images"})).external("a")
    both = (*machine.build().disks, disk("vdb"))
    plan = make_plan(Revert("a"), machine.having(disks=both).chain("vdb", "/images/vdb.qcow2").build())
    assert not plan.is_refused
    (said,) = (finding.reason for finding in plan.warnings if "Added after" in finding.reason)
    assert "the file /images/vdb.qcow2 stays" in said


def test_a_delete_that_only_removes_files_takes_a_moment() -> None:
    machine = a_machine(speed=Speed(1.2, 1e6)).external("a").external("b").external("c").revert("a").build()
    assert make_plan(Delete(("b",), subtree=True), machine).forecast.seconds == pytest.approx(A_MOMENT)
    assert make_plan(Delete(("b",)), machine).forecast.seconds != pytest.approx(A_MOMENT)


def test_the_best_snapshot_of_a_running_machine_saves_its_memory() -> None:
    assert the_take(make_plan(Take("a"), a_machine(state=RUNNING).build())).memory is MemorySnapshot.INTERNAL
    running = a_machine().external("a").state(RUNNING).build()
    assert the_take(make_plan(Take("b"), running)).memory is MemorySnapshot.EXTERNAL


def test_freezing_asks_for_disks_only() -> None:
    plan = make_plan(Take("a", quiesce=Freeze.REQUIRED), a_machine(state=RUNNING, has_agent=True).build())
    freeze, step, thaw = plan.steps
    assert freeze == FreezeFileSystems(required=True)
    assert thaw == ThawFileSystems()
    assert isinstance(step, TakeSnapshot)
    assert step.memory is MemorySnapshot.NO
    assert step.consistency is Consistency.FILESYSTEM


def test_who_allows_it_gets_a_snapshot_of_file_systems_that_cannot_be_frozen() -> None:
    intention = Take("a", quiesce=Freeze.IF_POSSIBLE)
    assert the_take(make_plan(intention, a_machine(state=RUNNING).build())).consistency is Consistency.CRASH
    assert the_take(make_plan(intention, a_machine().build())).consistency is Consistency.OFFLINE
    freeze, *_ = make_plan(intention, a_machine(state=RUNNING, has_agent=True).build()).steps
    assert freeze == FreezeFileSystems(required=False)


def test_a_live_snapshot_has_its_memory_in_a_file_whatever_the_tree_has_so_far() -> None:
    step = the_take(make_plan(Take("a", live=True), a_machine(state=RUNNING).build()))
    assert step.live
    assert step.memory is MemorySnapshot.EXTERNAL


def test_the_test_driver_gets_what_it_can() -> None:
    machine = a_machine(state=RUNNING).host(driver="TEST")
    plan = make_plan(Take("a"), machine.build())
    assert not plan.is_refused
    assert the_take(plan).memory is MemorySnapshot.INTERNAL


def test_taking_is_undone_by_deleting_if_libvirt_can() -> None:
    plan = make_plan(Take("a", capture=Capture.DISKS), a_machine().build())
    assert plan.undo is not None
    assert plan.undo.delete == ("a",)
    # libvirt would not merge an external snapshot into an image that holds its parent.
    stuck = make_plan(Take("b", capture=Capture.DISKS), a_machine().internal("a").build())
    assert stuck.undo is None
    assert "external-on-internal" in rules(stuck)


def test_a_snapshot_without_a_name_gets_one_whose_files_are_free() -> None:
    situation = a_machine().external("a").build()
    first = the_take(make_plan(Take(), situation))
    taken = a_machine().external("a").having(existing_files=frozenset(first.overlays.values())).build()
    assert the_take(make_plan(Take(), taken)).name == f"{first.name}-2"


def test_new_files_go_where_they_are_wanted() -> None:
    two = a_machine(disk("vda"), disk("vdb", path="/more/vda.raw"), state=RUNNING).build()
    take = Take("one", capture=Capture.DISKS_AND_MEMORY, layers_in="/layers", memory_in="/memory/")
    step = the_take(make_plan(take, two))
    assert step.overlays == {"vda": "/layers/vda.one.vda", "vdb": "/layers/vda.one.vdb"}, "apart in one directory"
    assert step.memory_file == "/memory/vda.one.vda.mem"
    beside = the_take(make_plan(replace(take, layers_in="", memory_in=""), two))
    assert beside.overlays == {"vda": "/images/vda.one", "vdb": "/more/vda.one"}
    assert beside.memory_file == "/images/vda.one.mem"


def test_who_wants_files_elsewhere_gets_a_kind_that_has_files() -> None:
    assert not the_take(make_plan(Take(), a_machine().build())).overlays
    assert the_take(make_plan(Take(layers_in="/layers"), a_machine().build())).overlays


@pytest.mark.parametrize(
    ("take", "kind"),
    [
        (Take(capture=Capture.DISKS), "disks"),
        (Take(capture=Capture.DISKS, quiesce=Freeze.REQUIRED), "frozen"),
        (Take(capture=Capture.DISKS, quiesce=Freeze.IF_POSSIBLE), "disks"),
        (Take(capture=Capture.DISKS_AND_MEMORY), "memory"),
        (Take(capture=Capture.DISKS_AND_MEMORY, live=True), "live"),
        (Take(capture=Capture.INTERNAL), "internal"),
    ],
)
def test_a_name_may_be_a_template(take: Take, kind: str) -> None:
    """What may not be frozen is not called frozen."""
    situation = a_machine(state=RUNNING, user="amina", has_agent=True).build()
    assert take_step(replace(take, name="{vm}-{user}-{kind}"), situation).name == f"web-01-amina-{kind}"
    (refusal,) = make_plan(replace(take, name="{vm}-{what}"), situation).refusals
    assert refusal.rule == "name-not-allowed"


def test_a_take_says_what_room_there_is_and_how_fast_it_goes() -> None:
    machine = a_machine(now=NOW - 2 * DAY, free_bytes=MappingProxyType({"/images": 9 * MIB, "/fast": MIB}))
    machine.external("a").having(now=NOW)
    forecast = make_plan(Take("b", capture=Capture.DISKS), machine.build()).forecast
    assert forecast.growth == 10 * MIB * DAY // (NOW - machine.build().tree["a"].created)
    assert forecast.free == 9 * MIB
    moved = make_plan(Take("b", capture=Capture.DISKS, layers_in="/fast"), machine.build()).forecast
    assert moved.free == MIB
    assert make_plan(Take("b"), a_machine().build()).forecast.free is None


def test_what_a_guest_changes_meanwhile_makes_a_live_take_longer() -> None:
    speed = Speed(samples=(Sample(Way.TAKE_EXTERNAL, 512 * MIB, 10.0, wrote=100 * MIB),))
    live = Take("a", capture=Capture.DISKS_AND_MEMORY, live=True)

    def seconds(dirty_rate: int | None, **fields: Any) -> float | None:
        situation = a_machine(state=RUNNING, dirty_rate=dirty_rate, **{"speed": speed, **fields}).build()
        return make_plan(live, situation).forecast.seconds

    assert seconds(0) == pytest.approx(51.2), "all of the RAM at 10 MiB a second"
    assert seconds(5 * MIB) == pytest.approx(102.4)
    assert seconds(10 * MIB) is None, "it may not end"
    assert seconds(5 * MIB, speed=Speed()) is None, "nobody knows how quickly it is saved"


# Reverting


def test_a_revert_keeps_the_present_state_first() -> None:
    situation = a_machine().external("a").external("b").build()
    plan = make_plan(Revert("a"), situation)
    assert steps(plan) == ["take safety", "revert a"]
    safety = the_take(plan)
    assert safety.name.startswith("before-revert-")
    revert = plan.steps[1]
    assert isinstance(revert, RevertToSnapshot)
    assert revert.expected_current == safety.name
    assert "present-state-is-lost" not in rules(plan)
    assert plan.forecast.frees == exact(0)


@pytest.mark.parametrize(
    "machine",
    [
        a_machine().external("a").external("b"),
        a_machine().internal("a").internal("b"),
        a_machine(state=RUNNING).external("a", memory=True).external("b"),
        a_machine(state=RUNNING).internal("a"),
        a_machine().external("a").external("b").revert("a").external("c"),
        a_machine(disk("vda"), disk("vdb")).external("a"),
    ],
)
def test_a_revert_can_be_taken_back(machine: SituationBuilder) -> None:
    before = machine.build()
    plan = make_plan(Revert("a"), before)
    assert plan.undo is not None
    reverted = carried_out(plan, before)
    assert reverted.tree.current == "a"
    back = make_plan(TakeBack(plan.undo), reverted)
    restored = carried_out(back, reverted)
    assert restored.tree.current == before.tree.current
    assert dict(restored.tree.parents) == dict(before.tree.parents)
    assert restored.domain.state == before.domain.state
    assert [chain.layers for chain in restored.layers.chains] == [chain.layers for chain in before.layers.chains]
    assert back.undo is None
    assert "delete-is-final" not in rules(back), "the state that the safety snapshot held is the present one again"


def test_taking_a_revert_back_names_what_was_written_since() -> None:
    before = a_machine().external("a").external("b").build()
    revert = make_plan(Revert("a"), before)
    assert revert.undo is not None
    reverted = carried_out(revert, before)
    assert not make_plan(TakeBack(revert.undo), reverted).loses_present_state, "its new layer is empty"
    top = reverted.layers.images[reverted.layers.chains[0].layers[0]]
    images = {**reverted.layers.images, top.path: replace(top, allocated=exact(8 * MIB))}
    written = replace(reverted, layers=replace(reverted.layers, images=images))
    back = make_plan(TakeBack(revert.undo), written)
    assert back.loses_present_state
    (loss,) = [warning for warning in back.warnings if warning.rule == "present-state-is-lost"]
    assert "“a”" in loss.reason
    assert revert.undo.delete[0] in loss.remedy


def test_what_nobody_can_tell_of_an_image_may_be_lost_when_a_revert_is_taken_back() -> None:
    before = a_machine().internal("a").internal("b").build()
    revert = make_plan(Revert("a"), before)
    assert revert.undo is not None
    assert make_plan(TakeBack(revert.undo), carried_out(revert, before)).loses_present_state


def test_without_a_safety_snapshot_the_loss_is_named() -> None:
    plan = make_plan(Revert("a", take_safety_snapshot=False), a_machine().external("a").external("b").build())
    assert steps(plan) == ["revert a"]
    assert plan.undo is None
    (loss,) = [warning.reason for warning in plan.warnings if warning.rule == "present-state-is-lost"]
    assert "“b”" in loss
    assert plan.forecast.frees == exact(10 * MIB)


def test_if_the_present_state_can_not_be_kept_that_is_said() -> None:
    crowded = a_machine(state=RUNNING).external("a").having(free_bytes=MappingProxyType({"/images": MIB})).build()
    plan = make_plan(Revert("a"), crowded)
    assert [refusal.rule for refusal in plan.refusals] == ["no-safety-snapshot"]
    assert "/images" in plan.refusals[0].reason
    assert "without a safety snapshot" in plan.refusals[0].remedy
    assert not make_plan(Revert("a", take_safety_snapshot=False), crowded).is_refused


def test_what_forbids_the_revert_is_said_before_the_safety_snapshot_is_thought_of() -> None:
    asleep = a_machine().external("a").domain(has_managed_save=True).build()
    assert [refusal.rule for refusal in make_plan(Revert("a"), asleep).refusals] == ["managed-save"]


@pytest.mark.parametrize(
    "machine",
    [
        a_machine().external("a").external("b").current(None),
        a_machine().external("a").external("b").external("c").current("a"),
        a_machine().external("a").external("b").revert("a").snapshot("a", revert_overlays=()),
        a_machine()
        .external("a")
        .having(overlays_on=MappingProxyType({"/images/vda.a": frozenset({"/images/clone.qcow2"})})),
    ],
)
def test_a_safety_snapshot_makes_a_dangerous_revert_safe(machine: SituationBuilder) -> None:
    situation = machine.build()
    assert not make_plan(Revert("a"), situation).is_refused
    assert make_plan(Revert("a", take_safety_snapshot=False), situation).is_refused


def test_what_a_safety_snapshot_can_not_mend_is_refused_with_it_too() -> None:
    """The new snapshot would freeze the very layer that was committed into, and hide that it was written to."""
    situation = a_machine().external("a").chain("vda", "/images/vda.qcow2").build()
    assert [refusal.rule for refusal in make_plan(Revert("a"), situation).refusals] == ["content-changed"]


def test_the_state_to_end_in_is_passed_on() -> None:
    plan = make_plan(Revert("a", state_after=StateAfter.RUNNING), a_machine(state=RUNNING).external("a").build())
    revert = plan.steps[-1]
    assert isinstance(revert, RevertToSnapshot)
    assert revert.state_after is StateAfter.RUNNING
    assert "ends-shut-off" not in rules(plan)


def debian_12(**fields: Any) -> SituationBuilder:
    return a_machine(version=DEBIAN_12, takes_new_layers=frozenset({"/images"}), **fields)


def test_debian_12_reverts_internal_snapshots_itself_and_external_ones_by_our_steps() -> None:
    internal = make_plan(Revert("a"), debian_12().internal("a").build())
    assert steps(internal) == ["take safety", "revert a"]
    external = make_plan(Revert("a"), debian_12().external("a").build())
    kept, fork, left = steps(external)
    assert (kept, fork) == ("take safety", "fork a")
    assert left.startswith("remove /images/vda.before-revert-")
    running = make_plan(Revert("a"), debian_12(state=RUNNING).external("a", memory=True).build())
    assert steps(running)[:3] == ["take safety", "stop", "fork a"]
    assert "machine-is-stopped" in rules(running)
    assert "machine-is-stopped" not in rules(external)


def test_a_fork_removes_what_was_written_since_only_if_nobody_else_needs_it() -> None:
    """As libvirt's own revert does, but never what a clone, a snapshot inside, or an unread machine stands on."""
    without = Revert("a", take_safety_snapshot=False)
    left = "remove /images/vda.b"
    machine = debian_12().external("a").external("b")
    plan = make_plan(without, machine.build())
    assert steps(plan) == ["fork a", left]
    assert plan.forecast.frees == exact(10 * MIB)
    keepers: dict[str, Any] = {
        "a clone": {"dependants": MappingProxyType({"/images/vda.b": frozenset({"clone"})})},
        "a stranger": {"overlays_on": MappingProxyType({"/images/vda.b": frozenset({"/images/by-hand.qcow2"})})},
        "a machine that can't be read": {"unreadable_domains": ("broken",)},
    }
    for keeper, fields in keepers.items():
        kept = make_plan(without, replace(machine.build(), **fields))
        assert steps(kept) == ["fork a"], keeper
    inside = debian_12().external("a").external("b").internal("c")
    assert steps(make_plan(without, inside.build())) == ["fork a"]
    base = debian_12().internal("i").current(None)
    assert steps(make_plan(Revert("i", take_safety_snapshot=False), base.build())) == ["revert i"]


def test_a_fork_of_a_snapshot_without_children_owns_its_layers() -> None:
    for machine, owns in ((debian_12().external("a"), True), (debian_12().external("a").external("b"), False)):
        (fork,) = [
            step
            for step in make_plan(Revert("a", take_safety_snapshot=False), machine.build()).steps
            if isinstance(step, ForkAtSnapshot)
        ]
        assert fork.owns_overlays == owns


def test_libvirt_9_9_and_later_never_see_a_fork() -> None:
    for version in (9_009_000, 11_003_000):
        plan = make_plan(Revert("a"), a_machine(version=version).external("a").build())
        assert steps(plan) == ["take safety", "revert a"]


def test_a_tree_that_was_forked_is_safe_with_a_later_libvirt() -> None:
    """It would take the layer that a child froze for the one in use, and unlink it."""
    plan = make_plan(Revert("a"), debian_12().external("a").external("b").external("c").build())
    forked = carried_out(plan, debian_12().external("a").external("b").external("c").build())
    host = replace(forked.host, libvirt_version=11_003_000, external_snapshots=True)
    later = replace(forked, host=host)
    bare = make_plan(Revert("b", take_safety_snapshot=False), later)
    assert {"recorded-overlays-wrong", "layer-holds-snapshot"} <= {refusal.rule for refusal in bare.refusals}
    kept = make_plan(Revert("b"), later)
    assert steps(kept) == ["take safety", "revert b"]


def test_a_managed_save_goes_first_where_that_was_asked_for() -> None:
    situation = a_machine().external("a").domain(has_managed_save=True).build()
    assert "managed-save" in {refusal.rule for refusal in make_plan(Revert("a"), situation).refusals}
    plan = make_plan(Revert("a", drop_managed_save=True), situation)
    assert steps(plan) == ["drop managed save", "take safety", "revert a"]
    assert "managed-save-dropped" in rules(plan)
    plain = make_plan(Revert("a", drop_managed_save=True), a_machine().external("a").build())
    assert steps(plain) == ["take safety", "revert a"]


def test_how_long_a_revert_takes_is_learned_from_others() -> None:
    machine = a_machine(state=RUNNING).external("a", memory=True).build()
    assert make_plan(Revert("a"), machine).forecast.seconds is None
    half = machine.memory_bytes // 2
    samples = (Sample(Way.TAKE_EXTERNAL, half, 1.0), Sample(Way.REVERT_EXTERNAL, half, 3.0))
    taught = replace(machine, speed=Speed(samples=samples))
    plan = make_plan(Revert("a"), taught)
    assert plan.forecast.seconds == pytest.approx(8.0), "twice the memory"
    assert plan.forecast.pause_seconds == pytest.approx(8.0)
    off = replace(taught, domain=replace(taught.domain, state=DomainState.OFF))
    assert make_plan(Revert("a", take_safety_snapshot=False), off).forecast.pause_seconds == 0


# Deleting


def test_layers_on_each_other_are_merged_at_once() -> None:
    situation = a_machine().external("a").external("b").external("c").build()
    plan = make_plan(Delete(("c", "a", "b")), situation)
    assert steps(plan) == [
        "commit vda.c vda.b vda.a vda.qcow2",
        "forget c b a",
        "remove /images/vda.c",
        "remove /images/vda.b",
        "remove /images/vda.a",
    ]
    assert plan.snapshots == ("a", "b", "c")
    assert carried_out(plan, situation).layers.chains[0].layers == ("/images/vda.qcow2",)
    assert carried_out(plan, situation).disks[0].path == "/images/vda.qcow2"
    assert plan.forecast.copies.bytes == 30 * MIB, "each layer once"
    assert plan.forecast.copies.confidence is Confidence.UPPER_BOUND
    assert plan.forecast.peak_extra.bytes == 30 * MIB
    assert plan.undo is None
    assert "delete-is-final" in rules(plan)


def test_branches_not_in_use_go_from_the_leaves_up() -> None:
    situation = a_machine().external("a").external("b").external("c").revert("a").external("d").build()
    plan = make_plan(Delete(("b",), subtree=True), situation)
    assert steps(plan) == ["delete c", "delete b"]
    assert plan.forecast.copies == exact(0)
    assert plan.forecast.frees == exact(20 * MIB), "c froze b's overlay, b froze a's"


def test_a_fork_can_be_deleted_with_its_branches() -> None:
    situation = a_machine().external("a").external("b").external("c").revert("b").external("d").build()
    plan = make_plan(Delete(("b",), subtree=True), situation)
    assert steps(plan)[:2] == ["commit vda.d vda.1700000181 vda.a", "forget d c b"]
    assert steps(plan)[2:] == [f"remove /images/vda.{name}" for name in ("d", "1700000181", "b")]
    after_it = carried_out(plan, situation)
    assert after_it.tree.current == "a"
    assert after_it.layers.chains[0].layers == ("/images/vda.a", "/images/vda.qcow2")


def test_internal_snapshots_go_before_the_layer_that_they_live_in() -> None:
    situation = a_machine().external("a").internal("b").internal("c").build()
    plan = make_plan(Delete(("a",), subtree=True), situation)
    assert not plan.is_refused
    assert steps(plan) == ["delete b", "delete c", "merge a"]
    assert plan.forecast.frees.bytes is None, "what an internal snapshot frees needs an analysis"
    alone = make_plan(Delete(("a",)), situation)
    assert alone.refusals[0].rule == "merge-stuck"
    assert "/images/vda.a holds internal snapshots (b, c)" in alone.refusals[0].reason


def test_each_of_several_is_judged_where_the_ones_before_leave_the_machine() -> None:
    """Deleting the only internal snapshot lets its external child be merged."""
    situation = a_machine().internal("a").external("b").build()
    assert steps(make_plan(Delete(("b", "a")), situation)) == ["delete a", "merge b"]


def test_the_layer_of_an_internal_parent_stays_for_it() -> None:
    situation = a_machine().internal("a").external("b").build()
    plan = make_plan(Delete(("b",)), situation)
    assert steps(plan) == ["forget b"]
    (stays,) = [warning.reason for warning in plan.warnings if warning.rule == "layer-stays"]
    assert "holds “a”" in stays
    afterwards = carried_out(plan, situation)
    assert afterwards.layers.chains[0].layers == ("/images/vda.b", "/images/vda.qcow2")
    assert afterwards.tree.current == "a"


def test_a_plan_that_can_not_be_finished_does_not_begin() -> None:
    situation = a_machine().external("a").external("b").revert("a").external("c").internal("i").build()
    plan = make_plan(Delete(("a", "b", "c")), situation)
    assert plan.is_refused
    assert plan.steps == ()
    assert {refusal.rule for refusal in plan.refusals} == {"merge-stuck"}


def test_old_libvirt_leaves_the_memory_file_behind() -> None:
    machine = a_machine(version=DEBIAN_12, state=RUNNING).external("a", memory=True)
    assert steps(make_plan(Delete(("a",)), machine.build())) == ["merge a", "remove /images/vda.a.mem"]
    new = a_machine(state=RUNNING).external("a", memory=True)
    plan = make_plan(Delete(("a",)), new.build())
    assert steps(plan) == ["merge a"]
    assert plan.forecast.frees.bytes == 210 * MIB, "the layer and the saved memory"


def test_a_leaf_without_a_parent_leaves_its_layer_behind() -> None:
    """Two roots: the first one's layer is nobody's any more once it is deleted, if nothing stands on it."""
    machine = a_machine().external("a").chain("vda", "/images/other.qcow2").external("b")
    machine.image("/images/vda.a", is_missing=True, problem="gone", backing=None)
    orphan = machine.current(None).snapshot("b", parent=None).current("b").build()
    plan = make_plan(Delete(("a",)), orphan)
    assert steps(plan) == ["delete a", "remove /images/vda.qcow2"]
    far_away = machine.host(is_local=False).build()
    remote = make_plan(Delete(("a",)), far_away)
    assert steps(remote) == ["delete a"]
    assert "leftover-stays" in rules(remote)
    shared = machine.host(is_local=True).having(
        dependants=MappingProxyType({"/images/vda.qcow2": frozenset({"clone"})})
    )
    kept = make_plan(Delete(("a",)), shared.build())
    assert steps(kept) == ["forget a"]
    assert any("clone" in warning.reason for warning in kept.warnings)


# Taking back


def test_undoing_a_snapshot_deletes_it() -> None:
    situation = a_machine().external("a").build()
    assert steps(make_plan(TakeBack(Undo("", None, ("a",))), situation)) == ["merge a"]


def test_a_safety_snapshot_that_can_not_be_deleted_stays() -> None:
    situation = a_machine().external("a").external("safety").revert("a").build()
    assert steps(make_plan(TakeBack(Undo("", "safety", ("safety",))), situation)) == ["revert safety", "merge safety"]
    shared = a_machine().external("safety").having(unreadable_domains=("clone",)).build()
    plan = make_plan(TakeBack(Undo("", "safety", ("safety",))), shared)
    assert steps(plan) == ["revert safety"]
    (stays,) = [warning for warning in plan.warnings if warning.rule == "undo-keeps-snapshot"]
    assert "clone" in stays.reason


def test_undo_of_what_somebody_deleted_meanwhile() -> None:
    situation = a_machine().external("a").build()
    with pytest.raises(VanishedError, match="“safety”"):
        make_plan(TakeBack(Undo("", "safety", ("safety",))), situation)
    with pytest.raises(VanishedError, match="“b”"):
        make_plan(TakeBack(Undo("", None, ("b",))), situation)


@pytest.mark.parametrize("intention", [Revert("b"), Delete(("b",)), Delete(("a", "b"))])
def test_a_snapshot_that_is_gone_is_said_to_be(intention: Revert | Delete) -> None:
    with pytest.raises(VanishedError, match="web-01 has no snapshot named “b”"):
        make_plan(intention, a_machine().external("a").build())


def test_names_that_exist_are_said_the_most_similar_first() -> None:
    machine = a_machine()
    for name in ("start", "middle", "before-upgrade", "other", "after-upgrade", "end"):
        machine = machine.external(name)
    with pytest.raises(VanishedError) as raised:
        make_plan(Revert("Before-Upgrad"), machine.build())
    assert raised.value.hint.endswith("There are: “before-upgrade”, “after-upgrade”, “start” and 3 more.")
    with pytest.raises(VanishedError, match="There are none"):
        make_plan(Delete(("nope",)), a_machine().build())


def test_deleting_nothing_is_asked_back() -> None:
    with pytest.raises(SnapTreeError, match="No snapshot was named"):
        make_plan(Delete(()), a_machine().external("a").build())


def test_deep_trees_are_planned_too() -> None:
    machine = a_machine(version=12_000_000)
    for number in range(180):
        machine.external(f"s{number}")
    plan = make_plan(Delete(("s10", "s90", "s170")), machine.build())
    assert steps(plan) == ["merge s10", "merge s90", "merge s170"]


def test_what_is_left_out_of_a_delete_stays() -> None:
    situation = a_machine().external("a").external("b").external("c").build()
    assert make_plan(Delete(("a",), subtree=True, leaves_out=("b",)), situation).snapshots == ("a", "c")
    with pytest.raises(SnapTreeError, match="left out"):
        make_plan(Delete(("a",), leaves_out=("a",)), situation)
