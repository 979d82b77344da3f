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
        estate = f"{machines} machines with {machines * snapshots_each:,} snapshots"
        yield from _compare(estate, daemon, ["virt-manager", "--no-fork", "--connect", daemon.uri], runs)
    for size in sizes:
        with running_daemon() as daemon:
            add_internal(daemon, "many", size)
            peer = [_PYTHON_OF_VIRT_MANAGER, str(Path(__file__).with_name("virt_manager.py"))]
            peer += ["--no-fork", "--connect", daemon.uri, "--show-domain-editor", "many"]
            yield from _compare(f"a machine with {size:,} snapshots", daemon, peer, runs)


def _compare(estate: str, daemon: LibvirtDaemon, peer: list[str], runs: int) -> Iterator[Comparison]:
    ours = [sys.executable, "-m", "snaptree", "--connect", daemon.uri]
    our_looks: list[Appearance]
    peer_looks: list[Appearance] = []
    with own_screen() as screen, _environment(screen) as environment:

        def look(command: list[str]) -> Callable[[], Appearance]:
            return lambda: screen.watch(command, environment)

        if virt_manager_version() is None:
            our_looks, _ = in_turn(look(ours), lambda: None, runs)
        else:
            our_looks, peer_looks = in_turn(look(ours), look(peer), runs)

    def comparison(what: str, figure: Callable[[Appearance], float], unit: Unit = Unit.TIME) -> Comparison:
        return Comparison(
            f"{estate}: {what}",
            tuple(map(figure, our_looks)),
            tuple(map(figure, peer_looks)),
            "virt-manager",
            AIM if peer_looks else None,
            unit,
        )

    yield comparison("first paint", lambda look: look.first_paint)
    yield comparison("all on screen", lambda look: look.complete)
    yield comparison("peak memory", lambda look: look.peak_memory, Unit.MEMORY)


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
