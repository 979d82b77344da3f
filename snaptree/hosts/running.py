"""Carrying out a plan: each step checks once more what the plan relied on, acts, and verifies what came of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt

from snaptree.hosts import reverting
from snaptree.hosts.connection import Connection
from snaptree.hosts.describing import check_unmarked, describe, rename
from snaptree.hosts.errors import explain, explained
from snaptree.hosts.forgetting import forget_memory
from snaptree.hosts.freezing import CannotFreezeError, Frozen, freeze, thaw_surely
from snaptree.hosts.journal import Journal, this_user
from snaptree.hosts.layers import Images, live_chains
from snaptree.hosts.leftovers import remove_leftover
from snaptree.hosts.looking import copy_out, make_look, remove_look, start_look
from snaptree.hosts.measuring import TakeMeter
from snaptree.hosts.merging import Bandwidth, MergeProgress, merge_layers, merge_progress, unlimited
from snaptree.hosts.overall import Overall
from snaptree.hosts.rates import Rate
from snaptree.hosts.reading import current_name, never, read_domain
from snaptree.hosts.records import record_layers
from snaptree.hosts.recovery import block_job, files_made, find_next_step, find_step, is_orphaned, merging_disks
from snaptree.hosts.screens import keep_picture, picture_of
from snaptree.hosts.snapshot_xml import read_snapshot, take_xml, with_annotations
from snaptree.hosts.taking import record_take
from snaptree.hosts.thumbnails import Thumbnails
from snaptree.model.errors import (
    CancelledError,
    ChangedMeanwhileError,
    ConnectionLostError,
    SnapTreeError,
    VanishedError,
)
from snaptree.model.estate import Annotations, Consistency, DiskSnapshot, DomainState, Impact, MemorySnapshot
from snaptree.plans.operation import Operation, OperationState, Progress, StepFound, StepState, half_deleted
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
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
)
from snaptree.plans.plan_words import describe_step, steps_in_brief
from snaptree.plans.recovery import is_torn
from snaptree.plans.rule import QEMU
from snaptree.plans.stopping import is_whole
from snaptree.plans.wording import plain, shell_word, snapshots_named

if TYPE_CHECKING:
    from snaptree.images.copy_map import CopyMap

POLL_SECONDS = 0.1

OnProgress = Callable[[Operation], None]


def run_plan(
    connection: Connection,
    plan: Plan,
    *,
    journal: Journal | None = None,
    undoes: int | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Callable[[], bool] = never,
    bandwidth: Bandwidth = unlimited,
    was_begun: bool = False,
) -> Operation:
    """Run a plan in the calling thread and return how it ended; `state` and `error` say what went wrong.

    `undoes` is the journal's number of the operation that it takes back. A plan that recovers an interrupted one asks
    of its first step how far that is already, and goes on from there.

    `on_progress` gets an Operation at each step and about ten times a second while one takes long.
    `cancelled` is asked between steps, and within those that QEMU lets us stop. `bandwidth` says how fast merges of
    our own may copy, in bytes per second, and is asked anew all the time. `was_begun` says that an earlier run was cut
    short in the first step: see `merge_layers`.
    Raises SnapTreeError only if the plan is refused or the journal can't be written: nothing has happened then.
    """
    run = begin_run(
        connection,
        plan,
        journal=journal,
        undoes=undoes,
        on_progress=on_progress,
        cancelled=cancelled,
        bandwidth=bandwidth,
        was_begun=was_begun,
    )
    return run.to_the_end()


def begin_run(
    connection: Connection,
    plan: Plan,
    *,
    journal: Journal | None = None,
    undoes: int | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Callable[[], bool] = never,
    bandwidth: Bandwidth = unlimited,
    was_begun: bool = False,
) -> Run:
    """Record that a plan begins, and return it for who runs it piece by piece. Arguments and errors as `run_plan`."""
    if plan.is_refused:
        refusal = plan.refusals[0]
        raise SnapTreeError(refusal.reason, hint=refusal.remedy, details=refusal.rule)
    resumed = None
    if plan.recovers is not None and journal is not None:
        resumed = journal.operation(plan.recovers)
    operation = (
        journal.begin(plan, undoes=undoes)
        if journal is not None
        else Operation(id=0, plan=plan, state=OperationState.RUNNING, started=time.time())
    )
    return Run(connection, operation, journal, on_progress, cancelled, bandwidth, was_begun, resumed)


class Run:
    """One run of one plan: `to_the_end` or `until_paused`; or, of several together, `prepare`, `go_on`, and `end`."""

    def __init__(
        self,
        connection: Connection,
        operation: Operation,
        journal: Journal | None,
        on_progress: OnProgress | None,
        cancelled: Callable[[], bool],
        bandwidth: Bandwidth,
        was_begun: bool,
        resumed: Operation | None,
    ) -> None:
        self._connection = connection
        self._operation = operation
        self._journal = journal
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._bandwidth = bandwidth
        self._was_begun = was_begun
        self._resumed = resumed
        """The interrupted operation that this one finishes."""
        self._domain: Any = None
        self._picture = b""
        """The guest's screen before the first step; empty if there is none."""
        self._step_began = 0.0
        self._overall = Overall(operation.plan)
        self._rate = Rate()
        """Of the step that runs."""
        self._merging = False
        """libvirt was seen to merge, in the step that runs."""
        self._frozen: Frozen | None = None
        self._may_be_frozen = False
        """The guest's file systems have to be thawed, whatever happens."""
        self._taking_since: float | None = None
        self._taken: tuple[TakeSnapshot, TakeMeter] | None = None
        self._paused: float | None = None
        """Seconds that the guest stood still in the step that runs, where that was measured."""

    @property
    def operation(self) -> Operation:
        """How far it is."""
        return self._operation

    def to_the_end(self) -> Operation:
        """Run all of it, and return how it ended."""
        operation = self.until_paused(never)
        assert operation is not None
        return operation

    def until_paused(self, is_paused: Callable[[], bool]) -> Operation | None:
        """As `to_the_end`, but return None if it `is_paused` and nothing is half done. Called again, it goes on."""
        plan = self._operation.plan
        error: Exception | None = None
        try:
            try:
                if self._domain is None:
                    self.prepare()
                for number in range(self._operation.steps_done, len(plan.steps)):
                    if is_paused() and not self._cancelled() and is_whole(plan, number):
                        self._tell()  # of the steps that are done by now
                        return None
                    self.go_on(number + 1)
            finally:
                self.thaw_in_any_case()
        except (libvirt.libvirtError, SnapTreeError) as failure:
            error = failure
        return self.end(error)

    def prepare(self) -> None:
        """Look whether all is as it was when this was planned. Raises SnapTreeError or libvirtError, as `go_on`."""
        plan = self._operation.plan
        self._domain = self._connection.domain(plan.domain_uuid)
        self._check_chains()
        if self._connection.host.driver == QEMU and any(isinstance(step, TakeSnapshot) for step in plan.steps):
            # Before all else: no file system is frozen yet, and no guest stands still.
            self._picture = picture_of(self._connection, self._domain)

    def check_takes(self) -> None:
        """Look whether there is anything in the way of what it will take: before any file system is frozen."""
        for step in self._operation.plan.steps:
            if isinstance(step, TakeSnapshot):
                self._check_take(step)

    def go_on(self, until: int) -> None:
        """Run the next steps, until so many of all are done."""
        plan = self._operation.plan
        for number, step in enumerate(plan.steps[:until]):
            if number < self._operation.steps_done:
                continue
            # Between taking and thawing there is nothing left to cancel.
            if self._cancelled() and not isinstance(step, ThawFileSystems):
                raise CancelledError(_what_was_done(plan, number))
            self._run_step(number, step)

    def end(self, failure: Exception | None) -> Operation:
        """Record how it ended: well, or by a SnapTreeError or libvirtError."""
        plan = self._operation.plan
        state = OperationState.DONE
        error: SnapTreeError | None = None
        if failure is not None:
            error = failure if isinstance(failure, SnapTreeError) else explain(failure, f"changing {plan.domain}")
            state = OperationState.CANCELLED if isinstance(error, CancelledError) else OperationState.FAILED
        if error is not None and self._is_left_half_way(error):
            state = OperationState.INTERRUPTED
        if error is not None and not isinstance(error, CancelledError):
            error = _with_what_was_done(error, plan, self._operation.steps_done)
        if error is not None and state is OperationState.INTERRUPTED:
            error = _with_what_is_left(error, self._operation)
        if gone := _deleted_by(plan.steps[: self._operation.steps_done]):
            Thumbnails.of(self._connection.uri, plan.domain_uuid).forget(gone)
        self._operation = dataclasses.replace(
            self._operation, state=state, finished=time.time(), error=error, progress=None
        )
        if self._journal is not None:
            self._journal.finish(self._operation)
        self._tell()
        return self._operation

    def _run_step(self, number: int, step: Step) -> None:
        self._step_began, self._rate = time.monotonic(), Rate()
        steps = len(self._operation.plan.steps)
        can_cancel = isinstance(step, MergeLayers)  # from its first moment on
        self._progress(Progress(describe_step(step), number, steps, can_cancel=can_cancel))
        self._merging, self._paused = False, None
        found = self._find(number)
        if found.state is StepState.CHANGED:
            raise ChangedMeanwhileError(found.says)
        if found.state is StepState.NOT_BEGUN:
            self._check_way(step)  # what it finds must not look as if this step had left it
        check_unmarked(self._domain, _lost_in_passing(self._operation.plan, number))
        was_active = bool(self._domain.isActive())
        if self._journal is not None:
            self._journal.step_begins(self._operation.id, number, was_active=was_active)
        self._operation = dataclasses.replace(self._operation, steps_begun=number + 1, was_active=was_active)
        if found.state is StepState.HALF_WAY:
            self._clear_the_way(step)
        if found.state is StepState.NOT_BEGUN:
            self._act(number, step)
        elif found.state is StepState.HALF_WAY:
            self._go_on(number, step)
        elif isinstance(step, TakeSnapshot):
            self._annotate(step)
        if self._journal is not None:
            self._journal.step_is_done(self._operation.id, number, paused=self._paused)
        self._operation = dataclasses.replace(self._operation, steps_done=number + 1)

    def _act(self, number: int, step: Step, *, goes_on: bool = False) -> None:
        """Do a step; `goes_on` says that an earlier run was cut short in it."""
        deleted_later = _deleted_by(self._operation.plan.steps[number + 1 :])
        match step:
            case FreezeFileSystems():
                self._freeze(step)
            case TakeSnapshot():
                self._take(step, goes_on=goes_on)
            case ThawFileSystems():
                self._thaw()
            case RevertToSnapshot():
                self._revert(step)
            case StopMachine():
                self._stop(number)
            case DropManagedSave():
                self._drop_managed_save()
            case ForkAtSnapshot():
                self._revert(step)
            case DeleteSnapshot():
                self._delete(step)
            case EndOrphanedMerge():
                self._end_orphaned_merge(step)
            case MergeLayers():
                self._merge(step, deleted_later, was_begun=goes_on or (self._was_begun and number == 0))
            case RecordLayers():
                record_layers(self._connection, self._operation.plan.domain_uuid, step)
            case ForgetMemory():
                forget_memory(self._connection, self._domain, step)
            case DescribeSnapshot():
                describe(self._domain, step)
            case RenameSnapshot():
                rename(self._connection, self._domain, step)
                Thumbnails.of(self._connection.uri, self._operation.plan.domain_uuid).rename(step.name, step.new_name)
            case RemoveLeftover():
                remove_leftover(self._connection, self._domain, step, deleted_later=deleted_later)
            case CopyOut():
                copy_out(step, on_progress=partial(self._copied, step), cancelled=self._cancelled)
            case MakeLook():
                make_look(self._connection, self._domain, step)
            case StartLook():
                start_look(self._connection, step)
            case RemoveLook():
                remove_look(self._connection, self._domain, step)

    def _copied(self, step: CopyOut, share: float) -> None:
        if step.copies:
            self._measured(int(share * step.copies), step.copies, can_cancel=True)

    # What an interrupted operation left

    def _find(self, number: int) -> StepFound:
        """How far a step is. Only the first one that was not known to be done may be anywhere."""
        plan, resumed = self._operation.plan, self._resumed
        rest = () if resumed is None else resumed.plan.steps[resumed.steps_done :]
        if resumed is None or number != len(plan.steps) - len(rest) or plan.steps[number] != rest[0]:
            return StepFound(StepState.NOT_BEGUN)
        if any(isinstance(before, EndOrphanedMerge) for before in plan.steps[:number]):
            # What it was is past: that machine is off again.
            return StepFound(StepState.HALF_WAY)
        return find_next_step(self._connection, self._domain, resumed)

    def _go_on(self, number: int, step: Step) -> None:
        """Do a step again that was half done, unless what was waited for did it meanwhile."""
        try:
            self._act(number, step, goes_on=True)
        except VanishedError:
            if self._find(number).state is not StepState.DONE:
                raise

    def _clear_the_way(self, step: Step) -> None:
        """Bring what is half done to where the step can be done again."""
        match step:
            case TakeSnapshot() | ForkAtSnapshot() | CopyOut() | MakeLook():
                if isinstance(step, TakeSnapshot | ForkAtSnapshot) and reverting.is_on(self._domain, step):
                    return
                for path in list(files_made(self._connection, step)):
                    left = RemoveLeftover(path, "what was interrupted left it behind")
                    remove_leftover(self._connection, self._domain, left)
            case DeleteSnapshot():
                self._follow_merges()

    def _follow_merges(self) -> None:
        """Wait for merges that go on without us."""
        while targets := merging_disks(self._connection, self._domain):
            if is_orphaned(self._domain):
                raise ChangedMeanwhileError("the machine is paused, with a merge that nobody finishes")
            self._merge_progress(dict.fromkeys(targets), {})
            if self._cancelled():
                raise CancelledError("Stopped waiting for a merge that goes on.")
            threading.Event().wait(POLL_SECONDS)

    def _is_left_half_way(self, error: SnapTreeError) -> bool:
        """Whether somebody has to finish or to leave what this operation did so far."""
        operation = self._operation
        plan, done, begun = operation.plan, operation.steps_done, operation.steps_begun
        if plan.recovers is not None:
            return True  # it took over what was interrupted: that is not settled yet
        if begun == 0:
            return False
        if self._may_be_frozen:
            return True
        if plan.group and plan.action is Action.TAKE and any(isinstance(s, TakeSnapshot) for s in plan.steps[:done]):
            return True  # all of a group or none: it has to be taken back
        if isinstance(error, ConnectionLostError) or is_torn(plan, begun, done):
            return True
        try:
            return begun > done and self._may_be_half_way(plan.steps[done])
        except (libvirt.libvirtError, SnapTreeError):
            return True  # nobody can say now

    def _may_be_half_way(self, step: Step) -> bool:
        """Whether a step that failed did something before it failed."""
        match step:
            case DeleteSnapshot():
                listed = [read_snapshot(each.getName(), each.getXMLDesc()) for each in self._domain.listAllSnapshots()]
                return step.name in {each.name for each in listed} and (
                    self._merging
                    or any(each.delete_in_progress for each in listed)
                    or bool(self._domain.isActive()) != self._operation.was_active
                )
            case TakeSnapshot() | RenameSnapshot():
                found = find_step(self._connection, self._domain, step, begun=True)
                return found.state is StepState.HALF_WAY
            case _:
                return False

    def _end_orphaned_merge(self, step: EndOrphanedMerge) -> None:
        if not self._domain.isActive():
            return
        if not is_orphaned(self._domain):
            raise ChangedMeanwhileError("the machine is not the paused QEMU any more that the merge was left in")
        for target in step.targets:
            if block_job(self._domain, target):
                with explained(f"stopping the merge of disk {target}"):
                    self._domain.blockJobAbort(target)
        with explained("ending the QEMU that was left behind"):
            self._domain.destroy()

    # Progress

    def _progress(self, progress: Progress) -> None:
        progress = dataclasses.replace(progress, overall=self._overall.share(progress))
        self._operation = dataclasses.replace(self._operation, progress=progress)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._operation)

    def _measured(self, done: int, total: int, **more: Any) -> None:
        """Report bytes, with the rate of late and the time left at that rate."""
        assert self._operation.progress is not None
        rate = self._rate.measure(done)
        left = (total - done) / rate if rate else None
        self._progress(
            dataclasses.replace(self._operation.progress, done=done, total=total, rate=rate, seconds_left=left, **more)
        )

    def _merged(self, how_far: Sequence[MergeProgress], **more: Any) -> None:
        """Report block jobs: in bytes, if these are known of each."""
        assert self._operation.progress is not None
        if not any(each.is_share for each in how_far):
            self._measured(sum(each.done for each in how_far), sum(each.total for each in how_far), **more)
        else:
            shares = [each.done / each.total for each in how_far if each.total]
            share = sum(shares) / len(how_far)
            self._progress(dataclasses.replace(self._operation.progress, share=share, **more))

    def _merge_progress(self, jobs: Mapping[str, CopyMap | None], seen: dict[str, MergeProgress]) -> None:
        """Tell how far libvirt's block jobs are: of some disks, each with where lies what is copied.

        `seen` has the last that was heard of each.
        """
        for target, copy_map in jobs.items():
            if info := block_job(self._domain, target):
                seen[target] = merge_progress(info, copy_map)
        if seen:
            self._merging = True
            self._merged([*seen.values()], why_not_cancel="libvirt can't stop a merge that it has begun")

    def _blocking(self, call: Callable[[], Any], poll: Callable[[], None]) -> Any:
        """Make a libvirt call that blocks for long, while `poll` looks how far it is."""
        with ThreadPoolExecutor(1, thread_name_prefix="snaptree-change") as pool:
            future: Future[Any] = pool.submit(call)
            while True:
                try:
                    return future.result(timeout=POLL_SECONDS)
                except TimeoutError:
                    poll()

    # What a plan relied on

    def _check_chains(self) -> None:
        expected = self._operation.plan.expected_chains
        if not expected:
            return
        actual = {chain.target: chain for chain in live_chains(self._connection, self._domain)}
        for target, layers in expected.items():
            chain = actual.get(target)
            if chain is None or chain.layers != layers:
                if chain is not None and chain.problem:
                    raise SnapTreeError(
                        f"The layers of disk {target} cannot be read any more: {chain.problem.rstrip('.')}.",
                        hint="Nothing was done. Bring back what is missing, then plan again.",
                    )
                raise ChangedMeanwhileError(f"disk {target} now stands on other layers than when this was planned")

    def _check_current(self, expected: str | None) -> None:
        actual = current_name(self._domain)
        if actual != expected:
            raise ChangedMeanwhileError(f"the current snapshot is {_named(actual)}, not {_named(expected)}")

    def _check_no_block_job(self) -> None:
        for target in self._disk_targets():
            if block_job(self._domain, target):
                raise ChangedMeanwhileError(f"a block job is running on disk {target}")

    def _snapshot(self, name: str) -> Any:
        with explained(f"looking for the snapshot {name}"):
            return self._domain.snapshotLookupByName(name)

    def _disk_targets(self) -> tuple[str, ...]:
        return tuple(chain.target for chain in live_chains(self._connection, self._domain, top_only=True))

    # The steps

    def _check_way(self, step: Step) -> None:
        match step:
            case TakeSnapshot():
                self._check_take(step)
            case CopyOut() | MakeLook():
                self._check_no_files(step)

    def _check_no_files(self, step: TakeSnapshot | CopyOut | MakeLook) -> None:
        for path in files_made(self._connection, step):
            raise ChangedMeanwhileError(f"the file {path} exists by now")

    def _check_take(self, step: TakeSnapshot) -> None:
        self._check_current(step.expected_current)
        if step.name in {snapshot.getName() for snapshot in self._domain.listAllSnapshots()}:
            raise ChangedMeanwhileError(f"a snapshot named {step.name} exists by now")
        self._check_no_files(step)

    def _take(self, step: TakeSnapshot, *, goes_on: bool) -> None:
        if goes_on and self._resumed is not None and step.overlays and reverting.is_on(self._domain, step):
            record_take(self._connection, self._domain, step, created=self._resumed.started)
            self._picture = b""  # of now, not of then
            self._check_taken(step)
            self._annotate(step)
        else:
            self._take_anew(step)

    def _freeze(self, step: FreezeFileSystems) -> None:
        self._taking_since = self._step_began
        if self._journal is not None:
            self._journal.may_be_frozen(self._operation.id)
        self._may_be_frozen = True
        try:
            self._frozen = self._blocking(lambda: freeze(self._domain, step.seconds), lambda: None)
        except CannotFreezeError as error:
            if not error.is_unsure:
                self._is_thawed()
            if step.required:
                raise
            self._remark(f"The file systems were not frozen: {error.summary}")

    def _thaw(self) -> None:
        if self._frozen is None:  # they could not be frozen, which was allowed, or an earlier run froze them
            if self._resumed is not None:
                thaw_surely(self._connection, self._operation.plan.domain_uuid)
            return
        were_frozen = self._thaw_frozen(self._frozen)
        assert self._taken is not None
        taken, meter = self._taken
        self._note_taken(taken, meter, were_frozen=were_frozen)
        if were_frozen:
            return
        says = f"The file systems did not stay frozen until {taken.name} was taken, so it is crash-consistent."
        if taken.quiesce is Freeze.REQUIRED:
            raise SnapTreeError(says, hint="If that is not enough, delete it, and take another.")
        self._remark(says)

    def _thaw_frozen(self, frozen: Frozen) -> bool:
        with explained("thawing the file systems"):
            were_frozen: bool = self._blocking(frozen.thaw, lambda: None)
        self._is_thawed()
        return were_frozen

    def thaw_at_once(self) -> None:
        """Let the guest write again now; its next step says how that went."""
        if self._frozen is not None:
            with suppress(libvirt.libvirtError):
                self._frozen.thaw()

    def thaw_in_any_case(self) -> None:
        """Nothing stays frozen, whatever happened. Raises SnapTreeError if nobody can say that."""
        if not self._may_be_frozen:
            return
        if self._frozen is not None:
            with suppress(SnapTreeError):
                self._thaw_frozen(self._frozen)
                return
        thaw_surely(self._connection, self._operation.plan.domain_uuid)
        self._is_thawed()

    def _is_thawed(self) -> None:
        self._may_be_frozen = False
        if self._journal is not None:
            self._journal.is_thawed(self._operation.id)

    def _remark(self, sentence: str) -> None:
        self._operation = dataclasses.replace(self._operation, remark=sentence)

    def _take_anew(self, step: TakeSnapshot) -> None:
        if step.quiesce is Freeze.REQUIRED and (self._frozen is None or not self._frozen.is_held):
            raise SnapTreeError(
                "The file systems do not stay frozen for long enough, so nothing was taken.",
                hint="Try again when the host is less busy, or take it without freezing.",
            )
        self._check_take(step)
        external = DiskSnapshot.EXTERNAL in step.disks.values()
        flags = 0
        if external:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            if step.memory is MemorySnapshot.NO:
                flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        if step.live:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        meter = TakeMeter(self._connection, self._domain, step)
        with explained(f"taking the snapshot {step.name}"), meter:
            self._blocking(lambda: self._domain.snapshotCreateXML(take_xml(step), flags), self._memory_progress)
        self._check_taken(step)
        self._taken = step, meter
        if self._frozen is None:
            self._note_taken(step, meter)

    def _note_taken(self, step: TakeSnapshot, meter: TakeMeter, *, were_frozen: bool = False) -> None:
        """Keep what is known of a snapshot once the guest can write again: with it, and in the history."""
        frozen = None if self._frozen is None else self._frozen.seconds
        impact = meter.impact(since=self._taking_since or self._step_began, frozen=frozen)
        self._operation = dataclasses.replace(self._operation, impact=impact)
        self._annotate(step, were_frozen=were_frozen, impact=impact)
        keep_picture(self._connection, self._domain, step.name, self._picture)

    def _memory_progress(self) -> None:
        """RAM written so far. It is the only phase of a snapshot that QEMU lets anybody stop (LIBVIRT.md, 3)."""
        try:
            stats = self._domain.jobStats()
        except libvirt.libvirtError:
            return
        if not stats.get("memory_total"):
            return
        if self._cancelled():
            try:
                self._domain.abortJob()
            except libvirt.libvirtError:
                return  # it ended meanwhile
        total = int(stats["memory_total"])
        # What was processed leaves out pages of zeros, which the total counts.
        self._measured(total - int(stats.get("memory_remaining", total)), total, can_cancel=True)

    def _check_taken(self, step: TakeSnapshot) -> None:
        self._snapshot(step.name)
        actual = {chain.target: chain.active for chain in live_chains(self._connection, self._domain, top_only=True)}
        for target, overlay in step.overlays.items():
            if actual.get(target) != overlay:
                raise SnapTreeError(
                    f"{step.name} was taken, but disk {target} writes to {actual.get(target)}, not {overlay}.",
                    hint="Do not revert to or delete this snapshot before you know why.",
                )

    def _annotate(self, step: TakeSnapshot, *, were_frozen: bool = False, impact: Impact | None = None) -> None:
        """Write what libvirt does not record. Never with CURRENT, always the SECURE text (LIBVIRT.md, 5 and 9).

        Frozen file systems are claimed only by who saw them frozen from before to after.
        """
        consistency = step.consistency
        if consistency is Consistency.FILESYSTEM and not were_frozen:
            consistency = Consistency.CRASH
        annotations = Annotations(
            consistency=consistency,
            taken_by=this_user(),
            safety=step.safety,
            impact=impact,
            group=step.group,
            schedule=step.schedule,
        )
        with explained(f"noting who took the snapshot {step.name}"):
            xml = self._snapshot(step.name).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
            self._domain.snapshotCreateXML(
                with_annotations(xml, annotations), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            )

    def _revert(self, step: RevertToSnapshot | ForkAtSnapshot) -> None:
        self._check_before_revert(step)
        self._check_current(step.expected_current)
        try:
            if isinstance(step, ForkAtSnapshot):
                self._blocking(lambda: reverting.fork(self._connection, self._domain, step), lambda: None)
            else:
                self._blocking(lambda: reverting.revert(self._domain, step), lambda: None)
        except SnapTreeError as error:
            raise self._with_way_back(error) from error
        if (actual := current_name(self._domain)) != step.name:
            raise SnapTreeError(
                f"libvirt says the revert to {step.name} succeeded, but the current snapshot is {_named(actual)}.",
                hint="Look at the machine before you go on.",
            )
        if step.state_after is not StateAfter.AS_CAPTURED:
            self._check_state(step.state_after)

    def _check_before_revert(self, step: RevertToSnapshot | ForkAtSnapshot) -> None:
        """What libvirt finds out only when it has stopped the machine."""
        self._check_no_block_job()
        with explained("looking for a managed save"):
            if self._connection.host.driver == QEMU and self._domain.hasManagedSaveImage():
                raise ChangedMeanwhileError("the machine has a managed save by now")
        if isinstance(step, ForkAtSnapshot) and self._connection.host.is_local:
            for path in step.overlays.values():
                if Path(path).exists():
                    raise ChangedMeanwhileError(f"the file {path} exists by now")
        reverting.check_needs(self._connection, self._domain, step)

    def _check_state(self, wanted: StateAfter) -> None:
        actual = read_domain(self._connection, self._operation.plan.domain_uuid).state
        if actual is not (DomainState.OFF if wanted is StateAfter.OFF else DomainState(wanted.value)):
            raise SnapTreeError(
                f"The revert succeeded, but the machine is not {wanted.value}: {actual.value}.",
                hint="Look at the machine before you go on.",
            )

    def _with_way_back(self, error: SnapTreeError) -> SnapTreeError:
        """Add to the error of a revert what became of the machine, and how to get back what it was."""
        done = self._operation.plan.steps[: self._operation.steps_done]
        hints = [error.hint, reverting.state_in_words(self._connection, self._domain)]
        hints += [
            f"The state before is safe in '{step.name}': revert to that to have it back."
            for step in done
            if isinstance(step, TakeSnapshot) and step.safety
        ]
        return SnapTreeError(error.summary, hint=" ".join(filter(None, hints)), details=error.details)

    def _stop(self, number: int) -> None:
        """Once the machine is off there must be a way on: what the next steps need is looked for now."""
        for step in self._operation.plan.steps[number + 1 :]:
            if isinstance(step, RevertToSnapshot | ForkAtSnapshot):
                self._check_before_revert(step)
        with explained("turning the machine off"):
            reverting.stop(self._domain)

    def _drop_managed_save(self) -> None:
        with explained("throwing the managed save away"):
            if self._domain.isActive():
                raise ChangedMeanwhileError("the machine was started")
            if self._domain.hasManagedSaveImage():
                self._domain.managedSaveRemove()

    def _delete(self, step: DeleteSnapshot) -> None:
        self._check_no_block_job()
        handle = self._snapshot(step.name)
        children = {child.getName() for child in handle.listAllChildren()}
        if children != set(step.expected_children):
            raise ChangedMeanwhileError(f"{step.name} has other children than when this was planned")
        jobs = self._jobs_of(handle) if step.merges else {}
        seen: dict[str, MergeProgress] = {}
        with explained(f"deleting the snapshot {step.name}"):
            self._blocking(lambda: handle.delete(0), lambda: self._merge_progress(jobs, seen))
        try:
            self._snapshot(step.name)
        except VanishedError:
            return
        raise SnapTreeError(
            f"libvirt says that {step.name} was deleted, but still lists it.", hint="Refresh, and look at the machine."
        )

    def _jobs_of(self, handle: Any) -> dict[str, CopyMap | None]:
        """The disks that libvirt merges when it deletes a snapshot, each with where lies what it copies."""
        images = Images(self._connection)
        snapshot = read_snapshot(handle.getName(), handle.getXMLDesc())
        frozen = {disk.frozen for disk in snapshot.disks if disk.frozen is not None}
        jobs: dict[str, CopyMap | None] = {}
        for chain in live_chains(self._connection, self._domain, images):
            for upper, lower in pairwise(chain.layers):
                if lower in frozen:  # the layer in use counts by itself what it gives
                    jobs[chain.target] = None if upper == chain.active else images.copy_map({upper: "qcow2"}, None)
        return jobs

    def _merge(self, step: MergeLayers, deleted_later: Collection[str], *, was_begun: bool) -> None:
        def progress(how_far: MergeProgress) -> None:
            self._merged([how_far], can_cancel=True, remark=how_far.remark)

        try:
            self._paused = merge_layers(
                self._connection,
                self._domain,
                step,
                on_progress=progress,
                cancelled=self._cancelled,
                bandwidth=self._bandwidth,
                deleted_later=deleted_later,
                was_begun=was_begun,
            )
        except CancelledError as cancel:
            before = _done_before(self._operation.plan, self._operation.steps_done)
            raise CancelledError(cancel.summary, hint=before, details=cancel.details) from cancel


def _deleted_by(steps: Iterable[Step]) -> set[str]:
    """The snapshots that are gone after these steps."""
    gone: set[str] = set()
    for step in steps:
        match step:
            case DeleteSnapshot():
                gone.add(step.name)
            case RecordLayers():
                gone.update(step.forgotten)
    return gone


def _lost_in_passing(plan: Plan, number: int) -> set[str]:
    """Snapshots that are gone once this step has begun, though nobody asked for just that: a mark set since keeps them.

    Between the merges of one batch there is no way back.
    """
    if plan.action not in (Action.DELETE, Action.PRUNE, Action.UNDO):
        return set()
    if plan.action is Action.DELETE and len(plan.snapshots) == 1:
        return set()
    before, step = plan.steps[:number], plan.steps[number]
    if isinstance(step, DeleteSnapshot):
        return {step.name}
    if not isinstance(step, MergeLayers) or (before and isinstance(before[-1], MergeLayers)):
        return set()
    return set(next((each.forgotten for each in plan.steps[number:] if isinstance(each, RecordLayers)), ()))


def _named(snapshot: str | None) -> str:
    return "none" if snapshot is None else f"'{snapshot}'"


def _with_what_was_done(error: SnapTreeError, plan: Plan, steps_done: int) -> SnapTreeError:
    """Add to an error what a plan had done before it: that stays, and the reader must know of it."""
    return error if steps_done == 0 else _with_hint(error, _done_before(plan, steps_done))


def _with_what_is_left(error: SnapTreeError, operation: Operation) -> SnapTreeError:
    """Add to an error which snapshots are of no use any more, and that the machine waits for somebody to decide."""
    plan = operation.plan
    if names := half_deleted(operation):
        error = _with_hint(
            error,
            f"What was being deleted may be a mixture now, of no more use: {snapshots_named(names)}. All other"
            f" snapshots are whole, and so is what {plain(plan.domain)} stands on.",
        )
    if plan.group:
        return error  # all of it is recovered at once
    return _with_hint(
        error,
        f"Before anything else is done to {plain(plan.domain)}, finish this or leave it as it is: above the tree in the"
        f" window, or by snaptree recover {shell_word(plan.domain)}.",
    )


def _with_hint(error: SnapTreeError, more: str) -> SnapTreeError:
    said = copy(error)
    said.hint = f"{error.hint} {more}".strip()
    return said


def _what_was_done(plan: Plan, steps_done: int) -> str:
    if steps_done == 0:
        return "Cancelled before anything was done."
    return f"Cancelled after {steps_done} of {len(plan.steps)} steps. {_done_before(plan, steps_done)}"


def _done_before(plan: Plan, steps_done: int) -> str:
    done = steps_in_brief(plan.steps[:steps_done])
    return f"Done before, and still so: {done}." if done else ""
