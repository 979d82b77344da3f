"""What SnapTree's merges copy, against libvirt's own deletes of the same snapshots; and how long, against bare jobs.

Copies: trees of layers are made up, with one or two disks, 4 to 20 snapshots, and forks as reverts leave them. What a
layer holds lies anywhere on the disk in part, and in part where the machine writes again and again: how much, is drawn
for each tree. libvirt is told of the snapshots, SnapTree reads and plans as ever; half of the machines are planned for
as if they ran, in which less is possible. Then both sides' merges are carried out by QEMU, one after the other, each on
what the one before left: a commit copies what the job says, a pull what its image grows by.

libvirt deletes one by one, by committing the layer above into the one that the snapshot froze; it refuses fork points,
and all but leaves on branches that are not in use (LIBVIRT.md, 9, as of 11.3: 9.0 can less). Its order here is leaves
first on these, and on the line in use root first. None is better for it: a layer that goes is copied at least as it is,
once, whatever it took in before; root first, that is all. From the leaf down it is what most would do by hand.

Times: our merge of a running machine's layers, as `run_plan` does it, against the same job begun through libvirt's API
and polled, on a twin of the machine.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt
import numpy as np

from snaptree.hosts.connection import Connection
from snaptree.hosts.layers import analysed
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.estate import DomainState
from snaptree.model.figures import Confidence
from snaptree.plans.intention import Delete
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import DeleteSnapshot, Layer, MergeLayers, MergeWay, Plan
from snaptree.plans.planner import make_plan
from tests.benchmarks.comparison import Comparison, Unit, in_turn
from tests.benchmarks.estate import define_machine, redefine, running_daemon, snapshot_name, write_as_guest
from tests.images.block_jobs import Daemon, grown
from tests.images.conftest import run
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import machine_xml

AIM_COPIES = 0.5
AIM_TIME = 1.05

_CLUSTER = 64 << 10
_CLUSTERS = 256
"""Of a disk: 16 MiB."""
_MOST_WRITTEN = 96
"""Clusters in one layer."""
_HOT = _CLUSTERS // 8
_REVERTS = 0.1
_POLL_SECONDS = 0.01


def measure(runs: int, trees: int, merged: int) -> Iterator[Comparison]:
    """Yield comparisons over so many trees, and for merges of 16 MiB and of `merged` MiB."""
    yield from _measure_copies(trees)
    for mebibytes in sorted({16, merged}):
        with running_daemon() as daemon:
            yield from _measure_times(daemon, runs, mebibytes)


# ---- copies ----


@dataclass
class History:
    """Snapshots by number, as libvirt sees them."""

    parents: dict[int, int | None]
    current: int | None

    def children(self, number: int | None) -> list[int]:
        return [each for each, parent in self.parents.items() if parent == number]

    def line(self) -> list[int]:
        """The snapshots that the machine descends from, the root first."""
        found: list[int] = []
        number = self.current
        while number is not None:
            found.append(number)
            number = self.parents[number]
        return found[::-1]

    def can_delete(self, number: int) -> bool:
        """Whether libvirt 11.3 does."""
        children = self.children(number)
        if number == self.current:
            return not children
        return not children or (len(children) == 1 and number in self.line())

    def delete(self, number: int) -> None:
        parent = self.parents.pop(number)
        self.parents |= dict.fromkeys(self.children(number), parent)
        if self.current == number:
            self.current = parent

    def order(self, numbers: Sequence[int], *, root_first: bool) -> list[int] | None:
        """An order in which libvirt deletes these; None if there is none."""
        left = History(dict(self.parents), self.current)
        line = [number for number in self.line() if number in numbers]
        waiting = [
            *sorted(set(numbers) - set(line), reverse=True),
            *(line if root_first else reversed(line)),
        ]
        order: list[int] = []
        while waiting:
            number = next((each for each in waiting if left.can_delete(each)), None)
            if number is None:
                return None
            left.delete(number)
            waiting.remove(number)
            order.append(number)
        return order


@dataclass
class Stacks:
    """The images of a machine in a directory, by name, and what of them was copied."""

    jobs: Daemon
    directory: Path
    history: History
    frozen: dict[int, list[str]]
    """Snapshot -> its image of each disk."""
    active: list[str]
    below: dict[str, str | None]
    copied: int = 0

    def copy(self, directory: Path) -> Stacks:
        shutil.copytree(self.directory, directory)
        return Stacks(
            self.jobs,
            directory,
            History(dict(self.history.parents), self.history.current),
            {number: list(images) for number, images in self.frozen.items()},
            list(self.active),
            dict(self.below),
        )

    def merge(self, way: MergeWay, names: Sequence[str]) -> None:
        """Merge layers, from the top down, and count what QEMU copies."""
        paths = [self.directory / name for name in names]
        top, base = names[0], names[-1]
        if way is MergeWay.PULL:
            self.copied += grown(paths[0], lambda: self.jobs.pull(paths, 0))
            self.below[top] = self.below[base]
            return
        length = self.jobs.commit(paths, 0, len(paths) - 1)
        assert length is not None
        self.copied += length
        self.below = {
            name: base if below == top else below for name, below in self.below.items() if name not in names[:-1]
        }
        for images in (self.active, *self.frozen.values()):
            images[:] = [base if name == top else name for name in images]

    def delete_as_libvirt(self, number: int) -> None:
        """As libvirt deletes a snapshot: it forgets a leaf that is not in use, and commits what is above of others."""
        images = self.frozen.pop(number)
        is_in_use = number in self.history.line()
        self.history.delete(number)
        for image in images:
            if is_in_use:
                (above,) = [name for name, below in self.below.items() if below == image]
                self.merge(MergeWay.COMMIT, (above, image))
            else:
                del self.below[image]

    def carry_out(self, plan: Plan) -> None:
        """Do what the steps of a plan copy."""
        numbers = {snapshot_name(number): number for number in self.frozen}
        for step in plan.steps:
            if isinstance(step, MergeLayers):
                self.merge(step.way, [Path(path).name for path in step.layers])
            elif isinstance(step, DeleteSnapshot):
                self.delete_as_libvirt(numbers[step.name])


@dataclass(frozen=True)
class _Copied:
    """In bytes."""

    ours: int
    libvirts: int
    from_the_leaf: int
    forecast: int | None


def _measure_copies(trees: int) -> Iterator[Comparison]:
    random = np.random.default_rng(9)
    copied: list[_Copied] = []
    not_by_libvirt = 0
    with running_daemon() as daemon:
        images = daemon.directory / "images"
        jobs = Daemon(images)
        try:
            while len(copied) < trees:
                history, below, frozen = _grow(random)
                numbers = _choose(random, history)
                root_first, leaf_first = (history.order(numbers, root_first=way) for way in (True, False))
                if root_first is None or leaf_first is None:
                    not_by_libvirt += 1
                    continue
                stacks = _make(random, daemon, jobs, images / "ours", history, below, frozen)
                is_running = bool(random.random() < 0.5)
                copied.append(_compare(daemon, stacks, numbers, root_first, leaf_first, is_running=is_running))
                shutil.rmtree(images / "ours")
        finally:
            jobs.close()
    what = f"{trees} deletes"
    ours, libvirts, from_the_leaf = (
        tuple(float(getattr(each, which)) for each in copied) for which in ("ours", "libvirts", "from_the_leaf")
    )
    yield Comparison(
        f"copied by {what}, all together", (sum(ours),), (sum(libvirts),), "libvirt", AIM_COPIES, Unit.MEMORY
    )
    yield Comparison(
        "the same, libvirt from the leaf down", (sum(ours),), (sum(from_the_leaf),), "libvirt", unit=Unit.MEMORY
    )
    pairs = [(our, theirs) for our, theirs in zip(ours, libvirts, strict=True) if theirs]
    yield Comparison(
        "copied by each, where libvirt copies",
        tuple(our for our, _ in pairs),
        tuple(theirs for _, theirs in pairs),
        "libvirt",
        aim=1,
        unit=Unit.MEMORY,
    )
    more = sum(our > theirs for our, theirs in zip(ours, libvirts, strict=True))
    yield Comparison("deletes that copied more than libvirt's", (more,), aim=0, unit=Unit.COUNT)
    wrong = sum(each.forecast is not None and each.forecast != each.ours for each in copied)
    unsure = sum(each.forecast is None for each in copied)
    yield Comparison("exact forecasts that QEMU did not copy to the byte", (wrong,), aim=0, unit=Unit.COUNT)
    yield Comparison("forecasts that were not exact", (unsure,), unit=Unit.COUNT)
    yield Comparison(f"others drawn, which libvirt refuses, for {what}", (not_by_libvirt,), unit=Unit.COUNT)


def _grow(random: np.random.Generator) -> tuple[History, dict[int, int | None], dict[int, int]]:
    """Take snapshots, and now and then go back to one. Layers by number: what each stands on, who froze which."""
    below: dict[int, int | None] = {0: None}
    frozen: dict[int, int] = {}
    history = History({}, None)
    active, layers = 0, 1
    count = int(random.integers(4, 21))
    while len(frozen) < count:
        if len(frozen) > 1 and random.random() < _REVERTS:
            del below[active]  # libvirt removes it
            history.current = int(random.integers(len(frozen)))
            below[layers] = frozen[history.current]
        else:
            number = len(frozen)
            frozen[number] = active
            history.parents[number] = history.current
            history.current = number
            below[layers] = active
        active, layers = layers, layers + 1
    return history, below, frozen


def _choose(random: np.random.Generator, history: History) -> list[int]:
    """Choose what to delete: one, some that follow each other, all the oldest, or any."""
    numbers, line = sorted(history.parents), history.line()
    first, last = sorted(random.integers(len(line), size=2).tolist())
    match random.integers(4):
        case 0:
            return [int(random.choice(numbers))]
        case 1:
            return line[first : last + 1]
        case 2:
            return line[: last + 1]
        case _:
            return [number for number in numbers if random.random() < 0.5] or [numbers[0]]


def _make(
    random: np.random.Generator,
    daemon: LibvirtDaemon,
    jobs: Daemon,
    directory: Path,
    history: History,
    below: Mapping[int, int | None],
    frozen: Mapping[int, int],
) -> Stacks:
    """Make the images of one disk or two, with data in each."""
    directory.mkdir()
    daemon.give(directory)
    hot = random.random()
    names: dict[str, str | None] = {}
    words: list[str] = []
    disks = range(int(random.integers(1, 3)))
    for disk in disks:
        for layer, base in below.items():
            name = f"disk{disk}.{layer}"
            names[name] = None if base is None else f"disk{disk}.{base}"
            backing: list[str | Path] = [] if base is None else ["-b", directory / f"disk{disk}.{base}", "-F", "qcow2"]
            run("qemu-img", "create", "-q", "-f", "qcow2", *backing, directory / name, str(_CLUSTERS * _CLUSTER))
            words += ["-c", f"open -o driver=qcow2 {directory / name}"]
            words += [word for write in _writes(random, hot, is_base=base is None) for word in ("-c", write)]
            words += ["-c", "close"]
    run("qemu-io", *words)
    for name in names:
        daemon.give(directory / name)
    return Stacks(
        jobs,
        directory,
        history,
        {number: [f"disk{disk}.{layer}" for disk in disks] for number, layer in frozen.items()},
        [f"disk{disk}.{max(below)}" for disk in disks],
        names,
    )


def _writes(random: np.random.Generator, hot: float, *, is_base: bool) -> Iterator[str]:
    """Writes of a guest, in runs: `hot` is the part of them that goes to the same eighth of the disk every time."""
    left = _CLUSTERS // 2 if is_base else int(np.exp(random.uniform(0, np.log(_MOST_WRITTEN))))
    while left > 0:
        length = min(left, int(random.integers(1, 9)))
        span = _HOT if random.random() < hot else _CLUSTERS
        start = int(random.integers(span - length + 1))
        yield f"write -q -P {random.integers(1, 256)} {start * _CLUSTER} {length * _CLUSTER}"
        left -= length


def _compare(
    daemon: LibvirtDaemon,
    stacks: Stacks,
    numbers: Sequence[int],
    root_first: Sequence[int],
    leaf_first: Sequence[int],
    *,
    is_running: bool,
) -> _Copied:
    plan = _plan(daemon, stacks, numbers, is_running=is_running)
    counts = []
    for order in (root_first, leaf_first):
        theirs = stacks.copy(stacks.directory.with_name("theirs"))
        for number in order:
            theirs.delete_as_libvirt(number)
        shutil.rmtree(theirs.directory)
        counts.append(theirs.copied)
    stacks.carry_out(plan)
    copies = plan.forecast.copies
    forecast = copies.bytes if copies.confidence in (Confidence.EXACT, Confidence.LIVE) else None
    return _Copied(stacks.copied, counts[0], counts[1], forecast)


def _plan(daemon: LibvirtDaemon, stacks: Stacks, numbers: Sequence[int], *, is_running: bool) -> Plan:
    """Plan as SnapTree does, from what it reads of a machine that libvirt is told of."""
    connection = daemon.connection

    def definition(images: Sequence[str]) -> str:
        return machine_xml("machine", [(stacks.directory / name, "qcow2") for name in images])

    domain = connection.handle.defineXML(definition(stacks.active))
    uuid = domain.UUIDString()
    recorded = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    history = stacks.history
    for number, images in stacks.frozen.items():
        took_over = stacks.frozen[min(children)] if (children := history.children(number)) else stacks.active
        disks = zip(images, took_over, stacks.active, strict=True)
        was, overlays = recorded, ""
        for disk, (image, overlay, active) in enumerate(disks):
            was = was.replace(f"{stacks.directory / active}'", f"{stacks.directory / image}'")
            overlays += (
                f"<disk name='vd{'ab'[disk]}' snapshot='external' type='file'><driver type='qcow2'/>"
                f"<source file='{stacks.directory / overlay}'/></disk>"
            )
        redefine(
            domain, number, history.parents[number], state="running" if is_running else "shutoff", memory="no",
            disk=overlays, recorded=was, current=number == history.current,
        )  # fmt: skip
    try:
        situation = read_situation(connection, uuid)
        situation = replace(situation, layers=analysed(connection, situation.layers))
        if is_running:
            situation = replace(
                situation,
                domain=replace(situation.domain, state=DomainState.RUNNING),
                layers=replace(situation.layers, is_running=True),
            )
        plan = make_plan(Delete(tuple(snapshot_name(number) for number in numbers)), situation)
        if plan.is_refused:
            raise RuntimeError(f"refused: {plan.refusals}")
        return plan
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)


# ---- times ----


class _Merging:
    """A running machine, of which the same layer is merged again and again. Subclasses say how."""

    def __init__(self, daemon: LibvirtDaemon, name: str, way: MergeWay, mebibytes: int) -> None:
        self._daemon = daemon
        self._way = way
        self._mebibytes = mebibytes
        self.domain = define_machine(daemon, name)
        self.domain.create()
        if way is MergeWay.PULL:
            write_as_guest(self.domain, mebibytes)
        self._cycles = 0

    def cycle(self) -> tuple[float, float]:
        """Seconds that a merge takes, and what belongs to it."""
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
    """By our runner: a delete's plan; of a pull only the merge, since no plan would choose it here."""

    def __init__(self, daemon: LibvirtDaemon, way: MergeWay, mebibytes: int) -> None:
        super().__init__(daemon, f"o{way.value}", way, mebibytes)
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
    """By libvirt's API alone."""

    def __init__(self, daemon: LibvirtDaemon, way: MergeWay, mebibytes: int) -> None:
        super().__init__(daemon, f"b{way.value}", way, mebibytes)

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
        seconds = time.perf_counter() - began
        return seconds, seconds


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


def _measure_times(daemon: LibvirtDaemon, runs: int, mebibytes: int) -> Iterator[Comparison]:
    aim = AIM_TIME if mebibytes >= 512 else None
    for way in MergeWay:
        ours, bare = _Ours(daemon, way, mebibytes), _Bare(daemon, way, mebibytes)
        try:
            our_samples, bare_samples = in_turn(ours.cycle, bare.cycle, runs)
        finally:
            ours.close()
            bare.close()
        peer = tuple(seconds for seconds, _ in bare_samples)
        what = f"{way.value} {mebibytes} MiB, running"
        merges, wholes = zip(*our_samples, strict=True)
        yield Comparison(what, merges, peer, "the bare job", aim)
        if way is MergeWay.COMMIT:
            yield Comparison(f"{what}: with records and files", wholes, peer, "the bare job", aim)
