"""SnapTree beside virsh and virt-manager, in one run: `packaging/bench`, or `python -m tests.benchmarks`.

Figures are minimum / median / maximum. Ratios are taken between neighbours in time, because the computer may be busy
with other things; they are what counts. Nothing here passes or fails: the aims stand beside the ratios.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tests.benchmarks.comparison import Comparison, print_table, say


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and how often."""

    runs: int = 5
    snapshots: tuple[int, ...] = (1_000, 5_000)
    """Of one machine."""
    machines: int = 300
    snapshots_each: int = 34
    merged: int = 512
    """MiB."""
    disk: int = 100
    """GiB, of the images that are analysed."""
    trees: int = 200
    """Of layers, from each of which snapshots are deleted."""
    layers: int = 41
    """Of a line of automatic snapshots that is pruned."""
    takes: int = 30
    """With memory, that are forecast."""


QUICK = Sizes(runs=1, snapshots=(100,), machines=10, snapshots_each=10, merged=16, disk=1, trees=8, layers=12, takes=3)


def _show(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import show

    return show.measure(sizes.runs, sizes.snapshots)


def _stalls(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import stalls

    return stalls.measure(sizes.runs, sizes.machines, sizes.snapshots_each, sizes.merged)


def _change(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import change

    return change.measure(sizes.runs, sizes.merged)


def _preview(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import preview

    return preview.measure(sizes.runs, sizes.snapshots)


def _plans(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import plans

    return plans.measure(sizes.runs, sizes.machines, sizes.snapshots_each)


def _merges(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import merge_copies, merge_times

    yield from merge_copies.measure(sizes.trees)
    for mebibytes in sorted({16, sizes.merged}):
        yield from merge_times.measure(sizes.runs, mebibytes)


def _prunes(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import prunes

    return prunes.measure(min(sizes.runs, 3), sizes.layers, max(1, sizes.merged // 64))


def _takes(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import takes

    return takes.measure(sizes.runs, sizes.takes)


def _costs(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import costs

    return costs.measure(sizes.runs, sizes.disk)


def _far(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import far

    return far.measure(sizes.runs, sizes.disk)


def _start(sizes: Sizes) -> Iterable[Comparison]:
    from tests.benchmarks import start

    if why := start.missing():
        say(f"Start and memory were not measured: {why}.")
        return []
    if start.virt_manager_version() is None:
        say("virt-manager is not installed: start and memory are measured without it (packaging/bench --help).")
    return start.measure(sizes.runs, sizes.machines, sizes.snapshots_each, sizes.snapshots)


BENCHES: dict[str, tuple[str, Callable[[Sizes], Iterable[Comparison]]]] = {
    "show": ("Load and show one machine", _show),
    "stalls": ("The window's longest stalls", _stalls),
    "change": ("Take, revert and delete, connected already", _change),
    "preview": ("What a prune would take, while a slider moves", _preview),
    "plans": ("Planning a prune", _plans),
    "merges": ("What merges copy, and how long they take", _merges),
    "prunes": ("Pruning a long line of snapshots", _prunes),
    "takes": ("What taking does to a guest, and how well that is forecast", _takes),
    "costs": ("What layers hold, from their tables", _costs),
    "far": ("What layers hold, over a link of 20 ms", _far),
    "start": ("Cold start and peak memory", _start),
}


def main() -> None:
    options = _arguments()
    sizes = QUICK if options.quick else Sizes()
    if options.runs:
        sizes = replace(sizes, runs=options.runs)
    if options.snapshots:
        sizes = replace(sizes, snapshots=tuple(options.snapshots))
    with tempfile.TemporaryDirectory(prefix="snaptree-benchmark-") as home:
        _set_up(home)
        say(_versions())
        for name in options.benches or BENCHES:
            title, measure = BENCHES[name]
            say(f"{title} ...")
            if comparisons := list(measure(sizes)):
                print_table(title, comparisons)
        gc.collect()  # Qt's settings are written when they are let go of: not into a directory that is gone
        say(f"Load at the end, of {os.cpu_count()} processors: {os.getloadavg()[0]:.1f}. Ratios hold, times do not.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packaging/bench", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"{', '.join(BENCHES)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one run, to see that all of it works")
    parser.add_argument("--runs", type=int, metavar="N", help="measure each figure N times (5)")
    parser.add_argument(
        "--snapshots", type=int, action="append", metavar="N", help="of one machine (1000 and 5000); repeatable"
    )
    options = parser.parse_args()
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"there is no bench named {', '.join(sorted(unknown))}")
    return options


def _set_up(home: str) -> None:
    """Before Qt and libvirt are loaded: nothing of the user's is read or written, no window opens on his screen."""
    for name in ("CONFIG", "STATE", "CACHE", "DATA"):
        os.environ[f"XDG_{name}_HOME"] = home
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QT_NO_GLIB"] = "1"


def _versions() -> str:
    import libvirt
    import PySide6

    from snaptree import __version__
    from tests.benchmarks.start import virt_manager_version

    number = libvirt.getVersion()
    qemu = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    virt_manager = virt_manager_version()
    return ", ".join(
        [
            f"SnapTree {__version__}",
            f"libvirt and virsh {number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}",
            f"QEMU {qemu}",
            *([f"virt-manager {virt_manager}"] if virt_manager else []),
            f"Qt {PySide6.__version__}",
            f"Python {platform.python_version()}",
        ]
    )


if __name__ == "__main__":
    main()
