"""A process that analyses images again and again when asked, and says how long it took: see `costs`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from snaptree.images.extents import taken_on_host
from snaptree.images.files import LocalFile, open_local
from snaptree.images.layer_windows import Layer
from snaptree.images.overlaps import read_overlaps
from snaptree.images.qcow2 import Qcow2Content, read_content
from snaptree.images.sharing import read_sharing

_GAP = 16 << 10
_MOST = 2 << 20


def main() -> None:
    """Answer `analyse` and `read` with seconds, `memory` with bytes."""
    paths = sys.argv[1:]
    for line in sys.stdin:
        began = time.perf_counter()
        match line.strip():
            case "analyse":
                _analyse(paths)
            case "read":
                _read(paths)
            case "memory":
                _say(_peak())
                continue
        _say(time.perf_counter() - began)


def _say(number: float) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _analyse(paths: list[str]) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(open_local(path)) for path in paths]
        contents = [read_content(file) for file in files]
        if contents[0].snapshots:
            read_sharing(files[0], contents[0], taken=taken_on_host(files[0]))
        else:
            layers = {path: Layer.of_qcow2(file) for path, file in zip(paths, files, strict=True)}
            read_overlaps(layers, dict(zip(paths, [*paths[1:], None], strict=True)))


def _read(paths: list[str]) -> None:
    """Read every L1 and L2 table once, neighbours together."""
    for path in paths:
        with open_local(path) as file:
            descriptor = file.fileno()
            for begin, length in _reads(file, read_content(file)):
                os.pread(descriptor, length, begin)


def _reads(file: LocalFile, content: Qcow2Content) -> list[tuple[int, int]]:
    header = content.header
    cluster = 1 << header.cluster_bits
    roots = [(header.l1_offset, header.l1_entries), *((each.l1_offset, each.l1_entries) for each in content.snapshots)]
    tables = [np.frombuffer(file.read_at(offset, entries * 8), ">u8").astype(np.uint64) for offset, entries in roots]
    places = np.unique(np.concatenate(tables) & np.uint64(0x00FFFFFFFFFFFE00))
    reads: list[tuple[int, int]] = []
    for place in places[places != 0].tolist():
        if reads and place - sum(reads[-1]) <= _GAP and reads[-1][1] < _MOST:
            reads[-1] = (reads[-1][0], place + cluster - reads[-1][0])
        else:
            reads.append((place, cluster))
    return reads


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
