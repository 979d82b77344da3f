"""Take, revert and delete by our runner, against virsh doing the same to a twin of the machine.

Both are connected already: virsh is its own shell, reading commands from a pipe. What SnapTree does before, reading
the situation and planning, is counted apart: it is what the user looks at before he says yes. Our take also keeps a
picture of the screen, and notes in the snapshot who took it: three commands more for virsh, and compared, too.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Capture, Delete, Intention, Revert, Take
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import StateAfter
from snaptree.plans.planner import make_plan
from tests.benchmarks.comparison import Comparison, in_turn
from tests.benchmarks.estate import define_machine, running_daemon, write_as_guest
from tests.kit.daemon import LibvirtDaemon

AIM = 1.05

Seconds = dict[str, float]
"""By step: what one cycle took."""


@dataclass(frozen=True)
class Kind:
    """A kind of snapshot, and the machine it is taken of."""

    name: str
    capture: Capture
    running: bool
    merged: int = 0
    """MiB that the guest writes after the snapshot, which the delete then has to merge."""

    @property
    def is_external(self) -> bool:
        return self.capture is Capture.DISKS


class Virsh:
    """virsh's shell, kept open."""

    def __init__(self, uri: str) -> None:
        self._process = subprocess.Popen(
            ["virsh", "--quiet", "--connect", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.run("uri")

    def run(self, command: str) -> str:
        """Have a command done, and return what it printed. Raises RuntimeError with that if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The echo of the command has the quotes, its output has not.
        self._process.stdin.write(f"{command}\necho 'that is' 'done'\n".encode())
        self._process.stdin.flush()
        printed = b""
        while b"that is done" not in printed:
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                raise RuntimeError(f"virsh ended: {printed.decode()}")
            printed += part
        if b"error:" in printed:
            raise RuntimeError(f"virsh {command}: {printed.decode()}")
        return printed.decode()

    def close(self) -> None:
        self._process.communicate(b"quit\n")


@contextmanager
def _timed(seconds: Seconds, step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began


class _Side:
    """One cycle on one machine: take, revert if libvirt can, fill, delete. Subclasses say how."""

    def __init__(self, daemon: LibvirtDaemon, kind: Kind, name: str, *, can_revert: bool) -> None:
        self.kind = kind
        self._name = name
        self._can_revert = can_revert
        self._cycles = 0
        self.domain = define_machine(daemon, name)
        if kind.running:
            self.domain.create()

    def cycle(self) -> Seconds:
        self._cycles += 1
        seconds: Seconds = {}
        snapshot = f"before-{self._cycles}"
        self.take(snapshot, seconds)
        if self._can_revert:
            self.revert(snapshot, seconds)
        if self.kind.merged:
            write_as_guest(self.domain, self.kind.merged)
        self.delete(snapshot, seconds)
        return seconds

    def take(self, snapshot: str, seconds: Seconds) -> None:
        raise NotImplementedError

    def revert(self, snapshot: str, seconds: Seconds) -> None:
        raise NotImplementedError

    def delete(self, snapshot: str, seconds: Seconds) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self.domain.isActive():
            self.domain.destroy()


class _Ours(_Side):
    """By our runner, with a journal, as the window and the terminal do it."""

    def __init__(self, daemon: LibvirtDaemon, kind: Kind, *, can_revert: bool) -> None:
        super().__init__(daemon, kind, "ours", can_revert=can_revert)
        self._ours = Connection(daemon.uri)
        self._ours.open()
        self._journal = Journal(daemon.directory / "journal.sqlite")

    def take(self, snapshot: str, seconds: Seconds) -> None:
        self._do("take", Take(name=snapshot, capture=self.kind.capture), seconds)

    def revert(self, snapshot: str, seconds: Seconds) -> None:
        after = StateAfter.RUNNING if self.kind.running else StateAfter.AS_CAPTURED
        self._do("revert", Revert(snapshot, take_safety_snapshot=False, state_after=after), seconds)

    def delete(self, snapshot: str, seconds: Seconds) -> None:
        self._do("delete", Delete((snapshot,)), seconds)

    def _do(self, step: str, intention: Intention, seconds: Seconds) -> None:
        with _timed(seconds, "plan"):
            plan = make_plan(intention, read_situation(self._ours, self.domain.UUIDString()))
        with _timed(seconds, step):
            operation = run_plan(self._ours, plan, journal=self._journal)
        if operation.state is not OperationState.DONE:
            raise RuntimeError(f"{step}: {operation.error}")

    def close(self) -> None:
        super().close()
        self._ours.close()
        self._journal.close()


class _Virshs(_Side):
    """By virsh."""

    def __init__(self, daemon: LibvirtDaemon, kind: Kind, *, can_revert: bool) -> None:
        super().__init__(daemon, kind, "virshs", can_revert=can_revert)
        self._virsh = Virsh(daemon.uri)
        self._picture, self._xml = daemon.directory / "picture", daemon.directory / "snapshot.xml"

    def take(self, snapshot: str, seconds: Seconds) -> None:
        how = "--disk-only --atomic" if self.kind.is_external else ""
        if self.kind.running:
            self._do("picture", f"screenshot {self._name} {self._picture}", seconds)
        self._do("take", f"snapshot-create-as {self._name} {snapshot} {how}", seconds)
        with _timed(seconds, "note"):
            printed = self._virsh.run(f"snapshot-dumpxml {self._name} {snapshot}")
            self._xml.write_text(printed[printed.index("<") : printed.rindex(">") + 1], encoding="utf-8")
            self._virsh.run(f"snapshot-create {self._name} {self._xml} --redefine --current")

    def revert(self, snapshot: str, seconds: Seconds) -> None:
        how = "--running" if self.kind.running else ""
        self._do("revert", f"snapshot-revert {self._name} {snapshot} {how}", seconds)

    def delete(self, snapshot: str, seconds: Seconds) -> None:
        self._do("delete", f"snapshot-delete {self._name} {snapshot}", seconds)

    def _do(self, step: str, command: str, seconds: Seconds) -> None:
        with _timed(seconds, step):
            self._virsh.run(command)

    def close(self) -> None:
        super().close()
        self._virsh.close()


def measure(runs: int, merged: int) -> Iterator[Comparison]:
    """Yield a comparison for each action on each kind of snapshot. `merged` is the size of merges in MiB."""
    for kind in (
        Kind("internal, off", Capture.INTERNAL, running=False),
        Kind("internal with memory", Capture.INTERNAL, running=True),
        Kind("external, running", Capture.DISKS, running=True, merged=merged),
    ):
        # A daemon for each: what one kind leaves behind must not slow the next.
        with running_daemon() as daemon:
            yield from _compare(daemon, kind, runs)


def _compare(daemon: LibvirtDaemon, kind: Kind, runs: int) -> Iterator[Comparison]:
    can_revert = not kind.is_external or daemon.connection.host.external_snapshots
    ours, virshs = _Ours(daemon, kind, can_revert=can_revert), _Virshs(daemon, kind, can_revert=can_revert)
    try:
        our_cycles, virsh_cycles = in_turn(ours.cycle, virshs.cycle, runs)
    finally:
        ours.close()
        virshs.close()
    for step in ("take", "revert", "delete"):
        if step in our_cycles[0]:
            merge = f", {kind.merged} MiB to merge" if step == "delete" and kind.merged else ""
            yield Comparison(
                what=f"{step} ({kind.name}{merge})",
                ours=tuple(cycle[step] for cycle in our_cycles),
                peer=tuple(cycle[step] for cycle in virsh_cycles),
                peer_name="virsh",
                aim=AIM,
            )
    yield Comparison(
        what=f"take, with a picture and a note ({kind.name})",
        ours=tuple(cycle["take"] for cycle in our_cycles),
        peer=tuple(cycle["take"] + cycle["note"] + cycle.get("picture", 0.0) for cycle in virsh_cycles),
        peer_name="virsh",
        aim=AIM,
    )
    steps = len(our_cycles[0]) - 1
    yield Comparison(
        what=f"reading and planning, each ({kind.name})", ours=tuple(cycle["plan"] / steps for cycle in our_cycles)
    )
