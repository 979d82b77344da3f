"""Whatever is done to a real machine, by SnapTree or behind its back: nothing is lost, nothing left lying about.

Hypothesis makes up histories, and shrinks those that fail to few steps, which it prints as code: paste them into a
test like `test_histories_that_once_lost_something`. SNAPTREE_TEST_STEPS says how many steps to take in all.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import libvirt
import pytest
from hypothesis import Phase, currently_in_test_context, event, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snaptree.hosts.helper_machine import helpers
from snaptree.hosts.layers import analysed, live_chains
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.images.files import ImageReader
from snaptree.model.estate import DiskSnapshot
from snaptree.model.figures import Confidence
from snaptree.plans.aftermath import after
from snaptree.plans.intention import Capture, Delete, DropMemory, Intention, Revert, Take
from snaptree.plans.operation import Operation
from snaptree.plans.plan import MergeLayers, Plan, StateAfter
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from tests.kit.machines import NOW, EmbeddedHost, Machine, RealHost, remove

pytestmark = pytest.mark.qemu

STEPS = int(os.environ.get("SNAPTREE_TEST_STEPS", "200"))
STEPS_OF_ONE = 20
"""In one history: trees beyond that hardly differ in kind."""

BLOCK = 512 * 1024
CLUSTER = 64 * 1024
SAYS_WHAT_STAYS = {"layer-stays", "leftover-stays", "layer-left-behind"}
"""Rules whose warnings name files that nothing needs any more."""
SAYS_IT_MAY_FAIL = {"images-maybe-let-go"}
"""Rules that warn of a failure that does no harm."""
HAS_LET_GO = ("paused due to previous migration", "Inactive node can't be a backing child", "is read-only")
"""What QEMU says where such a rule would have spoken, had it known."""

Contents = dict[str, dict[str, str]]
picks = st.integers(0, 11)


class AnyHistory(RuleBasedStateMachine):
    """A machine, what is done to it, and what it has to hold after each step."""

    machine: Machine
    clone: Machine | None = None
    expected: Contents

    def __init__(self, host: RealHost) -> None:
        super().__init__()
        self.host = host
        self.taken = 0
        self.stays: set[str] = set()
        """Files that nothing needs, as somebody said."""

    @initialize(
        disks=st.sampled_from([("qcow2",), ("qcow2", "qcow2"), ("raw",), ("qcow2", "raw")]), running=st.booleans()
    )
    def begin(self, disks: Sequence[str], running: bool) -> None:
        self.machine = self.host.make_machine(disks=disks, running=running)
        self.targets = tuple(self.machine.active_layers())
        self.expected = self.machine.contents()

    def teardown(self) -> None:
        for machine in (self.clone, getattr(self, "machine", None)):
            if machine is not None:
                remove(machine.handle)
                shutil.rmtree(machine.directory)

    # What SnapTree does

    @rule(capture=st.sampled_from(Capture), leave_out=st.integers(0, 3))
    def take(self, capture: Capture, leave_out: int) -> None:
        """Every fourth time without one of the disks."""
        left_out = self.targets[-1:] if leave_out == 3 and len(self.targets) > 1 else ()
        self.carry_out(Take(self.new_name(), capture=capture, excluded_disks=left_out))

    @precondition(lambda self: self.names)
    @rule(pick=picks, safety=st.booleans(), state_after=st.sampled_from(StateAfter))
    def revert(self, pick: int, safety: bool, state_after: StateAfter) -> None:
        self.carry_out(Revert(self.name(pick), take_safety_snapshot=safety, state_after=state_after))

    @precondition(lambda self: self.names)
    @rule(chosen=st.lists(picks, min_size=1, max_size=4), own=st.booleans())
    def delete(self, chosen: list[int], own: bool) -> None:
        names = tuple(dict.fromkeys(self.name(pick) for pick in chosen))
        self.carry_out(Delete(names, by_own_jobs=own))

    @precondition(lambda self: self.names)
    @rule(pick=picks)
    def delete_subtree(self, pick: int) -> None:
        self.carry_out(Delete((self.name(pick),), subtree=True))

    @precondition(lambda self: self.names)
    @rule(pick=picks)
    def drop_memory(self, pick: int) -> None:
        """Also of one without memory, which is refused."""
        self.carry_out(DropMemory(self.name(pick)))

    @precondition(lambda self: len(self.names) > 2)
    @rule(keep=st.integers(1, 2))
    def prune(self, keep: int) -> None:
        """Delete all but the last ones."""
        self.carry_out(Delete(tuple(self.names[:-keep])))

    # What others do

    @precondition(lambda self: not self.is_paused)
    @rule(disk=picks, block=st.integers(0, 15), blocks=st.integers(1, 3), seed=st.integers(0, 250))
    def write(self, disk: int, block: int, blocks: int, seed: int) -> None:
        """Zeros now and then, which hide what is below without holding anything."""
        name = self.targets[disk % len(self.targets)]
        length = min(blocks * BLOCK, 16 * BLOCK - block * BLOCK)
        self.machine.write(seed, target=name, offset=block * BLOCK, length=length, zeros=seed % 5 == 4)
        self.expected[NOW] = self.machine.contents()[NOW]
        self.check()

    @rule(internal=st.booleans())
    def take_by_virsh(self, internal: bool) -> None:
        """Also where it must end badly: then libvirt says so."""
        name = self.new_name()
        flags = 0 if internal else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        try:
            self.machine.virsh_take(name, flags=flags)
        except libvirt.libvirtError as error:
            remark(f"virsh: {error}")
        else:
            self.expected[name] = self.held(name)
        self.check()

    @precondition(lambda self: self.leaf_for_virsh is not None)
    @rule()
    def delete_leaf_by_virsh(self) -> None:
        """What libvirt leaves behind of it is nothing that SnapTree could know of."""
        name = self.leaf_for_virsh
        assert name is not None
        try:
            self.machine.handle.snapshotLookupByName(name).delete()
        except libvirt.libvirtError as error:
            remark(f"virsh: {error}")
        else:
            del self.expected[name]
            self.stays |= self.files() - self.needed()
        self.check()

    @precondition(lambda self: self.clone is None and self.images_for_clones)
    @rule(pick=picks)
    def make_clone(self, pick: int) -> None:
        """A second machine on the layer of a snapshot."""
        paths = self.images_for_clones
        self.clone = self.host.make_machine(disks=("qcow2",), running=False, backing=Path(paths[pick % len(paths)]))
        self.clone.write(pick, offset=BLOCK, length=CLUSTER)
        self.clones_content = self.clone.contents()
        self.check()

    @rule()
    def start_or_stop(self) -> None:
        handle = self.machine.handle
        if self.machine.is_running:
            handle.destroy()
        else:
            handle.create()
        self.check()

    @precondition(lambda self: self.machine.is_running)
    @rule()
    def pause_or_resume(self) -> None:
        handle = self.machine.handle
        if self.is_paused:
            handle.resume()
        else:
            handle.suspend()
        self.check()

    # What there is

    @property
    def is_paused(self) -> bool:
        """Then no guest writes."""
        return bool(self.machine.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED)

    @property
    def names(self) -> list[str]:
        """Those of all snapshots, the oldest first."""
        return [name for name in self.expected if name != NOW]

    def name(self, pick: int) -> str:
        return self.names[pick % len(self.names)]

    def new_name(self) -> str:
        self.taken += 1
        return f"s{self.taken}"

    def held(self, name: str) -> dict[str, str]:
        """What a snapshot that was just taken holds: what its disks show now."""
        return {
            disk.target: self.expected[NOW][disk.target]
            for disk in self.machine.tree()[name].disks
            if disk.how in (DiskSnapshot.INTERNAL, DiskSnapshot.EXTERNAL)
        }

    @property
    def leaf_for_virsh(self) -> str | None:
        """The current snapshot, if it is a leaf on whose layers no clone stands: libvirt does not look for these."""
        tree = self.machine.tree()
        if tree.current is None or tree.children(tree.current) or self.clone is not None:
            return None
        return tree.current

    @property
    def images_for_clones(self) -> list[str]:
        """Layers that nobody writes to."""
        written = {str(path) for path in self.machine.active_layers().values()}
        frozen = {disk.frozen for snapshot in self.machine.tree() for disk in snapshot.disks if disk.target == "vda"}
        return sorted(path for path in frozen if path is not None and path not in written)

    def files(self) -> set[str]:
        return {str(path) for path in self.machine.directory.iterdir()}

    def on_host(self) -> dict[str, int]:
        """What each file takes, in bytes."""
        sizes = {}
        for path in self.files():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # some file systems know only then
            sizes[path] = os.fstat(descriptor).st_blocks * 512
            os.close(descriptor)
        return sizes

    def needed(self) -> set[str]:
        """Files that belong to the machine, its snapshots, or the clone."""
        found: set[str] = set()
        for snapshot in self.machine.tree():
            must_be = {disk.frozen for disk in snapshot.disks if disk.frozen} | {snapshot.memory_file or ""} - {""}
            assert all(Path(path).exists() for path in must_be), f"{snapshot.name} lacks one of {must_be}"
            # libvirt removes an overlay that it leaves, and goes on naming it.
            overlays = {disk.overlay for disk in snapshot.disks if disk.overlay}
            overlays |= {path for _, path in snapshot.revert_overlays}
            found |= must_be | {path for path in overlays if Path(path).exists()}
        for machine in filter(None, (self.machine, self.clone)):
            for chain in live_chains(machine.connection, machine.handle):
                assert not chain.problem, chain.problem
                found |= set(chain.layers)
        reader = ImageReader()
        for path in [path for path in found if not path.endswith(".raw")]:
            found |= {image.path for image in reader.read_chain(path, "qcow2").images}
        return found

    # Doing it

    def situation(self) -> Situation:
        situation = read_situation(self.machine.connection, self.machine.uuid)
        return dataclasses.replace(situation, layers=analysed(self.machine.connection, situation.layers))

    def carry_out(self, intention: Intention) -> None:
        """Plan and run, and compare what came of it with what the plan said."""
        situation = self.situation()
        plan = make_plan(intention, situation)
        if plan.is_refused:
            remark(f"refused: {plan.refusals[0].rule}")
            tell(f"{plan.action.value}: refused by {plan.refusals[0].rule}")
            self.check()
            return
        before = self.on_host() if isinstance(intention, Delete) else dict.fromkeys(self.files(), 0)
        running = self.machine.is_running
        operation = run_plan(self.machine.connection, plan)
        may_fail = SAYS_IT_MAY_FAIL & {said.rule for said in plan.warnings} or self.has_let_go(operation)
        if operation.error is not None and may_fail:
            remark(f"as was warned: {operation.error}")
            left = self.machine.tree()
            for name in [name for name in plan.snapshots if name not in left]:
                self.expected.pop(name, None)
            if operation.steps_done:
                self.stays |= self.files() - self.needed()
            self.check()
            return
        assert operation.error is None, f"{operation.error} {operation.error.details}"
        own = any(isinstance(step, MergeLayers) for step in plan.steps)
        tell(f"{plan.action.value}: {'merged by ourselves' if own else 'done'}")
        self.stays |= {
            path for path in before for said in plan.warnings if said.rule in SAYS_WHAT_STAYS and path in said.reason
        }
        self.check_foreseen(situation, plan)
        tree = self.machine.tree()
        for name in [name for name in self.expected if name not in tree and name != NOW]:
            assert isinstance(intention, Delete), f"{name} is gone"
            assert name in plan.snapshots
            del self.expected[name]
        for name in [name for name in tree.snapshots if name not in self.expected]:
            self.expected[name] = self.held(name)
        if isinstance(intention, Delete):
            assert not set(plan.snapshots) & set(tree.snapshots)
            if not running:
                self.check_forecast(plan, before)
        if isinstance(intention, Revert):
            # What the snapshot left out is not rolled back, or to what the layer of then holds now: the plan says so.
            self.expected[NOW] = self.machine.contents()[NOW] | self.expected[intention.snapshot]
        self.check()

    def has_let_go(self, operation: Operation) -> bool:
        """Whether QEMU is paused since it saved its memory: nothing says so once that snapshot is gone, or has none."""
        return self.is_paused and any(says in str(operation.error) for says in HAS_LET_GO)

    def check_foreseen(self, situation: Situation, plan: Plan) -> None:
        for step in plan.steps:
            situation = after(situation, step)
        found = read_situation(self.machine.connection, self.machine.uuid)
        assert situation.tree.current == found.tree.current
        assert dict(situation.tree.parents) == dict(found.tree.parents)
        for name in found.tree.snapshots:
            assert _disks(situation, name) == _disks(found, name), f"{name} is not as foreseen"
        assert situation.domain.state == found.domain.state
        assert [len(chain.layers) for chain in situation.layers.chains] == [
            len(chain.layers) for chain in found.layers.chains
        ]
        assert situation.existing_files - situation.unnamed_layers <= found.existing_files
        assert len(situation.existing_files) == len(found.existing_files)

    def check_forecast(self, plan: Plan, before: Mapping[str, int]) -> None:
        now = self.on_host()
        frees, copies = plan.forecast.frees, plan.forecast.copies
        slack = CLUSTER * len(before)
        back = sum(before.values()) - sum(now.values())
        if frees.bytes is not None and frees.confidence is Confidence.EXACT:
            assert abs(back - frees.bytes) <= slack, f"{back} came back, {frees} was said"
        elif frees.bytes is not None:
            assert back <= frees.bytes + slack, f"{back} came back, {frees} was said"
        if copies.bytes is not None:
            grown = sum(max(0, size - before.get(path, 0)) for path, size in now.items())
            assert grown <= copies.bytes + slack, f"{grown} were copied, {copies} was said"

    # What always holds

    def check(self) -> None:
        """Everything holds what it held, libvirt lists what we list, and no file is nobody's."""
        found = self.machine.contents()
        assert set(found) == set(self.expected)
        for name, held in self.expected.items():
            for target, content in held.items():
                assert found[name].get(target) == content, f"{name} lost what {target} held"
            held |= found[name]
        if self.clone is not None:
            assert self.clone.contents() == self.clones_content, "the clone was changed"
        self.machine.check_images()
        self.check_listed()
        orphans = self.files() - self.needed() - self.stays
        assert not orphans, f"nobody needs {sorted(orphans)}"
        assert helpers(self.machine.connection) == ()

    def check_listed(self) -> None:
        tree, handle = self.machine.tree(), self.machine.handle
        roots = {root.getName() for root in handle.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ROOTS)}
        listed = {
            snapshot.getName(): None if snapshot.getName() in roots else snapshot.getParent().getName()
            for snapshot in handle.listAllSnapshots()
        }
        assert listed == dict(tree.parents)
        current = handle.snapshotCurrent().getName() if handle.hasCurrentSnapshot() else None
        assert current == tree.current


def remark(what: str) -> None:
    """Let it stand in the printed history."""
    if currently_in_test_context():
        note(f"# {what}")


def tell(what: str) -> None:
    """Let it be counted, for --hypothesis-show-statistics."""
    if currently_in_test_context():
        event(what)


def _disks(situation: Situation, name: str) -> list[object]:
    """What rules look at. What libvirt names itself can't be foreseen."""
    return [
        (disk.target, disk.how, None if disk.frozen in situation.unnamed_layers else disk.frozen)
        for disk in situation.tree[name].disks
    ]


def run(host: RealHost, steps: int) -> None:
    """Let Hypothesis make up histories of so many steps in all."""
    run_state_machine_as_test(
        lambda: AnyHistory(host),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=max(1, steps // STEPS_OF_ONE),
            stateful_step_count=STEPS_OF_ONE,
            phases=[Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes longer than to look
        ),
    )


def test_nothing_is_lost_whatever_is_done(host: EmbeddedHost) -> None:
    run(host, STEPS)


# Histories that once ended badly, as they were printed


@pytest.fixture
def state(host: EmbeddedHost) -> Iterator[AnyHistory]:
    state = AnyHistory(host)
    yield state
    state.teardown()


def test_internal_snapshots_go_with_the_layer_that_is_merged(state: AnyHistory) -> None:
    state.begin(disks=("qcow2", "raw"), running=False)
    state.take(capture=Capture.DISKS, leave_out=2)
    state.write(block=7, blocks=1, disk=9, seed=83)
    state.take_by_virsh(internal=True)
    state.take(capture=Capture.DISKS, leave_out=2)
    state.delete_subtree(pick=0)
    assert state.names == []


def test_a_leaf_goes_that_its_parent_names_as_its_overlay(state: AnyHistory) -> None:
    state.begin(disks=("qcow2",), running=False)
    for _ in range(3):
        state.take(capture=Capture.DISKS, leave_out=0)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.delete(chosen=[2], own=True)
    assert state.names == ["s1", "s2"]
    state.revert(pick=1, safety=True, state_after=StateAfter.AS_CAPTURED)


def test_a_layer_that_stands_on_nothing_is_left_and_named(state: AnyHistory) -> None:
    """The only one since its snapshot was deleted: what a revert leaves of it may be all that there is."""
    state.begin(disks=("qcow2",), running=False)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.revert(pick=0, safety=True, state_after=StateAfter.AS_CAPTURED)
    state.delete(chosen=[0], own=True)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)


@pytest.mark.parametrize("chosen", [[1], [0, 1]])
def test_an_overlay_goes_with_the_last_internal_snapshot_in_it(state: AnyHistory, chosen: list[int]) -> None:
    state.begin(disks=("qcow2",), running=False)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.write(block=11, blocks=3, disk=10, seed=133)
    state.take_by_virsh(internal=True)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.delete(chosen=chosen, own=False)
    assert len(state.names) == 2 - len(chosen)


def test_a_layer_stays_that_a_snapshot_goes_back_to_though_it_left_the_disk_out(state: AnyHistory) -> None:
    state.begin(disks=("qcow2", "qcow2"), running=False)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.take(capture=Capture.DISKS, leave_out=3)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.delete(chosen=[2], own=True)
    state.revert(pick=1, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.start_or_stop()


def test_internal_snapshots_are_deleted_before_anything_is_pulled_into_their_images(state: AnyHistory) -> None:
    state.begin(disks=("qcow2", "qcow2"), running=False)
    state.take_by_virsh(internal=False)
    state.make_clone(pick=3)
    state.take_by_virsh(internal=True)
    state.take(capture=Capture.DISKS, leave_out=3)
    state.take_by_virsh(internal=False)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.prune(keep=1)
    assert state.names == ["s4"]


def test_what_an_overlay_held_that_the_machine_left_is_merged_nowhere(state: AnyHistory) -> None:
    state.begin(disks=("raw",), running=False)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.take(capture=Capture.DISKS, leave_out=0)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.write(block=2, blocks=2, disk=0, seed=2)
    state.take_by_virsh(internal=True)
    state.revert(pick=0, safety=False, state_after=StateAfter.AS_CAPTURED)
    state.delete(chosen=[0, 2], own=True)
    assert state.names == ["s2"]
