"""Merging layers by block jobs of our own, in the machine's QEMU or in a helper's: measured, slowed down, stopped.

QEMU writes the tables of an image it merged into at leisure. Killed right after a pull, it leaves an image that stands
on nothing and misses what was pulled (seen with QEMU 7.2 and 10.0). So a merge counts as done only once QEMU was made
to flush; until then all merged files are kept, and merging them once more makes it good.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import libvirt
import libvirt_qemu

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import listed_paths, parse
from snaptree.hosts.errors import explain, explained, hint_for
from snaptree.hosts.helper_machine import TARGET, end_helper, helper_machine, left_helpers
from snaptree.hosts.layers import Images, live_chains
from snaptree.hosts.reading import never, texts_of
from snaptree.images.files import read_chain
from snaptree.model.errors import CancelledError, ChangedMeanwhileError, SnapTreeError
from snaptree.plans.plan import MergeLayers, MergeWay

if TYPE_CHECKING:
    from snaptree.images.copy_map import CopyMap

_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 2.0
"""How long libvirt may take to say what came of a job that is over."""
_STALLED_SECONDS: Final = 5.0
_NOBODY_KNOWS: Final = -1
"""The speed of a job that somebody else began."""

Bandwidth = Callable[[], int | None]
"""Bytes per second that a merge may copy from now on; None: as fast as it can."""


def unlimited() -> None:
    """As fast as it can."""


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far a block job is: bytes that are copied, of a total that grows while a guest writes.

    Where nobody knows how much that is, both are places on the disk (`is_share`): of use as a share only.
    """

    done: int
    total: int
    remark: str = ""
    is_share: bool = False


OnMerge = Callable[[MergeProgress], None]


def merge_layers(
    connection: Connection,
    domain: Any,
    step: MergeLayers,
    *,
    on_progress: OnMerge,
    cancelled: Callable[[], bool] = never,
    bandwidth: Bandwidth = unlimited,
    deleted_later: Collection[str] = (),
    was_begun: bool = False,
) -> float | None:
    """Carry out a step, in the calling thread; returns for how many seconds the guest stood still at its end.

    That is while the disk goes over to another layer, and while the machine is paused to write tables down. None where
    no guest ran, or not all of it was seen.
    What images that go hold of the snapshots in `deleted_later` may go with them. `was_begun` says that an earlier run
    was cut short in this step: then a job that runs on the disk is taken for its own and followed, and an outcome that
    is there for its own, and made good where it may not be whole.
    Raises ChangedMeanwhileError if the layers are not what the step relies on, CancelledError if it was stopped with
    all layers as before, SnapTreeError if it failed.
    """
    return _Merge(connection, domain, step, on_progress, cancelled, bandwidth, deleted_later, was_begun).run()


def merge_progress(info: Mapping[str, int], copy_map: CopyMap | None) -> MergeProgress:
    """What libvirt's word of a block job says of the bytes that are copied.

    A commit of the layer in use counts these itself (QEMU's block/mirror.c). Any other job says how far on the disk it
    is, holes and all, and `copy_map` knows what lies there.
    """
    done, total = int(info["cur"]), int(info["end"])
    if info["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
        if copy_map is not None:
            return MergeProgress(copy_map.copied(done), copy_map.total)
        return MergeProgress(done, total, is_share=True)
    # Before it has counted, libvirt says 0 of 1 (qemuBlockJobInfoTranslate).
    return MergeProgress(done, total) if total > 1 else MergeProgress(0, 0)


def is_merged(connection: Connection, domain: Any, step: MergeLayers) -> bool:
    """Whether the outcome of a step that was begun is there and will stay.

    Where a QEMU may have been killed before it wrote down what it pulled, this is False: see `merge_layers`.
    Raises SnapTreeError if that can't be read.
    """
    found = _Found(connection, domain, step)
    return found.is_merged and not found.is_doubtful


def is_stranded(connection: Connection, domain: Any, step: MergeLayers) -> bool:
    """Whether a step that was begun in the machine's own QEMU can't be gone on with: it ended, and all is as before.

    Raises SnapTreeError if that can't be read.
    """
    found = _Found(connection, domain, step)
    return step.is_live and not found.is_active and found.is_as_before


def is_unnoticed(connection: Connection, domain: Any, step: MergeLayers) -> bool:
    """Whether QEMU ended a step that was begun in it while no daemon was there, and libvirt still goes by what was.

    As long as the machine runs, libvirt refers to layers that QEMU has let go of, and can't merge them or what stands
    on them. Raises SnapTreeError if that can't be read.
    """
    found = _Found(connection, domain, step)
    return step.is_live and found.is_active and found.is_as_before and found.is_otherwise_by_headers


class _Found:
    """What a step finds: the paths its disk's images stand on now."""

    def __init__(self, connection: Connection, domain: Any, step: MergeLayers) -> None:
        self._domain = domain
        self._step = step
        self._images = Images(connection)
        self.before = tuple(layer.path for layer in step.stack)
        self.after = tuple(layer.path for layer in step.stack_after)
        with explained("looking at the machine"):
            self.is_active = bool(domain.isActive())
        self.paths, self.problem = self._live() if step.is_live else self._by_headers(self.before[0])

    def _live(self) -> tuple[tuple[str, ...], str]:
        for chain in live_chains(self._images.connection, self._domain, self._images):
            if chain.target == self._step.target:
                return chain.layers, chain.problem
        return (), "the machine has no such disk any more"

    def _by_headers(self, path: str) -> tuple[tuple[str, ...], str]:
        chain = read_chain(path, self._format(path), self._images.read_image)
        return tuple(image.path for image in chain.images), chain.problem

    @property
    def is_as_before(self) -> bool:
        """Whether nothing was merged yet, so far as can be seen."""
        return self.paths == self.before and not self.problem

    @property
    def is_otherwise_by_headers(self) -> bool:
        """Whether the images themselves say that the stack is what it shall be."""
        paths, problem = self._by_headers(self.before[0])
        return paths == self.after and not problem

    @property
    def is_as_wanted(self) -> bool:
        """Whether the stack is what it shall be, so far as can be seen."""
        if self._is_unseen:
            return self._by_headers(self.after[0]) == (self.after, "")
        return self.paths == self.after and not self.problem

    @property
    def is_merged(self) -> bool:
        """Whether all of it was merged, if it was by us."""
        if self._is_unseen:
            # Once libvirt was told of it, the lowest layer may be written to: committing once more would undo that.
            return self._images.is_missing(self.before[0]) or not self._is_named(self.before[0])
        return self.is_as_wanted

    @property
    def is_doubtful(self) -> bool:
        """Whether the image that was pulled into may miss what it was given: all is still there to do it again."""
        below = self._step.layers[1]
        return (
            self._step.way is MergeWay.PULL
            and not (self._step.is_live and self.is_active)
            and self.is_as_wanted
            and self._by_headers(below) == (self.before[self.before.index(below) :], "")
        )

    @property
    def _is_unseen(self) -> bool:
        """Whether a helper commits the top of the stack: nothing in the images says afterwards that it did."""
        step = self._step
        return not step.is_live and step.goes_over

    def holders_of_internal_snapshots(self, deleted_later: Collection[str]) -> tuple[str, ...]:
        """Images whose internal snapshots would be lost: what is pulled into, and what is committed from.

        Those in `deleted_later` go with images that go; in one that stays, they have to be deleted before.
        """
        step = self._step
        touched = step.layers if step.way is MergeWay.PULL else step.layers[:-1]
        holders = []
        for path in touched:
            inside = {each.name for each in self._images.read_image(path, self._format(path)).internal_snapshots}
            if inside - (set() if path == step.merged else set(deleted_later)):
                holders.append(path)
        return tuple(holders)

    def _format(self, path: str) -> str:
        return next(layer.format for layer in self._step.stack if layer.path == path)

    def _is_named(self, path: str) -> bool:
        """Whether the machine or a snapshot has it for a disk."""
        with explained("looking who names a layer"):
            texts = texts_of(self._domain)
        return any(path in listed_paths(disk) for text in texts for disk in parse(text).iter("disk"))


class _Merge:
    """One step on its way."""

    def __init__(
        self,
        connection: Connection,
        domain: Any,
        step: MergeLayers,
        on_progress: OnMerge,
        cancelled: Callable[[], bool],
        bandwidth: Bandwidth,
        deleted_later: Collection[str],
        was_begun: bool,
    ) -> None:
        self._connection = connection
        self._domain = domain
        self._step = step
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._bandwidth = bandwidth
        self._deleted_later = deleted_later
        self._was_begun = was_begun

    def run(self) -> float | None:
        step = self._step
        paused: float | None = 0.0
        if not step.is_live:
            for helper in left_helpers(self._connection, self._domain.UUIDString()):
                end_helper(self._connection, helper)
        found = _Found(self._connection, self._domain, step)
        live = step.is_live and found.is_active
        if not (self._was_begun and found.is_merged and not found.is_doubtful):
            self._check(found)
            if live:
                paused = self._follow(self._domain, step.target)
            else:
                self._in_helper()
        if live:
            flushed = self._flush()
            paused = None if self._was_begun or paused is None or flushed is None else paused + flushed
        found = _Found(self._connection, self._domain, step)
        if not found.is_as_wanted:
            raise _astray(f"The merge on disk {step.target} ended, but its layers are not as they should be.", found)
        return paused if live else None

    def _in_helper(self) -> None:
        try:
            with helper_machine(self._connection, self._domain, self._step) as helper:
                self._follow(helper, TARGET)
        except CancelledError:
            found = _Found(self._connection, self._domain, self._step)
            if not found.is_as_before and not found.is_doubtful:
                what = f"The merge on disk {self._step.target} was stopped, but its layers are not as they were."
                raise _astray(what, found) from None
            raise

    # What the step relies on

    def _check(self, found: _Found) -> None:
        step = self._step
        top = found.before.index(step.layers[0])
        # QEMU merges whatever lies between the first and the last, and pulls into what a disk writes to alone.
        if found.before[top : top + len(step.layers)] != step.layers or (top > 0 and step.way is MergeWay.PULL):
            raise SnapTreeError(
                f"Not merged: QEMU can't make one of {', '.join(step.layers)} alone.",
                hint="Plan again, and report this.",
            )
        if not found.is_as_before and not (self._was_begun and found.is_doubtful):
            if found.problem:
                raise SnapTreeError(
                    f"The layers of disk {step.target} cannot be read: {found.problem.rstrip('.')}.",
                    hint="Nothing was done. What cannot be looked at is not merged.",
                )
            raise ChangedMeanwhileError(f"disk {step.target} now stands on other layers than when this was planned")
        if step.is_live and not found.is_active and found.is_as_before:
            raise ChangedMeanwhileError("the machine does not run any more")
        if holders := found.holders_of_internal_snapshots(self._deleted_later):
            raise SnapTreeError(
                f"Not merged: {holders[0]} holds internal snapshots, which would be lost.",
                hint="Delete these first, or keep the layer.",
            )
        if not found.is_active:
            return
        if self._has_job(step.target) and not self._was_begun:
            raise ChangedMeanwhileError(f"a block job is running on disk {step.target}")
        if step.is_live:
            self._check_live()
        else:
            self._check_not_held()

    def _check_live(self) -> None:
        with explained("looking at the machine"):
            state = self._domain.state()[0]
        if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_PAUSED):
            raise ChangedMeanwhileError("the machine neither runs nor is it paused")

    def _check_not_held(self) -> None:
        """No file that the helper writes to may be open in the machine's own QEMU (LIBVIRT.md, 9: pitfalls)."""
        step = self._step
        paths = [layer.path for layer in step.stack]
        written = {paths[0], step.merged}
        if step.way is MergeWay.COMMIT and (above := paths.index(step.layers[0])) > 0:
            written.add(paths[above - 1])
        images = Images(self._connection)
        with explained("looking at the machine's disks"):
            disks = parse(self._domain.XMLDesc()).findall("devices/disk")
        held = {_identity(images, path): path for disk in disks for path in listed_paths(disk)}
        for path in sorted(written):
            if (own := held.get(_identity(images, path))) is not None:
                raise ChangedMeanwhileError(f"the running machine uses {own}")

    def _has_job(self, target: str) -> bool:
        with explained("looking for block jobs"):
            return bool(self._domain.blockJobInfo(target))

    # The job

    def _follow(self, machine: Any, target: str) -> float:
        """Let a job run to its end; returns for how many seconds it held up the guest's disk."""
        job = _Job(machine, target, self._step, self._bandwidth)
        copy_map = self._copy_map()
        if self._cancelled() and not self._was_begun:
            raise CancelledError(f"Stopped before merging on disk {self._step.target} began.")
        with job.listening(self._connection):
            if not (self._was_begun and machine is self._domain and self._has_job(target)):
                job.start()
            try:
                self._to_the_end(job, copy_map)
            except BaseException:
                job.abort()
                raise
        return job.held_up

    def _copy_map(self) -> CopyMap | None:
        """Where lies what the job copies. Looked for before it begins, so that the first word of it is right."""
        step = self._step
        if step.goes_over:
            return None
        formats = {layer.path: layer.format for layer in step.stack if layer.path in step.layers}
        images = Images(self._connection)
        try:
            if step.way is MergeWay.PULL:
                return images.copy_map(formats, step.merged, self._cancelled)
            del formats[step.merged]
            return images.copy_map(formats, None, self._cancelled)
        except CancelledError:
            raise CancelledError(f"Stopped before merging on disk {step.target} began.") from None

    def _to_the_end(self, job: _Job, copy_map: CopyMap | None) -> None:
        pace = _Pace(is_active=self._step.goes_over)
        is_stopping = False
        while (info := job.info()) != {}:
            if self._cancelled() and not job.is_pivoted:
                is_stopping = True
                job.abort()
            elif info is not None:
                job.adjust_speed()
                how_far = merge_progress(info, copy_map)
                remark = pace.remark(how_far.total - how_far.done, time.monotonic())
                self._on_progress(replace(how_far, remark=remark))
                if job.is_ready():
                    job.pivot()
                    continue
            job.wait()
        outcome = job.outcome(self._connection)
        if outcome is _Outcome.AFTER:
            return  # also if it ended before it could be stopped
        if is_stopping and outcome is _Outcome.BEFORE:
            raise CancelledError(
                f"Stopped while merging on disk {self._step.target}: {self._what_is_left()}.",
                details=self._what_is_half_done(),
            )
        said = job.what_qemu_said()
        reason = f": {said.rstrip('.')}" if said else ""
        what_to_do = hint_for(said) or "Look into the log of QEMU on the host, then try again."
        left = self._what_is_left() if outcome is _Outcome.BEFORE else "no file was removed"
        raise SnapTreeError(
            f"QEMU gave up merging on disk {self._step.target}{reason}.",
            hint=f"{left[:1].upper()}{left[1:]}. {what_to_do}",
            details=self._what_is_half_done(),
        )

    def _what_is_left(self) -> str:
        """What becomes of a job that does not come to its end, as a clause."""
        if self._step.way is MergeWay.PULL:
            return "all layers show what they showed"
        return f"{self._step.merged} may be overwritten in part, and all that stands on it shows what it showed"

    def _what_is_half_done(self) -> str:
        """A pull adds to an image what it shows anyway; a commit changes what the lowest layer shows on its own."""
        if self._step.way is MergeWay.PULL:
            return ""
        return (
            f"{self._step.merged} has taken in a part of what is above it. That changes nothing for who stands on "
            "the layers above; what it showed by itself was to go."
        )

    def _flush(self) -> float | None:
        """Let the machine's QEMU write down all it holds of its images. It does so whenever a machine is paused.

        What lies in the host's cache is written before, where we may, so that the pause is short. Returns how many
        seconds it took; None for a machine that is paused anyway.
        """
        if self._connection.host.is_local:
            _write_cached(self._step.merged)
        with explained("letting QEMU write down what was merged"):
            if self._domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                # To libvirt it is paused already; to QEMU it can be said again, and changes nothing else.
                libvirt_qemu.qemuMonitorCommand(self._domain, '{"execute": "stop"}', 0)
                return None
            began = time.monotonic()
            self._domain.suspend()
        try:
            self._domain.resume()
        except libvirt.libvirtError as error:
            raise SnapTreeError(
                f"The machine was paused for a moment and did not go on: {error.get_error_message()}.",
                hint="All is merged and written down. Resume the machine.",
            ) from error
        return time.monotonic() - began


def _astray(what: str, found: _Found) -> SnapTreeError:
    return SnapTreeError(
        what,
        hint="No file was removed. Look at the machine before you go on.",
        details=f"found: {', '.join(found.paths)} {found.problem}".strip(),
    )


class _Outcome(Enum):
    """What a disk stands on after a job."""

    BEFORE = auto()
    AFTER = auto()
    NEITHER = auto()


class _Job:
    """A block job of QEMU's on one disk of a machine, the helper or the user's own."""

    def __init__(self, machine: Any, target: str, step: MergeLayers, bandwidth: Bandwidth) -> None:
        self._machine = machine
        self._target = target
        self._step = step
        self._bandwidth = bandwidth
        self._limit: int | None = _NOBODY_KNOWS
        self._news = threading.Event()
        self._is_over = threading.Event()
        self._said = ""
        self.is_pivoted = False
        self.held_up = 0.0
        """Seconds that it took to go over to the layer below."""

    def start(self) -> None:
        """Let QEMU begin. Raises SnapTreeError if it, or libvirt, does not want to."""
        step, target = self._step, self._target
        self._limit = self._bandwidth()
        speed = self._limit or 0
        paths = [layer.path for layer in step.stack]
        lowest = paths.index(step.layers[-1])
        with explained(f"merging on disk {step.target}"):
            if step.way is MergeWay.COMMIT:
                flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
                if step.goes_over:
                    flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
                self._machine.blockCommit(target, step.layers[-1], step.layers[0], speed, flags)
            elif lowest + 1 == len(paths):
                self._machine.blockPull(target, speed, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
            else:
                flags = libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
                self._machine.blockRebase(target, paths[lowest + 1], speed, flags)

    def info(self) -> dict[str, int] | None:
        """How far it is; empty if it is over, None if libvirt can't say just now.

        Raises SnapTreeError if the machine's QEMU is gone.
        """
        try:
            return dict(self._machine.blockJobInfo(self._target) or {})
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
                return None
            if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise SnapTreeError(
                    f"QEMU ended while it merged on disk {self._step.target}.",
                    hint="No file was removed, and no content is lost. Plan again.",
                    details=explain(error, "looking at the merge").details,
                ) from error
            raise explain(error, "looking at the merge") from error

    def is_ready(self) -> bool:
        """Whether it waits for the word that the disk may go over to the layer below."""
        if not self._step.goes_over or self.is_pivoted:
            return False
        try:
            disks = parse(self._machine.XMLDesc()).findall("devices/disk")
        except libvirt.libvirtError:
            return False  # what happened, `info` will tell
        return any(
            disk.find(f"target[@dev='{self._target}']") is not None and disk.find("mirror[@ready='yes']") is not None
            for disk in disks
        )

    def pivot(self) -> None:
        """Let the guest go over to the layer below."""
        began = time.monotonic()
        try:
            self._machine.blockJobAbort(self._target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, libvirt.VIR_ERR_OPERATION_TIMEOUT):
                self.wait()
                return  # not just now
            raise explain(error, f"going over to {self._step.merged}") from error
        self.is_pivoted = True
        self.held_up = time.monotonic() - began

    def abort(self) -> None:
        """Stop it. That it is over already, or its QEMU, is seen by what there is afterwards."""
        if self.is_pivoted:
            return
        with contextlib.suppress(libvirt.libvirtError):
            self._machine.blockJobAbort(self._target)

    def adjust_speed(self) -> None:
        """Let it be as fast as is allowed by now."""
        limit = self._bandwidth()
        if limit == self._limit:
            return
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        with contextlib.suppress(libvirt.libvirtError):  # it ends just now, or is busy: the next time then
            self._machine.blockJobSetSpeed(self._target, limit or 0, flags)
            self._limit = limit

    def outcome(self, connection: Connection) -> _Outcome:
        """What the disk stands on once it is over."""
        outcomes = {
            tuple(layer.path for layer in self._step.stack): _Outcome.BEFORE,
            tuple(layer.path for layer in self._step.stack_after): _Outcome.AFTER,
        }
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            is_told = self._is_over.is_set()
            chains = {chain.target: chain.layers for chain in live_chains(connection, self._machine)}
            outcome = outcomes.get(chains.get(self._target, ()), _Outcome.NEITHER)
            # Without an event, libvirt may be a moment behind QEMU.
            if outcome is _Outcome.AFTER or is_told or time.monotonic() >= deadline:
                return outcome
            self._is_over.wait(_POLL_SECONDS)

    # Hearing of it

    @contextlib.contextmanager
    def listening(self, connection: Connection) -> Iterator[None]:
        """Hear at once when something happens to it, and what QEMU says of a failure. Without, looking has to do."""
        handle = connection.handle
        registered: list[tuple[Callable[[int], Any], int]] = []
        with contextlib.suppress(libvirt.libvirtError):
            event = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
            number = handle.domainEventRegisterAny(self._machine, event, self._happened, None)
            registered.append((handle.domainEventDeregisterAny, number))
        with contextlib.suppress(libvirt.libvirtError):
            number = libvirt_qemu.qemuMonitorEventRegister(
                handle, self._machine, "BLOCK_JOB_COMPLETED", self._completed, None
            )
            registered.append((lambda number: libvirt_qemu.qemuMonitorEventDeregister(handle, number), number))
        try:
            yield
        finally:
            for deregister, number in registered:
                with contextlib.suppress(libvirt.libvirtError):
                    deregister(number)

    def wait(self) -> None:
        """Until something happens, or it is time to look."""
        self._news.wait(_POLL_SECONDS)
        self._news.clear()

    def what_qemu_said(self) -> str:
        """Why it failed; empty if that was not told."""
        return self._said

    # Called in libvirt's event loop, where nothing may block:

    def _happened(self, _connection: Any, _domain: Any, target: str, _type: int, status: int, _data: object) -> None:
        if target == self._target:
            if status != libvirt.VIR_DOMAIN_BLOCK_JOB_READY:
                self._is_over.set()
            self._news.set()

    def _completed(self, _connection: Any, _domain: Any, *event: Any) -> None:
        # event, seconds, microseconds, details, data
        details = json.loads(event[3] or "{}")
        if f"-{self._target}-" in details.get("device", "") and details.get("error"):
            self._said = str(details["error"])


class _Pace:
    """Notices a job that comes no nearer to its end. It is said, and never forced."""

    def __init__(self, *, is_active: bool) -> None:
        self._is_active = is_active
        self._seen: deque[tuple[float, int]] = deque()

    def remark(self, left: int, now: float) -> str:
        """Take in how many bytes are left at a time in seconds; returns what is to be said of it."""
        self._seen.append((now, left))
        while len(self._seen) > 1 and now - self._seen[1][0] >= _STALLED_SECONDS:
            self._seen.popleft()
        since, left_then = self._seen[0]
        if now - since < _STALLED_SECONDS or left < left_then:
            return ""
        if self._is_active:
            return (
                "It comes no nearer to its end: the guest writes as fast as is copied. Allow more bandwidth, let the"
                " guest write less, or cancel."
            )
        return "It comes no nearer to its end: the storage is slow, or little bandwidth is allowed."


def _identity(images: Images, path: str) -> object:
    """What tells whether two paths lead to one file, where that can be seen."""
    return images.read_image(path, "raw").identity or path


def _write_cached(path: str) -> None:
    """Let the host write down what it has in its cache of a file. What we may not open will be flushed by QEMU."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
