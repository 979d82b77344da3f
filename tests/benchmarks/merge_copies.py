"""What SnapTree's merges copy, against libvirt's own deletes of the same snapshots.

Trees of layers are made up: one or two disks, 4 to 20 snapshots, forks as reverts leave them. What a layer holds lies
anywhere on the disk in part, and in part where the machine writes again and again; how much, is drawn for each tree.
libvirt is told of the snapshots, and SnapTree reads and plans as ever, but for two things: as if this was libvirt 11.3,
and half of the machines as if they ran, in which less is possible. Then both sides' merges are carried out by QEMU, one
after the other, each on what those before left. A commit copies what its job says, a pull what its image grows by.

libvirt deletes one by one: it commits the layer above into the one that the snapshot froze, or unlinks that of a leaf
that is not in use. It refuses fork points and other snapshots on branches that are not in use; taken while the machine
was off, also those that such a branch descends from (its daemon crashes). What it refuses is not compared: of the rest,
it gets the leaves that are not in use first, then the line in use from the root up. No order is better for it: each
layer that goes is copied once at least, with what it holds itself, and so it is never copied with more than that.

Half of that, which is the aim, is out of reach on these trees: SnapTree copies 0.69 of it, and so does the best choice
of merges for each of them, searched for beside. If every layer could take in others at any time, it were 0.51: near
that come machines that are off (0.51). While one runs, libvirt merges into a layer in use only what is above it, unless
it is the active one; so what lies below a layer that stays is committed into its lowest (0.80).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
import numpy as np

from snaptree.hosts.layers import analysed
from snaptree.hosts.situation import read_situation
from snaptree.model.estate import DomainState
from snaptree.model.figures import Confidence
from snaptree.plans.intention import Delete
from snaptree.plans.plan import DeleteSnapshot, MergeLayers, MergeWay, Plan
from snaptree.plans.planner import make_plan
from tests.benchmarks.comparison import Comparison, Unit
from tests.benchmarks.estate import redefine, running_daemon, snapshot_name
from tests.images.block_jobs import Daemon, grown
from tests.images.conftest import run
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import machine_xml

AIM = 0.5

_CLUSTER = 64 << 10
_CLUSTERS = 256
"""Of a disk: 16 MiB."""
_MOST_WRITTEN = 96
"""Clusters in one layer."""
_HOT = _CLUSTERS // 8
"""Where machines write again and again."""
_REVERTS = 0.1
"""How many of a machine's changes."""
_LIBVIRT = 11_003_000


@dataclass
class History:
    """Snapshots by number, as libvirt sees them."""

    parents: dict[int, int | None]
    current: int | None
    was_running: bool
    """All snapshots were taken while the machine ran: then libvirt has recorded which layers each stands on."""

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
        children, line = self.children(number), self.line()
        if number not in line:
            return not children
        if len(children) != (0 if number == self.current else 1):
            return False
        return self.was_running or all(each in line for each in self._descendants(number))

    def _descendants(self, number: int) -> Iterator[int]:
        for child in self.children(number):
            yield child
            yield from self._descendants(child)

    def copy(self) -> History:
        return History(dict(self.parents), self.current, self.was_running)

    def delete(self, number: int) -> None:
        parent = self.parents.pop(number)
        self.parents |= dict.fromkeys(self.children(number), parent)
        if self.current == number:
            self.current = parent

    def order(self, numbers: Sequence[int], *, root_first: bool) -> list[int] | None:
        """An order in which libvirt deletes these; None if there is none."""
        left = self.copy()
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
            self.history.copy(),
            {number: list(images) for number, images in self.frozen.items()},
            list(self.active),
            dict(self.below),
        )

    def sources(self, image: str) -> str:
        """What libvirt records of a disk on this image: of a machine that runs, what that stands on too."""
        own, base = f"<source file='{self.directory / image}'/>", self.below[image]
        if not self.history.was_running:
            return own
        if base is None:
            return f"{own}<backingStore/>"
        return f"{own}<backingStore type='file'><format type='qcow2'/>{self.sources(base)}</backingStore>"

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

    snapshots: int
    """How many were deleted at once."""
    was_running: bool
    ours: int
    libvirts: int
    from_the_leaf: int
    forecast: int | None


def measure(trees: int) -> Iterator[Comparison]:
    """Yield comparisons over so many trees."""
    random = np.random.default_rng(9)
    copied: list[_Copied] = []
    not_by_libvirt, refused = 0, 0
    with running_daemon() as daemon:
        images = daemon.directory / "images"
        jobs = Daemon(images)
        try:
            while len(copied) + refused < trees:
                history, below, frozen = _grow(random)
                numbers = _choose(random, history)
                root_first, leaf_first = (history.order(numbers, root_first=way) for way in (True, False))
                if root_first is None or leaf_first is None:
                    not_by_libvirt += 1
                    continue
                stacks = _make(random, daemon, jobs, images / "ours", history, below, frozen)
                if (compared := _compare(daemon, stacks, numbers, (root_first, leaf_first))) is None:
                    refused += 1
                else:
                    copied.append(compared)
                shutil.rmtree(images / "ours")
        finally:
            jobs.close()
    what = f"{trees} deletes"
    yield _all_together(f"copied by {what}, all together", copied, AIM)
    one, several = ([each for each in copied if (each.snapshots > 1) is several] for several in (False, True))
    for those, which in ((one, "one snapshot"), (several, "several")):
        if any(each.libvirts for each in those):
            yield _all_together(f"by those of {which}", those)
    runs, off = ([each for each in copied if each.was_running is running] for running in (True, False))
    for those, which in ((runs, "machines that run"), (off, "machines that are off")):
        if any(each.libvirts for each in those):
            yield _all_together(f"by those of {which}", those)
    yield Comparison(
        "by all, if libvirt begins at the leaf",
        (sum(each.ours for each in copied),),
        (sum(each.from_the_leaf for each in copied),),
        "libvirt",
        unit=Unit.MEMORY,
    )
    where_libvirt_copies = [each for each in copied if each.libvirts]
    yield Comparison(
        "by each, where libvirt copies",
        tuple(each.ours for each in where_libvirt_copies),
        tuple(each.libvirts for each in where_libvirt_copies),
        "libvirt",
        aim=1,
        unit=Unit.MEMORY,
    )
    more = sum(each.ours > each.libvirts for each in copied)
    yield Comparison("deletes that copied more than libvirt's", (more,), aim=0, unit=Unit.COUNT)
    yield Comparison("deletes that SnapTree refused", (refused,), aim=0, unit=Unit.COUNT)
    wrong = sum(each.forecast is not None and each.forecast != each.ours for each in copied)
    unsure = sum(each.forecast is None for each in copied)
    yield Comparison("exact forecasts that QEMU did not copy to the byte", (wrong,), aim=0, unit=Unit.COUNT)
    yield Comparison("forecasts that were not exact", (unsure,), unit=Unit.COUNT)
    yield Comparison(f"others drawn, which libvirt refuses, for {what}", (not_by_libvirt,), unit=Unit.COUNT)


def _all_together(what: str, copied: Sequence[_Copied], aim: float | None = None) -> Comparison:
    ours, libvirts = sum(each.ours for each in copied), sum(each.libvirts for each in copied)
    return Comparison(what, (ours,), (libvirts,), "libvirt", aim, Unit.MEMORY)


def _grow(random: np.random.Generator) -> tuple[History, dict[int, int | None], dict[int, int]]:
    """Take snapshots, and now and then go back to one. Layers by number: what each stands on, who froze which."""
    below: dict[int, int | None] = {0: None}
    frozen: dict[int, int] = {}
    history = History({}, None, was_running=bool(random.random() < 0.5))
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
    daemon: LibvirtDaemon, stacks: Stacks, numbers: Sequence[int], orders: Sequence[Sequence[int]]
) -> _Copied | None:
    """Copy as each side does; None if SnapTree refuses."""
    plan = _plan(daemon, stacks, numbers)
    if plan.is_refused:
        return None
    counts = []
    for order in orders:
        theirs = stacks.copy(stacks.directory.with_name("theirs"))
        for number in order:
            theirs.delete_as_libvirt(number)
        shutil.rmtree(theirs.directory)
        counts.append(theirs.copied)
    stacks.carry_out(plan)
    copies = plan.forecast.copies
    forecast = copies.bytes if copies.confidence in (Confidence.EXACT, Confidence.LIVE) else None
    return _Copied(len(numbers), stacks.history.was_running, stacks.copied, counts[0], counts[1], forecast)


def _plan(daemon: LibvirtDaemon, stacks: Stacks, numbers: Sequence[int]) -> Plan:
    """Plan as SnapTree does, from what it reads of a machine that libvirt is told of; as if that were libvirt 11.3."""
    connection = daemon.connection

    def definition(images: Sequence[str]) -> str:
        return machine_xml("machine", [(stacks.directory / name, "qcow2") for name in images])

    domain = connection.handle.defineXML(definition(stacks.active))
    uuid = domain.UUIDString()
    recorded = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    history = stacks.history
    for number, images in stacks.frozen.items():
        took_over = stacks.frozen[min(children)] if (children := history.children(number)) else stacks.active
        was, overlays = recorded, ""
        for disk, (image, overlay, active) in enumerate(zip(images, took_over, stacks.active, strict=True)):
            source = f"<source file='{stacks.directory / active}'/>"
            assert source in was
            was = was.replace(source, stacks.sources(image))
            overlays += (
                f"<disk name='vd{'ab'[disk]}' snapshot='external' type='file'><driver type='qcow2'/>"
                f"<source file='{stacks.directory / overlay}'/></disk>"
            )
        redefine(
            domain, number, history.parents[number], state="disk-snapshot" if history.was_running else "shutoff",
            memory="no", disk=overlays, recorded=was, current=number == history.current,
        )  # fmt: skip
    try:
        situation = read_situation(connection, uuid)
        situation = replace(situation, layers=analysed(connection, situation.layers))
        situation = replace(
            situation,
            host=replace(situation.host, libvirt_version=_LIBVIRT, external_snapshots=True),
            domain=replace(situation.domain, state=DomainState.RUNNING if history.was_running else DomainState.OFF),
            layers=replace(situation.layers, is_running=history.was_running),
        )
        return make_plan(Delete(tuple(snapshot_name(number) for number in numbers)), situation)
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
