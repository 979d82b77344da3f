"""What is found on machines and hosts, and that what is offered as a cure is one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.costs import domain_costs
from snaptree.model.estate import (
    Annotations,
    DiskChain,
    Domain,
    DomainLayers,
    DomainState,
    Host,
    Image,
    InternalSnapshot,
    Mark,
    Snapshot,
)
from snaptree.model.figures import exact, unknown
from snaptree.model.merging import LayerTree
from snaptree.model.tree import SnapshotTree
from snaptree.model.troubles import Kind, Severity
from snaptree.plans.advice import Advice, Observed
from snaptree.plans.check import (
    Checked,
    Space,
    Stray,
    Surroundings,
    check_host,
    check_machine,
    side_by_side,
)
from snaptree.plans.facts import Facts
from snaptree.plans.intention import Delete, Prune, Recover, Revert
from snaptree.plans.planner import make_plan
from snaptree.plans.policy import Duration, Period, Policy, Scope
from snaptree.plans.prune import prune
from snaptree.plans.situation import glance
from snaptree.plans.thresholds import Thresholds
from tests.plans.situations import a_machine, interrupted
from tests.ui.values import DAY, HOST, MIB, NOW, analysed, chain, layers_for, snapshot

BY_SCHEDULE = Annotations(schedule="nightly")
PINNED = Annotations(pinned=Mark())
DEBIAN_12 = replace(HOST, libvirt_version=9_000_000)


def observed(
    snapshots: Iterable[Snapshot],
    *,
    layers: DomainLayers | None = None,
    name: str = "web-01",
    host: Host = DEBIAN_12,
    state: DomainState = DomainState.OFF,
) -> Observed:
    """A machine with these snapshots, the last of which is the current one."""
    every = list(snapshots)
    tree = SnapshotTree.build(every, every[-1].name if every else None)
    layers = layers or analysed(layers_for(tree))
    return Observed(host, Domain(name, name, state, is_persistent=True), tree, layers, domain_costs(tree, layers))


def found(seen: Observed, thresholds: Thresholds | None = None) -> tuple[Advice, ...]:
    return check_machine(seen, thresholds or Thresholds(), NOW, zone=dt.UTC).advice


def only(seen: Observed, kind: Kind, thresholds: Thresholds | None = None) -> Advice:
    (advice,) = (each for each in found(seen, thresholds) if each.kind is kind)
    return advice


def wanted(advice: Advice) -> object:
    """What its cure wants; None if it has none."""
    return None if advice.cure is None else advice.cure.intention


def marked(snapshots: Iterable[Snapshot], annotations: Annotations) -> list[Snapshot]:
    return [replace(each, annotations=annotations) for each in snapshots]


# One machine


def test_nothing_is_found_on_a_sound_machine() -> None:
    assert found(observed([])) == ()
    assert found(observed(chain(5))) == ()
    assert found(observed(chain(24))) == ()


@pytest.mark.parametrize(
    ("marks", "scope"),
    [(BY_SCHEDULE, Scope()), (Annotations(), Scope(by_hand=True))],
)
def test_a_deep_chain_is_made_shorter_by_what_schedules_took_if_that_is_enough(
    marks: Annotations, scope: Scope
) -> None:
    seen = observed(marked(chain(12), marks))
    advice = only(seen, Kind.DEEP_CHAIN, Thresholds(max_depth=8))
    assert advice.severity is Severity.WARNING
    assert "13 layers" in advice.text
    assert wanted(advice) == Prune(Policy({Period.LAST: 5}, maximum_depth=8, scope=scope))


def test_what_was_left_half_deleted_is_deleted() -> None:
    first, *rest = chain(3)
    advice = only(observed([replace(first, annotations=Annotations(half_deleted=True)), *rest]), Kind.MIXTURE)
    assert "mixture" in advice.text
    assert wanted(advice) == Delete((first.name,))


def test_what_was_merged_by_hand_is_forgotten_and_what_took_it_in_is_doubted() -> None:
    """s2's layer was committed into that of s1."""
    snapshots = chain(3)
    layers = layers_for(SnapshotTree.build(snapshots, "s3"))
    images = {path: image for path, image in layers.images.items() if path != "/vm/s1.qcow2"}
    images["/vm/s2.qcow2"] = replace(images["/vm/s2.qcow2"], backing="/vm/disk.qcow2")
    merged = (DiskChain("vda", ("/vm/s3.qcow2", "/vm/s2.qcow2", "/vm/disk.qcow2")),)
    seen = observed(snapshots, layers=DomainLayers(merged, MappingProxyType(images)))
    advice = only(seen, Kind.STALE_SNAPSHOT)
    assert "“s1” may not show" in advice.text
    assert wanted(advice) == Delete(("s2",))
    at_a_glance = glance(seen.host, seen.domain, seen.tree, seen.layers)
    refusals = {each.rule: each.remedy for each in make_plan(Revert("s1"), at_a_glance).refusals}
    assert f"snaptree delete {seen.domain.name} s2. What is left is" in refusals["content-changed"], "no other advice"
    left = replace(snapshots[0], annotations=Annotations(doubtful=True)), *snapshots[1:]
    assert "“s1”" in only(observed(left), Kind.DOUBTFUL).text


def test_a_chain_of_what_is_to_stay_has_no_cure_but_words() -> None:
    advice = only(observed(marked(chain(12), PINNED)), Kind.DEEP_CHAIN, Thresholds(max_depth=8))
    assert advice.cure is None
    assert "unpin" in advice.remedy


def test_forks_go_only_if_nothing_else_is_enough() -> None:
    side = [snapshot(f"side{number}", f"s{number}", days=1) for number in range(1, 12)]
    advice = only(observed([*side, *chain(12)]), Kind.DEEP_CHAIN, Thresholds(max_depth=8))
    policy = Policy({Period.LAST: 5}, maximum_depth=8, scope=Scope(by_hand=True), keep_forks=False)
    assert wanted(advice) in (Prune(policy), None)


def test_where_libvirt_can_not_start_so_deep_a_machine_it_is_an_error_whatever_the_threshold() -> None:
    deep = observed(marked(chain(26), BY_SCHEDULE), host=replace(HOST, libvirt_version=11_003_000))
    advice = only(deep, Kind.DEEP_CHAIN, Thresholds(max_depth=100))
    assert advice.severity is Severity.ERROR
    assert "libvirt 11.3.0" in advice.why
    assert not found(replace(deep, host=DEBIAN_12), Thresholds(max_depth=100))


def test_old_snapshots_are_told_of_by_who_took_them() -> None:
    snapshots = [
        snapshot("auto-1", days=100, annotations=BY_SCHEDULE),
        snapshot("auto-2", "auto-1", days=95, annotations=BY_SCHEDULE),
        snapshot("by-hand", "auto-2", days=92),
        snapshot("safety", "by-hand", days=91, annotations=Annotations(safety=True)),
        snapshot("pinned", "safety", days=91, annotations=PINNED),
        snapshot("good", "pinned", days=91, annotations=Annotations(known_good=Mark())),
        snapshot("young", "good", days=89),
    ]
    first, second = (each for each in found(observed(snapshots)) if each.kind is Kind.OLD_SNAPSHOTS)
    assert (first.severity, wanted(first)) == (Severity.WARNING, Delete(("auto-1", "auto-2", "safety")))
    assert (second.severity, wanted(second)) == (Severity.NOTE, Delete(("by-hand",)))
    assert "“by-hand”" in second.text
    assert not found(observed(snapshots), Thresholds(max_age=Duration(days=101)))


def test_what_a_policy_says_is_cured_by_that() -> None:
    auto = [snapshot("a1", days=120, annotations=BY_SCHEDULE), snapshot("a2", "a1", days=99, annotations=BY_SCHEDULE)]
    young = snapshot("a3", "a2", days=2, annotations=BY_SCHEDULE)
    policy = Policy({Period.LAST: 1}, minimum_age=Duration(days=90))
    assert wanted(only(observed([*auto, young]), Kind.OLD_SNAPSHOTS)) == Prune(policy)
    advice = only(observed(auto), Kind.OLD_SNAPSHOTS)
    assert wanted(advice) == Prune(policy)
    assert "“a2”" not in advice.text, "the last one that somebody can rely on is not complained of"
    spoilt = replace(auto[1], annotations=replace(BY_SCHEDULE, doubtful=True))
    told = {each.kind for each in found(observed([auto[0], spoilt]))}
    assert Kind.OLD_SNAPSHOTS not in told, "which may be an older one; and what is doubtful is told of as that"
    assert Kind.DOUBTFUL in told


def test_a_snapshot_whose_layer_is_missing_can_be_forgotten() -> None:
    seen = observed(chain(3))
    gone = Image("/vm/s1.qcow2", "qcow2", unknown("gone"), problem="gone", is_missing=True)
    off_the_line = replace(seen.layers, images=MappingProxyType({**seen.layers.images, gone.path: gone}))
    advice = only(observed(chain(3), layers=off_the_line), Kind.MISSING_IMAGE)
    assert advice.severity is Severity.ERROR
    assert "from a backup" in advice.remedy
    broken = replace(off_the_line, chains=(DiskChain("vda", ("/vm/s3.qcow2",), "no such file: /vm/s1.qcow2"),))
    advice = only(observed(chain(3), layers=broken), Kind.BROKEN_CHAIN)
    assert advice.cure is None
    assert "from a backup" in advice.remedy


def internal(*names: str, entries: Iterable[str]) -> Observed:
    """A machine whose snapshots are said to be in its image, which holds these."""
    snapshots = [snapshot(name, before, internal=True) for name, before in zip(names, [None, *names], strict=False)]
    table = tuple(InternalSnapshot(str(number), entry, 0, 0) for number, entry in enumerate(entries))
    image = Image("/vm/disk.qcow2", "qcow2", exact(MIB), internal_snapshots=table)
    layers = DomainLayers((DiskChain("vda", (image.path,)),), MappingProxyType({image.path: image}))
    return observed(snapshots, layers=layers)


def test_a_snapshot_that_its_image_lacks_is_stale() -> None:
    advice = only(internal("a", "b", entries=["a"]), Kind.STALE_SNAPSHOT)
    assert "“b”" in advice.text
    assert wanted(advice) == Delete(("b",))
    assert not [each for each in found(internal("a", entries=["a"])) if each.kind is Kind.STALE_SNAPSHOT]


def test_what_libvirt_does_not_know_is_told_of_and_never_deleted() -> None:
    seen = internal("a", entries=["a", "by-hand"])
    advice = only(seen, Kind.ORPHAN)
    assert (advice.severity, advice.cure) == (Severity.NOTE, None)
    assert "“by-hand”" in advice.text
    others = side_by_side([seen, replace(seen, domain=replace(seen.domain, uuid="other", name="other"))])
    assert not [each for each in found(others[0]) if each.kind is Kind.ORPHAN], "it may be the other machine's"


def test_what_was_interrupted_can_be_finished() -> None:
    builder = a_machine().external("a").external("b")
    operation = interrupted(builder, Delete(("a",)))
    situation = builder.build()
    costs = domain_costs(situation.tree, situation.layers)
    seen = Observed(situation.host, situation.domain, situation.tree, situation.layers, costs, unfinished=operation)
    advice = only(seen, Kind.INTERRUPTED)
    assert (advice.severity, wanted(advice)) == (Severity.ERROR, Recover())


def test_figures_that_are_not_known_are_told_of_once_nothing_worse_is() -> None:
    plain = layers_for(SnapshotTree.build(chain(2), "s2"))
    seen = observed(chain(2), layers=plain)
    assert only(seen, Kind.UNKNOWN_COST).severity is Severity.NOTE
    still_to_be_looked_at = check_machine(seen, Thresholds(), NOW, is_analysed=False)
    assert not still_to_be_looked_at.advice
    assert not found(replace(seen, host=replace(HOST, driver="TEST")))


marks = st.sampled_from([Annotations(), BY_SCHEDULE, PINNED, Annotations(known_good=Mark()), Annotations(safety=True)])


@st.composite
def machines(draw: st.DrawFn) -> Observed:
    """Trees of external snapshots of any age, with any marks."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 14)))]
    snapshots = [
        snapshot(
            name,
            None if number == 0 else names[number - 1 if draw(st.integers(0, 4)) else draw(st.integers(0, number - 1))],
            days=draw(st.integers(0, 200)),
            annotations=draw(marks),
        )
        for number, name in enumerate(names)
    ]
    return observed(snapshots)


@given(machines(), st.integers(1, 9), st.integers(1, 150))
def test_whatever_is_cured_is_found_no_more(seen: Observed, depth: int, days: int) -> None:
    thresholds = Thresholds(max_depth=depth, max_age=Duration(days=days))
    for advice in found(seen, thresholds):
        match wanted(advice):
            case Prune(policy=policy) if advice.kind is Kind.DEEP_CHAIN:
                pruning = prune(policy, LayerTree(seen.tree, seen.layers), NOW, zone=dt.UTC)
                assert pruning.goes
                assert pruning.depth_after <= depth
                goes = pruning.goes
            case Prune(policy=policy):
                goes = prune(policy, LayerTree(seen.tree, seen.layers), NOW, zone=dt.UTC).goes
            case Delete(snapshots=goes):
                pass
            case _:
                continue
        for name in goes:
            assert seen.tree[name].annotations.pinned is None
            assert seen.tree[name].annotations.known_good is None
        if advice.kind is Kind.OLD_SNAPSHOTS:
            assert all(seen.tree[name].created <= NOW - days * DAY for name in goes)


@given(machines(), st.integers(1, 150))
def test_every_old_snapshot_is_told_of_that_nobody_wants_to_keep(seen: Observed, days: int) -> None:
    told = [each for each in found(seen, Thresholds(max_age=Duration(days=days))) if each.kind is Kind.OLD_SNAPSHOTS]
    of_no_use = Facts(glance(seen.host, seen.domain, seen.tree, seen.layers)).of_no_use
    good = [each for each in seen.tree if each.name not in of_no_use]
    newest = max(good, key=lambda each: each.created, default=None)
    unwanted = [
        each
        for each in good
        if each.created <= NOW - days * DAY
        and each.annotations.pinned is None
        and each.annotations.known_good is None
        and len(seen.tree.children(each.name)) < 2
        and each is not newest
    ]
    assert bool(told) == bool(unwanted)


# A host


def writing(name: str, mib_a_day: int, directory: str = "/vm", marks: Annotations = BY_SCHEDULE) -> Checked:
    """A machine with ten snapshots, a day each, between which its guest wrote so much."""
    line = marked(chain(10), marks)
    tree = SnapshotTree.build(line, line[-1].name)
    sizes = {each.name: exact(mib_a_day * MIB) for each in line} | {"disk": exact(MIB)}
    layers = analysed(layers_for(tree, sizes))
    moved = replace(layers.chains[0], layers=(f"{directory}/now.qcow2", *layers.chains[0].layers[1:]))
    seen = observed(line, layers=replace(layers, chains=(moved,)), name=name)
    return check_machine(seen, Thresholds(), NOW, zone=dt.UTC)


def on_host(*machines: Checked, free: int | None = None) -> tuple[Advice, ...]:
    """What is said of the host; `free` is in MiB, in /vm."""
    spaces = () if free is None else (Space(("/vm",), free * MIB),)
    return check_host(machines, Surroundings(spaces), Thresholds(), NOW).host


def test_the_fastest_machines_are_told_of() -> None:
    every = [writing(f"vm{mib}", mib) for mib in (10, 500, 300, 400, 200)]
    advice = check_host(every, Surroundings(), Thresholds(max_growth=100 * MIB), NOW)
    fast = {uuid for uuid, found in advice.machines.items() if any(each.kind is Kind.FAST_GROWTH for each in found)}
    assert fast == {"vm500", "vm400", "vm300"}
    assert all(each.severity is Severity.NOTE for each in advice.machines["vm500"])
    assert advice.machines["vm10"] == ()
    assert check_host(every, Surroundings(), Thresholds(max_growth=400 * MIB), NOW).machines["vm400"] == ()


@pytest.mark.parametrize(
    ("free", "says"),
    [(2_000, None), (1_399, "in 13 days"), (300, "in 3 days"), (299, "in 2 days"), (150, "in a day"), (0, "in less")],
)
def test_space_that_runs_out_is_told_of_in_time(free: int, says: str | None) -> None:
    found = on_host(writing("a", 60), writing("b", 40), free=free)
    if says is None:
        assert not found
        return
    (advice,) = found
    assert says in advice.text
    assert "a 60.0 MiB, b 40.0 MiB" in advice.text
    assert advice.severity is (Severity.WARNING if free >= 300 else Severity.ERROR)


def test_only_what_is_written_there_counts() -> None:
    assert on_host(writing("a", 60), writing("b", 40, "/elsewhere"), free=900) == ()
    assert on_host(writing("a", 60), writing("b", 40), free=900)
    assert on_host(free=0) == (), "nobody writes"


def test_pruning_makes_room_if_it_makes_enough() -> None:
    (advice,) = on_host(writing("a", 60), free=60 * 14 - 1)
    assert advice.cure is not None
    assert advice.cure.domain == "a"
    policy = Policy({Period.LAST: 5}, free_at_least=MIB)
    assert advice.cure.intention == Prune(policy)
    (advice,) = on_host(writing("a", 600), free=10)
    assert wanted(advice) == Prune(Policy({Period.LAST: 5}))
    assert "not all it takes" in advice.remedy
    (advice,) = on_host(writing("a", 60, marks=PINNED), free=10)
    assert advice.cure is None
    assert "more room" in advice.remedy


def test_a_layer_that_nobody_refers_to_is_told_of_and_no_more() -> None:
    around = Surroundings(strays=(Stray("/vm/left.qcow2", 3 * MIB),))
    (advice,) = check_host([], around, Thresholds(), NOW).host
    assert (advice.kind, advice.severity, advice.cure) == (Kind.ORPHAN, Severity.NOTE, None)
    assert "/vm/left.qcow2" in advice.text


def test_the_worst_comes_first() -> None:
    seen = observed([*marked(chain(12), BY_SCHEDULE), snapshot("old", "s12", days=300, problem="bad XML")])
    severities = [each.severity for each in found(seen, Thresholds(max_depth=3))]
    assert severities == sorted(severities, reverse=True)
