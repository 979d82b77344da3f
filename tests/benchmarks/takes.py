"""What taking a snapshot does to a real guest, beside virsh doing the same to it; and how well that was foretold.

That a guest stands still is seen by somebody else than who takes: by libvirt's events, over a connection of its own.
That its file systems stand still is seen by the guest itself: it writes all the time, and keeps the longest time
between two writes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Final

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.group_running import run_group
from snaptree.hosts.journal import Journal
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.group_planning import plan_group_take
from snaptree.plans.intention import Capture, Delete, Intention, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Freeze, Plan
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from tests.benchmarks.change import Virsh
from tests.benchmarks.comparison import Comparison, Unit, in_turn
from tests.benchmarks.estate import running_daemon
from tests.kit.daemon import LibvirtDaemon
from tests.kit.guest import Guest, make_guest

AIM: Final = 1.05
ERROR_AIM: Final = 0.25

_HEARD_WITHIN_SECONDS: Final = 10.0
_MOST_FILLED: Final = 32
"""MiB of the guest's RAM: as much as it has free, and more than what it holds otherwise."""

# The guest's clock has hundredths of a second.
_START_WATCHING: Final = (
    "touch /run/watching; ("
    "clock() { read up _ </proc/uptime; up=${up%.*}${up#*.}; }; "
    "clock; last=$up; longest=0; "
    "while [ -e /run/watching ]; do "
    "echo >/disk/watched; sync /disk/watched; clock; "
    "[ $((up - last)) -le $longest ] || longest=$((up - last)); last=$up; "
    "done; echo $longest >/run/longest) >/dev/null 2>&1 & echo $! >/run/watcher"
)
_STOP_WATCHING: Final = "rm /run/watching; while [ -e /proc/$(cat /run/watcher) ]; do :; done; cat /run/longest"


class _Pauses:
    """Hears how long a guest stands still."""

    def __init__(self, uri: str, guest: Guest) -> None:
        self._connection = Connection(uri)
        self._connection.open()
        self._connection.handle.domainEventRegisterAny(
            self._connection.domain(guest.uuid), libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._hear, None
        )
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._since: float | None = None
        self._pauses: list[float] = []

    def during(self, take: Callable[[], None]) -> float:
        """Seconds in all while a snapshot with memory is taken. Fails if no pause is heard of."""
        with self._changed:
            self._pauses.clear()
        take()
        with self._changed:
            heard = self._changed.wait_for(lambda: self._pauses and self._since is None, _HEARD_WITHIN_SECONDS)
            assert heard, "nothing was heard of a pause"
            return sum(self._pauses)

    def _hear(self, _connection: Any, _domain: Any, event: int, _detail: int, _data: object) -> None:
        now = time.perf_counter()
        with self._changed:
            if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
                self._since = now
            elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._since is not None:
                self._pauses.append(now - self._since)
                self._since = None
            self._changed.notify_all()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _watching(guest: Guest, longest: list[float]) -> Iterator[None]:
    """Have a guest watch how long it can't write, and add that to a list, in seconds."""
    guest.shell(_START_WATCHING)
    yield
    guest.wait_for_writes()
    longest.append(int(guest.shell(_STOP_WATCHING)) / 100)


class _Ours:
    """By our runner, with a journal, as the window and the terminal do it."""

    def __init__(self, daemon: LibvirtDaemon) -> None:
        self._connection = Connection(daemon.uri)
        self._connection.open()
        self._journal = Journal(daemon.directory / "journal.sqlite3")

    def situation(self, guest: Guest) -> Situation:
        speed = self._journal.speed(self._connection.uri)
        return replace(read_situation(self._connection, guest.uuid), speed=speed)

    def plan(self, guest: Guest, intention: Intention) -> Plan:
        plan = make_plan(intention, self.situation(guest))
        assert not plan.is_refused, plan.refusals
        return plan

    def run(self, plan: Plan) -> Operation:
        operation = run_plan(self._connection, plan, journal=self._journal)
        if operation.state is not OperationState.DONE:
            raise RuntimeError(f"{operation.error}")
        return operation

    def take(self, guest: Guest, intention: Take) -> Operation:
        return self.run(self.plan(guest, intention))

    def take_together(self, guests: Sequence[Guest], intention: Take) -> None:
        plan = plan_group_take(intention, [self.situation(guest) for guest in guests])
        outcome = run_group(self._connection, plan, journal=self._journal)
        if outcome.error is not None:
            raise outcome.error

    def delete_all(self, guest: Guest) -> None:
        if names := tuple(guest.tree().snapshots):
            self.run(self.plan(guest, Delete(names)))

    def close(self) -> None:
        self._journal.close()
        self._connection.close()


@dataclass(frozen=True)
class _Kind:
    """A kind of snapshot, and virsh's words for it: `{}` stands for a new file's path."""

    name: str
    take: Take
    virsh: str


_WITH_MEMORY: Final = (
    _Kind("with memory, external", Take(capture=Capture.DISKS_AND_MEMORY), "--memspec file={},snapshot=external"),
    _Kind("live", Take(capture=Capture.DISKS_AND_MEMORY, live=True), "--live --memspec file={},snapshot=external"),
    _Kind("with memory, internal", Take(capture=Capture.INTERNAL), ""),
)
_FROZEN: Final = Take(capture=Capture.DISKS, quiesce=Freeze.REQUIRED)
_numbers: Final = count(1)
"""Of names, new each time: which of two files is left of a delete is a matter of what they hold."""


def _new_name() -> str:
    return f"s{next(_numbers)}"


def measure(runs: int, takes: int) -> Iterator[Comparison]:
    """Yield how long guests stand still, and the errors of the forecasts of so many takes."""
    with running_daemon() as daemon, ExitStack() as stack:
        ours, virsh = _Ours(daemon), Virsh(daemon.uri)
        stack.callback(ours.close)
        stack.callback(virsh.close)
        guest = make_guest(daemon, "first")
        pauses = _Pauses(daemon.uri, guest)
        stack.callback(pauses.close)
        for kind in _WITH_MEMORY:
            yield _pause(kind, guest, pauses, ours, virsh, runs)
        yield from _forecasts(guest, ours, takes)
        yield _frozen("frozen, disks", [guest], ours, virsh, runs)
        yield _frozen("frozen, disks of two together", [guest, make_guest(daemon, "second")], ours, virsh, runs)


def _pause(kind: _Kind, guest: Guest, pauses: _Pauses, ours: _Ours, virsh: Virsh, runs: int) -> Comparison:
    def by_us(name: str) -> None:
        ours.take(guest, replace(kind.take, name=name))

    def by_virsh(name: str) -> None:
        virsh.run(f"snapshot-create-as {guest.name} {name} {kind.virsh.format(guest.directory / name)}")

    def once(take: Callable[[str], None]) -> float:
        paused = pauses.during(partial(take, _new_name()))
        ours.delete_all(guest)
        return paused

    our_pauses, virsh_pauses = in_turn(partial(once, by_us), partial(once, by_virsh), runs)
    return Comparison(f"pause, {kind.name}", tuple(our_pauses), tuple(virsh_pauses), "virsh", AIM)


def _frozen(what: str, guests: Sequence[Guest], ours: _Ours, virsh: Virsh, runs: int) -> Comparison:
    """The longest time for which one of the guests could not write."""

    def by_us(name: str) -> None:
        take = replace(_FROZEN, name=name)
        if len(guests) > 1:
            ours.take_together(guests, take)
        else:
            ours.take(guests[0], take)

    def by_virsh(name: str) -> None:
        for guest in guests:
            virsh.run(f"domfsfreeze {guest.name}")
        for guest in guests:
            virsh.run(f"snapshot-create-as {guest.name} {name} --disk-only --atomic")
        for guest in guests:
            virsh.run(f"domfsthaw {guest.name}")

    def once(take: Callable[[str], None]) -> float:
        longest: list[float] = []
        with ExitStack() as watching:
            for guest in guests:
                watching.enter_context(_watching(guest, longest))
            take(_new_name())
        for guest in guests:
            ours.delete_all(guest)
        return max(longest)

    our_times, virsh_times = in_turn(partial(once, by_us), partial(once, by_virsh), runs)
    return Comparison(what, tuple(our_times), tuple(virsh_times), "virsh")


def _forecasts(guest: Guest, ours: _Ours, takes: int) -> Iterator[Comparison]:
    """Foretell takes of a guest of which always another part of the RAM is filled; once of each kind to learn from."""
    chosen = random.Random(1)
    bytes_wrong: list[float] = []
    pauses_wrong: list[float] = []
    for number in range(takes + len(_WITH_MEMORY)):
        filled = chosen.randint(1, _MOST_FILLED)
        guest.shell(f"dd if=/dev/urandom of=/run/filled bs=1M count={filled} 2>/dev/null; sync")
        kind = _WITH_MEMORY[number % len(_WITH_MEMORY)]
        plan = ours.plan(guest, replace(kind.take, name=_new_name()))
        impact = ours.run(plan).impact
        ours.delete_all(guest)
        if number < len(_WITH_MEMORY):
            continue
        assert impact is not None
        bytes_wrong.append(_error(plan.forecast.likely_extra, impact.wrote))
        pauses_wrong.append(_error(plan.forecast.pause_seconds, impact.paused))
    yield Comparison(f"error of forecast bytes, {takes} takes", tuple(bytes_wrong), aim=ERROR_AIM, unit=Unit.SHARE)
    yield Comparison(f"error of forecast pauses, {takes} takes", tuple(pauses_wrong), aim=ERROR_AIM, unit=Unit.SHARE)


def _error(foretold: float | None, came: float | None) -> float:
    assert foretold is not None
    assert came
    return abs(foretold - came) / came
