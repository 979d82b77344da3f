"""Whatever happened to a machine before: a plan that no rule refuses loses nothing but what it says.

Hypothesis makes up histories on a libvirt that checks no more than the real one (`pretend_libvirt`), including what
other people's hands and tools do; SnapTree's planner meets them, and its plans are carried out there.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from snaptree.model.estate import DiskSnapshot, DomainState, MemorySnapshot
from snaptree.plans.aftermath import after
from snaptree.plans.facts import Facts
from snaptree.plans.intention import Capture, Delete, Intention, Revert, Take, TakeBack
from snaptree.plans.plan import DeleteSnapshot, MergeLayers, Plan, RecordLayers, RevertToSnapshot, StateAfter
from snaptree.plans.planner import make_plan
from snaptree.plans.take import take_step
from tests.plans.pretend_libvirt import BLOCKS, CrashError, PretendLibvirt, RefusedError
from tests.plans.situations import DEBIAN_12, DEBIAN_13

EXAMPLES = 3 * settings().max_examples
"""More than usual: they are small, and this is the property that matters most."""


# Histories: what libvirt let people do, and what they did behind its back


def _take(host: PretendLibvirt, choose: random.Random) -> None:
    name = f"s{host.token}"
    capture = choose.choice([Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
    excluded = ("vdb",) if len(host.disks) > 1 and choose.random() < 0.2 else ()
    step = take_step(Take(name=name, capture=capture, excluded_disks=excluded), host.situation())
    host.run(step)
    host.snapshots[name].records_chain = choose.random() < 0.5


def _revert(host: PretendLibvirt, choose: random.Random) -> None:
    host.run(RevertToSnapshot(choose.choice(list(host.snapshots)), StateAfter.AS_CAPTURED, None))


def _delete(host: PretendLibvirt, choose: random.Random) -> None:
    host.run(DeleteSnapshot(choose.choice(list(host.snapshots)), (), merges=True))


def _start_or_stop(host: PretendLibvirt, _choose: random.Random) -> None:
    host.state = DomainState.OFF if host.state.is_active else DomainState.PAUSED


def _clone(host: PretendLibvirt, choose: random.Random) -> None:
    base = choose.choice(sorted(host.files))
    if base not in host.clones.values():
        host.clone(f"clone-{host.token}", base)


def _redefine_current(host: PretendLibvirt, choose: random.Random) -> None:
    """REDEFINE with CURRENT: forgets the overlays of the last revert."""
    if host.current is not None:
        host.snapshots[host.current].revert_overlays = {}
    host.current = choose.choice(list(host.snapshots))


def _lose_current(host: PretendLibvirt, _choose: random.Random) -> None:
    host.current = None


def _commit_by_hand(host: PretendLibvirt, choose: random.Random) -> None:
    target = choose.choice(list(host.disks))
    chain = host.chain(host.disks[target])
    if len(chain) > 1:
        host.commit_by_hand(target, choose.randrange(len(chain) - 1), keep=choose.random() < 0.5)


def _pull_by_hand(host: PretendLibvirt, choose: random.Random) -> None:
    """Not where it takes the base away from an internal snapshot: of that, nothing tells afterwards."""
    target = choose.choice(list(host.disks))
    if not host.files[host.disks[target]].inside:
        host.pull_by_hand(target)


def _snapshot_by_hand(host: PretendLibvirt, choose: random.Random) -> None:
    """qemu-img snapshot -c, which libvirt never hears of."""
    file = host.files[choose.choice(sorted(host.files))]
    if file.format == "qcow2":
        file.inside[f"by-hand-{host.token}"] = (str(file.next_id), file.own)
        file.next_id += 1


def _overlay_by_hand(host: PretendLibvirt, choose: random.Random) -> None:
    """qemu-img create -b: an overlay that no machine mentions."""
    host.overlay_by_hand(choose.choice(sorted(host.files)))


def _remove_file(host: PretendLibvirt, choose: random.Random) -> None:
    host.files.pop(choose.choice(sorted(host.files)))


def _fork(host: PretendLibvirt, choose: random.Random) -> None:
    """SnapTree reverted while libvirt was that of Debian 12."""
    name = choose.choice(list(host.snapshots))
    plan = make_plan(Revert(name, take_safety_snapshot=choose.random() < 0.5), host.situation(DEBIAN_12))
    if plan.is_refused:
        raise RefusedError(plan.refusals[0].reason)
    _carry_out(host, plan)


_USUAL = (_take, _take, _take, _revert, _revert, _delete, _start_or_stop)
_UNUSUAL = (
    _fork,
    _fork,
    _clone,
    _redefine_current,
    _lose_current,
    _commit_by_hand,
    _pull_by_hand,
    _snapshot_by_hand,
    _overlay_by_hand,
    _remove_file,
)


def _history(choose: random.Random) -> tuple[PretendLibvirt, frozenset[str]]:
    """A machine with a past, and the snapshots that were whole until the last thing that happened.

    Damage done earlier may have left no trace: a layer that was written to and then left looks like any other.
    """
    host = PretendLibvirt(choose.choice([1, 1, 2]), choose.choice(["qcow2", "qcow2", "qcow2", "raw"]))
    strange = choose.random() < 0.6
    whole: frozenset[str] = frozenset()
    for _ in range(choose.randrange(1, 16)):
        host.write(choose.randrange(BLOCKS), choose.choice(list(host.disks)))
        happening: Callable[[PretendLibvirt, random.Random], None]
        if not host.snapshots:
            happening = _take
        elif strange and choose.random() < 0.2:
            happening = choose.choice(_UNUSUAL)
        else:
            happening = choose.choice(_USUAL)
        trial = host.copy()
        try:
            happening(trial, choose)
        except (RefusedError, CrashError):
            continue
        if all(path in trial.files for path in trial.disks.values()):
            whole = frozenset(name for name in host.snapshots if host.is_intact(name))
            host = trial
    host.write(choose.randrange(BLOCKS))
    return host, whole


def _intention(
    host: PretendLibvirt, choose: random.Random, *, new_name: str = "new", leaves_disks_out: bool = True
) -> Intention:
    names = list(host.snapshots)
    kind = choose.choice(["take", "revert", "revert", "delete", "delete", "subtree"])
    if kind == "take" or not names:
        excluded = ("vdb",) if len(host.disks) > 1 and leaves_disks_out and choose.random() < 0.2 else ()
        return Take(name=new_name, excluded_disks=excluded, capture=choose.choice(list(Capture)))
    if kind == "revert":
        return Revert(choose.choice(names), take_safety_snapshot=choose.random() < 0.7)
    if kind == "delete":
        chosen = tuple(choose.sample(names, choose.randrange(1, min(4, len(names)) + 1)))
        return Delete(chosen, by_own_jobs=choose.random() < 0.3)
    return Delete((choose.choice(names),), subtree=True, by_own_jobs=choose.random() < 0.3)


# What must hold


def _carry_out(host: PretendLibvirt, plan: Plan) -> None:
    """Run a plan. libvirt must neither refuse nor crash: the rules know what it can't do."""
    for step in plan.steps:
        host.run(step)


class _Before:
    """What was whole before a plan."""

    def __init__(self, host: PretendLibvirt) -> None:
        self.intact = {name for name in host.snapshots if host.is_intact(name)}
        self.damaged = {
            name: set(host.snapshots[name].how) for name in Facts(host.situation()).written_to_since - self.intact
        }
        self.now = host.now()
        self.strangers = {
            path: host.visible(path)
            for path in host.files
            if path in host.clones.values() or path.startswith("/images/by-hand")
        }
        self.inside = {
            (path, name) for path, file in host.files.items() for name in file.inside if name.startswith("by-hand")
        }

    def check(self, host: PretendLibvirt, *, deleted: frozenset[str] = frozenset()) -> None:
        for name in self.intact - deleted:
            assert host.is_intact(name), f"{name} lost its content"
        told = Facts(host.situation()).written_to_since
        told |= {name for name, held in host.snapshots.items() if held.doubtful}
        for name, targets in self.damaged.items():
            # Unless libvirt has lost track of a disk: it owns up to what the last revert made, and to no other.
            if name in host.snapshots and targets == set(host.snapshots[name].how):
                assert name in told, f"nothing tells any more that {name} is doubtful"
        for path, content in self.strangers.items():
            assert host.visible(path) == content, f"{path} changed under another machine"
        for path, name in self.inside:
            assert path in host.files, f"{path} was removed with {name} inside"
            assert name in host.files[path].inside, f"{name} inside {path} was lost"


@pytest.mark.parametrize("version", [DEBIAN_12, DEBIAN_13])
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**48))
@example(123805)  # a pull makes a fork of what is merged next; and libvirt's record of a branch is out of date then
@example(93896374143723)  # libvirt merged down into a layer that another branch stands on
def test_a_plan_that_is_not_refused_loses_nothing(version: int, seed: int) -> None:
    choose = random.Random(seed)
    host, whole_until_lately = _history(choose)
    intention = _intention(host, choose)
    if version == DEBIAN_12 and not isinstance(intention, Revert):
        return  # the pretended libvirt is a later one, whose deletes are others
    situation = host.situation(version)
    plan = make_plan(intention, situation)
    event(f"{plan.action.value}: {'refused ' + plan.refusals[0].rule if plan.is_refused else 'planned'}")
    if plan.is_refused:
        assert not plan.steps
        return
    before = _Before(host)
    _carry_out(host, plan)
    deleted = {step.name for step in plan.steps if isinstance(step, DeleteSnapshot)}
    deleted |= {name for step in plan.steps if isinstance(step, RecordLayers) for name in step.forgotten}
    event("merged by ourselves" if any(isinstance(step, MergeLayers) for step in plan.steps) else "by libvirt")
    before.check(host, deleted=frozenset(deleted))
    assert not deleted & set(host.snapshots)
    match intention:
        case Revert(snapshot):
            held = host.snapshots[snapshot]
            assert host.current == snapshot
            if snapshot in before.intact:
                now = host.now()
                for target, how in held.how.items():
                    if how is not DiskSnapshot.NO:
                        assert now[target] == held.content[target], "the revert brought back something else"
            elif snapshot in whole_until_lately:
                pytest.fail("a revert to a snapshot whose content is gone was planned")
        case _:
            assert host.now() == before.now, "the running state changed"
    _check_undo(host, plan, before, choose, version)


def _check_undo(host: PretendLibvirt, plan: Plan, before: _Before, choose: random.Random, version: int) -> None:
    if plan.undo is None:
        return
    if plan.undo.revert_to is None:
        # The guest goes on, and that is kept.
        host.write(choose.randrange(BLOCKS))
        before = _Before(host)
    expected = before.now
    back = make_plan(TakeBack(plan.undo), host.situation(version))
    assert not back.is_refused, f"an undo was offered and then refused: {back.refusals[0].reason}"
    _carry_out(host, back)
    before.check(host, deleted=frozenset(plan.undo.delete))
    assert host.now() == expected
    event("undone")
    if not back.warnings or all(warning.rule != "undo-keeps-snapshot" for warning in back.warnings):
        assert not set(plan.undo.delete) & set(host.snapshots)


LOOKS_BROKEN = {
    "content-changed",
    "current-does-not-own-disks",
    "delete-with-wrong-current",
    "layer-missing",
    "merge-not-as-recorded",
    "not-in-image",
}


@settings(max_examples=EXAMPLES // 3)
@given(seed=st.integers(0, 2**48))
def test_a_machine_that_only_plans_changed_never_looks_broken(seed: int) -> None:
    """Disks that snapshots leave out are set aside: libvirt itself loses track of what a revert made of them."""
    choose = random.Random(seed)
    host = PretendLibvirt(choose.choice([1, 2]), choose.choice(["qcow2", "raw"]))
    for number in range(15):
        host.clock += 1
        host.write(choose.randrange(BLOCKS))
        if choose.random() < 0.3:
            _start_or_stop(host, choose)
        intention = _intention(host, choose, new_name=f"s{number}", leaves_disks_out=False)
        plan = make_plan(intention, host.situation())
        assert not {refusal.rule for refusal in plan.refusals} & LOOKS_BROKEN, plan.refusals
        _carry_out(host, plan)
        for snapshot in host.snapshots.values():
            snapshot.records_chain = snapshot.records_chain or choose.random() < 0.5


@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**48))
def test_the_planner_foresees_what_libvirt_does(seed: int) -> None:
    """The situation simulated after each step is the one read afterwards, in all that rules look at."""
    choose = random.Random(seed)
    host, _ = _history(choose)
    plan = make_plan(_intention(host, choose), host.situation())
    situation = host.situation()
    for step in plan.steps:
        situation = after(situation, step)
        host.run(step)
        found = host.situation()
        assert situation.tree.current == found.tree.current
        assert dict(situation.tree.parents) == dict(found.tree.parents)
        for name in found.tree.snapshots:
            foreseen, real = situation.tree[name], found.tree[name]
            assert [(disk.target, disk.how, disk.frozen) for disk in foreseen.disks] == [
                (disk.target, disk.how, disk.frozen) for disk in real.disks
            ]
            assert len(foreseen.revert_overlays) == len(real.revert_overlays)
            assert (foreseen.memory is MemorySnapshot.NO) == (real.memory is MemorySnapshot.NO)
        assert situation.domain.state == found.domain.state
        if not (isinstance(step, MergeLayers) and not step.is_live):  # what is off stands on them once that is recorded
            assert [len(chain.layers) for chain in situation.layers.chains] == [
                len(chain.layers) for chain in found.layers.chains
            ]
        assert len(situation.existing_files) == len(found.existing_files)
