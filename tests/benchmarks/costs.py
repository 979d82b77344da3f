"""What layers cost, worked out from their tables, against `qemu-img map` and `qemu-img check` of the same images.

Ours is measured in a process of its own that has numpy loaded, as the window has; qemu-img's is a whole process, some
ten milliseconds of which are its start. The limit is merely reading the tables that ours reads. Images are warm.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.benchmarks.comparison import Comparison, Unit, in_turn
from tests.images.conftest import run

AIM_LIMIT = 3.0
AIM_MEMORY = 150 << 20

_CLUSTER = 64 << 10
_TABLE = _CLUSTER // 8


@dataclass(frozen=True)
class Case:
    """Images to be analysed: one by itself, or layers, the top one first."""

    name: str
    images: tuple[Path, ...]
    aim_map: float | None = None
    aim_check: float | None = None


def measure(runs: int, gibibytes: int) -> Iterator[Comparison]:
    """Yield comparisons for images of disks of so many GiB, and one twenty times as large."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="snaptree-benchmark-") as directory:  # on a disk
        for case in _cases(Path(directory), gibibytes):
            yield from _measure(case, runs)


def _cases(directory: Path, gibibytes: int) -> Iterator[Case]:
    full = _full(directory / "full.qcow2", gibibytes)
    yield Case(f"{gibibytes} GiB full", (full,), aim_map=1 / 2, aim_check=1 / 8)
    full.unlink()
    held = _with_snapshots(directory / "snapshots.qcow2", gibibytes, 12)
    tables = 13 * -(-(gibibytes << 30) // (_TABLE * _CLUSTER))
    yield Case(f"12 internal snapshots, {tables:,} tables", (held,), aim_check=1 / 3)
    held.unlink()
    layers = _layers(directory, gibibytes, 20)
    yield Case(f"20 layers of {gibibytes} GiB", layers, aim_map=1 / 10)
    for layer in layers:
        layer.unlink()
    vast = _full(directory / "vast.qcow2", 20 * gibibytes + gibibytes // 2)
    yield Case(f"{(20 * gibibytes + gibibytes // 2) / 1024:.1f} TiB full", (vast,))


def _measure(case: Case, runs: int) -> Iterator[Comparison]:
    top = str(case.images[0])
    with _probe(case.images) as probe:
        pairs = [(["qemu-img", "map", "--output=json", top], "qemu-img map", case.aim_map)]
        if len(case.images) == 1:
            pairs.append((["qemu-img", "check", top], "qemu-img check", case.aim_check))
        for command, name, aim in pairs:
            ours, peer = in_turn(lambda: probe.ask("analyse"), lambda command=command: _timed(command), runs)  # type: ignore[misc]  # mypy loses the default's type
            yield Comparison(case.name, tuple(ours), tuple(peer), name, aim)
        ours, limit = in_turn(lambda: probe.ask("analyse"), lambda: probe.ask("read"), runs)
        yield Comparison(case.name, tuple(ours), tuple(limit), "reading alone", AIM_LIMIT)
    with _probe(case.images) as fresh:
        before = fresh.ask("memory")
        fresh.ask("analyse")
        yield Comparison(f"{case.name}: memory", (fresh.ask("memory"),), aim=AIM_MEMORY, unit=Unit.MEMORY)
        yield Comparison(f"{case.name}: of that before", (before,), unit=Unit.MEMORY)


def _timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


class _Probe:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextmanager
def _probe(images: Sequence[Path]) -> Iterator[_Probe]:
    command = [sys.executable, "-m", "tests.benchmarks.cost_probe", *map(str, images)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield _Probe(process)
        assert process.stdin is not None
        process.stdin.close()


# Images: large ones cheaply, since nobody reads what is in their clusters


def _full(path: Path, gibibytes: int) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, f"{gibibytes}G")
    return path


def _with_snapshots(path: Path, gibibytes: int, count: int) -> Path:
    """Every state has L2 tables of its own: something was written in the range of each."""
    _full(path, gibibytes)
    span = _TABLE * _CLUSTER
    for number in range(count):
        run("qemu-img", "snapshot", "-c", f"state{number}", path)
        writes = [f"write -q {place + number * _CLUSTER} 64k" for place in range(0, gibibytes << 30, span)]
        run("qemu-io", *(word for write in writes for word in ("-c", write)), path)
    return path


def _layers(directory: Path, gibibytes: int, count: int) -> tuple[Path, ...]:
    """Every layer holds a tenth of the disk, in runs of some sixteen clusters; the base all of it. The top first."""
    paths = [_full(directory / f"layer{number}.qcow2", gibibytes) for number in range(count)]
    random = np.random.default_rng(1)
    for base, path in pairwise(paths):
        _thin_out(path, random)
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, path)
    return tuple(reversed(paths))


def _thin_out(path: Path, random: np.random.Generator) -> None:
    """Take nine tenths of the entries out of the L2 tables."""
    with path.open("r+b") as file:
        header = file.read(48)
        entries, offset = int.from_bytes(header[36:40], "big"), int.from_bytes(header[40:48], "big")
        file.seek(offset)
        places = np.frombuffer(file.read(entries * 8), ">u8").astype(np.uint64) & np.uint64(0x00FFFFFFFFFFFE00)
        for place in places[places != 0].tolist():
            file.seek(place)
            table = np.frombuffer(file.read(_CLUSTER), ">u8").copy()
            table[np.repeat(random.random(_TABLE // 16) > 0.1, 16)] = 0
            file.seek(place)
            file.write(table.tobytes())
