"""How long our merges of a running machine's layers take, against the same block jobs begun through libvirt's API.

Ours is what `run_plan` does: it looks at everything before and after, listens, and lets QEMU flush, without which a
pull is not safe from a crash. The bare job is begun and polled on a twin of the machine, and nothing is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Delete
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Layer, MergeLayers, MergeWay
from snaptree.plans.planner import make_plan
from tests.benchmarks.comparison import Comparison, in_turn
from tests.benchmarks.estate import define_machine, running_daemon, write_as_guest
from tests.kit.daemon import LibvirtDaemon

AIM = 1.05
"""Of merges of 512 MiB and more."""

_POLL_SECONDS = 0.01


def measure(runs: int, mebibytes: int) -> Iterator[Comparison]:
    """Yield comparisons for a commit and a pull of so many MiB."""
    for way in MergeWay:
        with running_daemon() as daemon:
            yield from _measure(daemon, way, runs, mebibytes)


class _Merging:
    """A running machine, of which the same layer is merged again and again. Subclasses say how."""

    def __init__(self, daemon: LibvirtDaemon, name: str, way: MergeWay, mebibytes: int) -> None:
        self._daemon = daemon
        self._way = way
        self._mebibytes = mebibytes
        self.domain = define_machine(daemon, name)
        self.domain.create()
        # More below than above, or there were nothing to pull, or a plan would not choose to commit.
        write_as_guest(self.domain, mebibytes if way is MergeWay.PULL else mebibytes + 8)
        self._cycles = 0

    def cycle(self) -> tuple[float, float]:
        """Seconds that the merge takes; and that it takes with what comes next: see the subclasses."""
        self._cycles += 1
        snapshot = f"before-{self._cycles}"
        before = self._active()
        self.domain.snapshotCreateXML(
            f"<domainsnapshot><name>{snapshot}</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        )
        overlay = self._active()
        if self._way is MergeWay.COMMIT:
            write_as_guest(self.domain, self._mebibytes)
        seconds = self.merge(snapshot, overlay, before)
        if snapshot in self.domain.snapshotListNames():
            self.domain.snapshotLookupByName(snapshot).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
        (overlay if self._way is MergeWay.COMMIT else before).unlink(missing_ok=True)
        return seconds

    def merge(self, snapshot: str, overlay: Path, base: Path) -> tuple[float, float]:
        raise NotImplementedError

    def _active(self) -> Path:
        return Path(self._read()[0])

    def _read(self) -> tuple[str, ...]:
        (chain,) = read_situation(self._daemon.connection, self.domain.UUIDString()).layers.chains
        return chain.layers

    def close(self) -> None:
        self.domain.destroy()


class _Ours(_Merging):
    """By our runner: a delete's plan; of a pull only the merge, since no plan would choose it here.

    What comes next are libvirt's records and the files.
    """

    def __init__(self, daemon: LibvirtDaemon, way: MergeWay, mebibytes: int) -> None:
        super().__init__(daemon, "ours", way, mebibytes)
        self._ours = Connection(daemon.uri)
        self._ours.open()

    def merge(self, snapshot: str, overlay: Path, base: Path) -> tuple[float, float]:
        situation = read_situation(self._ours, self.domain.UUIDString())
        plan = make_plan(Delete((snapshot,), by_own_jobs=True), situation)
        if self._way is MergeWay.PULL:
            layers = (str(overlay), str(base))
            stack = tuple(Layer(path, "qcow2") for path in layers)
            plan = replace(plan, steps=(MergeLayers("vda", MergeWay.PULL, layers, stack, is_live=True),), refusals=())
        assert isinstance(plan.steps[0], MergeLayers)
        assert plan.steps[0].way is self._way
        merged: list[float] = []

        def note(operation: Operation) -> None:
            if operation.steps_done and not merged:
                merged.append(time.perf_counter())

        began = time.perf_counter()
        operation = run_plan(self._ours, plan, on_progress=note)
        ended = time.perf_counter()
        if operation.state is not OperationState.DONE:
            raise RuntimeError(f"{operation.error}")
        return merged[0] - began, ended - began

    def close(self) -> None:
        super().close()
        self._ours.close()


class _Bare(_Merging):
    """By libvirt's API alone. What comes next is what our merge includes: QEMU is made to write down what it holds."""

    def merge(self, snapshot: str, overlay: Path, base: Path) -> tuple[float, float]:
        began = time.perf_counter()
        if self._way is MergeWay.PULL:
            self.domain.blockPull("vda", 0, 0)
            while self.domain.blockJobInfo("vda"):
                time.sleep(_POLL_SECONDS)
        else:
            self.domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
            while not _pivoted(self.domain):
                time.sleep(_POLL_SECONDS)
        merged = time.perf_counter()
        self.domain.suspend()
        self.domain.resume()
        return merged - began, time.perf_counter() - began


def _pivoted(domain: Any) -> bool:
    info = domain.blockJobInfo("vda")
    if info["cur"] < info["end"]:
        return False
    try:
        domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
            raise
        return False  # it is not ready yet
    return True


def _measure(daemon: LibvirtDaemon, way: MergeWay, runs: int, mebibytes: int) -> Iterator[Comparison]:
    aim = AIM if mebibytes >= 512 else None
    ours, bare = _Ours(daemon, way, mebibytes), _Bare(daemon, "bare", way, mebibytes)
    try:
        our_samples, bare_samples = in_turn(ours.cycle, bare.cycle, runs)
    finally:
        ours.close()
        bare.close()
    merges, wholes = zip(*our_samples, strict=True)
    jobs, flushed = zip(*bare_samples, strict=True)
    what = f"{way.value} of {mebibytes} MiB, running"
    yield Comparison(what, merges, jobs, "the bare job", aim)
    yield Comparison(what, merges, flushed, "flushed too", aim)
    if way is MergeWay.COMMIT:
        yield Comparison("with records and files", wholes, flushed, "flushed too")
