"""Cold start to a painted window and peak memory, against virt-manager on the same estate.

"Cold" is a new process; the files that it reads are in the kernel's cache, for both. Both run on an X server of ours,
and are judged by its screen alone: when something was first painted, and when it first looked as it did in the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.comparison import Comparison, Unit, in_turn
from tests.benchmarks.estate import add_internal, running_daemon
from tests.benchmarks.screen import Appearance, Screen, own_screen
from tests.kit.daemon import LibvirtDaemon

AIM = 0.5

_CHECKOUT = Path(__file__).parents[2]
_PYTHON_OF_VIRT_MANAGER = "/usr/bin/python3"


def missing() -> str:
    """What this can't be measured without, in words; empty if it can."""
    return "" if shutil.which("Xvfb") else "Xvfb is not installed"


def virt_manager_version() -> str | None:
    """The version of the peer; None if it is not installed."""
    program = shutil.which("virt-manager")
    if program is None:
        return None
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def measure(runs: int, machines: int, snapshots_each: int, sizes: tuple[int, ...]) -> Iterator[Comparison]:
    """Yield comparisons for an estate of so many machines, and for one machine with its snapshots on screen."""
    with running_daemon() as daemon:
        for number in range(machines):
            add_internal(daemon, f"machine-{number:03}", snapshots_each)
        peer = ["virt-manager", "--no-fork", "--connect", daemon.uri]
        looks = _Looks(f"{machines} machines with {machines * snapshots_each:,} snapshots", daemon, peer, runs)
        yield looks.compare("first paint", lambda look: look.first_paint)
        yield looks.compare("machines listed", lambda look: look.listed)
        # virt-manager has nothing more to show; SnapTree has the costs of everything in sight.
        yield looks.compare("all on screen", lambda look: look.complete, aim=None)
        yield looks.compare("peak memory", lambda look: look.peak_memory, unit=Unit.MEMORY)
    for size in sizes:
        with running_daemon() as daemon:
            add_internal(daemon, "many", size)
            peer = [_PYTHON_OF_VIRT_MANAGER, str(Path(__file__).with_name("virt_manager.py"))]
            peer += ["--no-fork", "--connect", daemon.uri, "--show-domain-editor", "many"]
            looks = _Looks(f"a machine with {size:,} snapshots", daemon, peer, runs)
            yield looks.compare("all on screen", lambda look: look.complete)
            yield looks.compare("peak memory", lambda look: look.peak_memory, unit=Unit.MEMORY)


class _Looks:
    """What both programs looked like when they came up on a host."""

    def __init__(self, estate: str, daemon: LibvirtDaemon, peer: list[str], runs: int) -> None:
        self._estate = estate
        self._ours: list[Appearance]
        self._peers: list[Appearance] = []
        ours = [sys.executable, "-m", "snaptree", "--connect", daemon.uri]
        with own_screen() as screen, _environment(screen) as environment:
            if virt_manager_version() is None:
                self._ours, _ = in_turn(lambda: screen.watch(ours, environment), lambda: None, runs)
            else:
                self._ours, self._peers = in_turn(
                    lambda: screen.watch(ours, environment), lambda: screen.watch(peer, environment), runs
                )

    def compare(
        self,
        what: str,
        figure: Callable[[Appearance], float],
        *,
        aim: float | None = AIM,
        unit: Unit = Unit.TIME,
    ) -> Comparison:
        return Comparison(
            f"{self._estate}: {what}",
            ours=tuple(map(figure, self._ours)),
            peer=tuple(map(figure, self._peers)),
            peer_name="virt-manager",
            aim=aim if self._peers else None,
            unit=unit,
        )


@contextlib.contextmanager
def _environment(screen: Screen) -> Iterator[dict[str, str]]:
    """A user's session with nothing in it but our screen and a message bus of its own, which virt-manager wants."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="snaptree-benchmark-home-"))
        kept = ("PATH", "LANG", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {"HOME": home, "XDG_RUNTIME_DIR": home, "DISPLAY": screen.display, "PYTHONPATH": str(_CHECKOUT)}
        # dconf is no part of the comparison.
        environment["GSETTINGS_BACKEND"] = "memory"
        if shutil.which("dbus-daemon"):
            bus = subprocess.Popen(
                ["dbus-daemon", "--session", "--nofork", "--print-address"],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            stack.enter_context(bus)
            stack.callback(bus.terminate)
            assert bus.stdout is not None
            environment["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
        yield environment
