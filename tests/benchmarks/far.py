"""What layers hold, worked out over a link of 20 ms, against one download of as many bytes over the same link.

The link is a relay that hands on each piece 10 ms later; libvirt's daemon stands behind it, and is reached by TCP.
A round trip is 20 ms of our time: many are under way side by side.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from snaptree.hosts import far_images, volumes
from snaptree.hosts.connection import Connection
from snaptree.hosts.far_images import FarImages
from snaptree.hosts.volumes import VolumeBytes, VolumeImages
from snaptree.images.analyses import Analyses
from tests.benchmarks.comparison import Comparison, Unit, in_turn
from tests.images.conftest import run
from tests.kit.daemon import LibvirtDaemon
from tests.kit.relay import Relay, far_away

ONE_WAY = 0.01
LAYERS = 20


def measure(runs: int, gibibytes: int) -> Iterator[Comparison]:
    """Yield comparisons for one image of so many GiB, and for a chain of layers with little in each."""
    daemon = LibvirtDaemon()
    try:
        daemon.start()
        directory = daemon.directory / "pool"
        directory.mkdir()
        full = [_create(directory / "full.qcow2", "-o", "preallocation=metadata", size=gibibytes)]
        chain = list(_chain(directory, gibibytes))
        for path in (directory, *full, *chain):
            daemon.give(path)
        daemon.virsh("pool-create-as", "images", "dir", "--target", str(directory))
        with far_away(daemon.socket, ONE_WAY) as relay:
            connection = Connection(relay.uri)
            connection.open()
            yield from _measure(f"{gibibytes} GiB full", full, connection, relay, runs)
            yield from _measure(f"{LAYERS} layers", chain, connection, relay, runs)
            connection.close()
    finally:
        daemon.close()


def _create(path: Path, *options: str, size: int) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, f"{size}G")
    return path


def _chain(directory: Path, gibibytes: int) -> Iterator[Path]:
    """Layers, the top first: each with data in eight places."""
    names = [directory / f"layer{number}.qcow2" for number in reversed(range(LAYERS))]
    step = (gibibytes << 30) // 8
    _create(names[-1], size=gibibytes)
    for path, base in reversed(list(pairwise(names))):
        _create(path, "-b", str(base), "-F", "qcow2", size=gibibytes)
    for path in names:
        writes = [f"write -q {place * step} 256k" for place in range(8)]
        run("qemu-io", *(word for write in writes for word in ("-c", write)), path)
    yield from names


def _measure(name: str, paths: Sequence[Path], connection: Connection, relay: Relay, runs: int) -> Iterator[Comparison]:
    names = [str(path) for path in paths]
    below: dict[str, str | None] = dict(zip(names, [*names[1:], None], strict=True))
    place = FarImages(connection, VolumeImages(connection))
    received = 0

    def ours() -> float:
        nonlocal received
        far_images._copies.clear()
        volumes._images.clear()
        before = relay.received
        seconds = _timed(lambda: Analyses().overlaps(place, below, dict.fromkeys(names, "qcow2"), lambda: False))
        received = relay.received - before
        return seconds

    def limit() -> float:
        return _timed(lambda: _download(source, received))

    # A file as long as what ours receives, to be read in one go.
    bulk = paths[0].parent / f"{name.replace(' ', '-')}.raw"
    ours()
    bulk.write_bytes(bytes(received))
    subprocess.run(["chmod", "0644", bulk], check=True)
    source = VolumeBytes(connection, VolumeImages(connection).find(str(bulk)).volume, received)
    our_samples, limits = in_turn(ours, limit, runs)
    yield Comparison(f"{name}, 20 ms away", tuple(our_samples), tuple(limits), "one download", None)
    trips = tuple(seconds / (2 * ONE_WAY) / len(paths) for seconds in our_samples)
    yield Comparison(f"{name}: round trips for each layer", trips, unit=Unit.COUNT)


def _download(source: VolumeBytes, length: int) -> None:
    assert len(source.read_at(0, length)) == length


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
