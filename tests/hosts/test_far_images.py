"""Images of a host that is reached by TCP: its analysis comes to the same as one on the spot, with few round trips."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from snaptree.hosts import far_images, volumes
from snaptree.hosts.connection import Connection
from snaptree.hosts.layers import Images, analysed, is_analysed, read_layers
from snaptree.hosts.reading import read_tree
from snaptree.images.files import LocalPlace
from snaptree.images.metadata_copy import Piece, copy_metadata
from snaptree.images.versions import Remembered
from snaptree.model.costs import domain_costs, selection_cost
from snaptree.model.errors import CancelledError
from snaptree.model.estate import DomainLayers
from snaptree.model.figures import Confidence
from snaptree.model.tree import SnapshotTree
from snaptree.plans.intention import Capture, Take
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, Machine
from tests.kit.relay import Relay, far_away

pytestmark = [pytest.mark.qemu, pytest.mark.daemon]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes, it reads at once: files are settled however new they are."""
    monkeypatch.setattr("snaptree.images.versions._SETTLED_AFTER", -(10**10))
    monkeypatch.setattr(far_images, "_copies", Remembered(far_images._MOST_COPIED, lambda copy: copy.bytes))
    monkeypatch.setattr(volumes, "_images", Remembered(100))


@dataclass
class Far:
    """A machine's host, near and far."""

    machine: Machine
    connection: Connection
    relay: Relay

    def read(self) -> tuple[SnapshotTree, DomainLayers]:
        tree = read_tree(self.connection, self.machine.uuid)
        return tree, read_layers(self.connection, self.machine.uuid, tree)

    def analysed(self) -> tuple[SnapshotTree, DomainLayers]:
        tree, layers = self.read()
        return tree, analysed(self.connection, layers)


@contextmanager
def connected(daemon: LibvirtDaemon, machine: Machine, *, read_only: bool = False, pool: bool = True) -> Iterator[Far]:
    if pool:
        daemon.virsh("pool-create-as", "images", "dir", "--target", str(machine.directory))
    with far_away(daemon.socket) as relay:
        connection = Connection(relay.uri, read_only=read_only)
        assert not connection.open().is_local
        try:
            yield Far(machine, connection, relay)
        finally:
            connection.close()


def with_history(daemon: LibvirtDaemon, capture: Capture) -> Machine:
    """Three snapshots: each covers a part of what was written before."""
    machine = daemon.make_machine(running=False)
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number, offset=number * MIB, length=3 * MIB)
        machine.change(Take(name, capture=capture))
    machine.write(9, length=MIB)
    return machine


def test_layers_are_what_they_are_on_the_spot(daemon: LibvirtDaemon) -> None:
    machine = with_history(daemon, Capture.DISKS)
    near = analysed(machine.connection, read_layers(machine.connection, machine.uuid, machine.tree()))
    with connected(daemon, machine) as far:
        tree, layers = far.analysed()
        assert len(layers.overlaps) == 4
        assert layers.overlaps == near.overlaps
        for names in (("one",), ("two", "three"), ("one", "two", "three")):
            cost = selection_cost(tree, layers, names)
            assert cost == selection_cost(machine.tree(), near, names) or cost.frees.confidence is Confidence.EXACT
            assert cost.frees.bytes == selection_cost(machine.tree(), near, names).frees.bytes


def test_internal_snapshots_are_known_as_clusters(daemon: LibvirtDaemon) -> None:
    """What clusters take on the host's disk nobody tells from afar: they are an upper bound."""
    machine = with_history(daemon, Capture.INTERNAL)
    near = analysed(machine.connection, read_layers(machine.connection, machine.uuid, machine.tree()))
    (path,) = near.sharing
    with connected(daemon, machine) as far:
        tree, layers = far.analysed()
        assert is_analysed(layers)
        for holders in ([0], [1, 2], [0, 1, 2]):
            space = layers.sharing[path].frees(holders)
            assert (space.in_image, space.on_host) == (near.sharing[path].frees(holders).in_image, None)
        costs = domain_costs(tree, layers)
        assert {cost.frees.confidence for cost in costs.snapshots.values()} == {Confidence.UPPER_BOUND}
        assert costs.now.bytes


def test_only_what_changed_comes_again(daemon: LibvirtDaemon) -> None:
    machine = with_history(daemon, Capture.DISKS)
    with connected(daemon, machine) as far:
        before = far.relay.received
        _, first = far.analysed()
        whole = far.relay.received - before
        assert far.analysed()[1].overlaps == first.overlaps
        again = far.relay.received - before - whole
        machine.write(5, offset=6 * MIB, length=MIB)
        _, changed = far.analysed()
        after_write = far.relay.received - before - whole - again
        active = str(next(iter(machine.active_layers().values())))
        assert changed.overlaps[active].data(active) == first.overlaps[active].data(active) + MIB
        assert again < whole / 10, "descriptions of volumes, and nothing of their content"
        assert again < after_write < whole / 2


def test_images_in_no_pool_are_unknown_with_what_to_do(daemon: LibvirtDaemon) -> None:
    machine = with_history(daemon, Capture.DISKS)
    with connected(daemon, machine, pool=False) as far:
        tree, layers = far.analysed()
        costs = domain_costs(tree, layers)
        assert not layers.overlaps
        for cost in costs.snapshots.values():
            assert cost.frees.bytes is None
            assert cost.written.bytes is None
        assert all("virsh pool-create-as" in image.problem for image in layers.images.values())


def test_a_new_overlay_is_found_after_a_refresh(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine(running=False)
    with connected(daemon, machine) as far:
        machine.write(1, length=MIB)
        machine.change(Take("later", capture=Capture.DISKS))
        _, layers = far.analysed()
        assert len(layers.overlaps) == 2


def test_the_daemon_reads_what_the_user_may_not(daemon: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = with_history(daemon, Capture.DISKS)
    daemon.virsh("pool-create-as", "images", "dir", "--target", str(machine.directory))
    tree = machine.tree()
    layers = read_layers(machine.connection, machine.uuid, tree)
    readable = analysed(machine.connection, layers)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert machine.connection.host.is_local
    monkeypatch.setattr(LocalPlace, "open_images", refuse)
    monkeypatch.setattr(LocalPlace, "versions", refuse)
    assert analysed(machine.connection, layers).overlaps == readable.overlaps


def test_a_link_that_breaks_leaves_figures_unknown(daemon: LibvirtDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = with_history(daemon, Capture.DISKS)
    with connected(daemon, machine) as far:
        tree, layers = far.read()
        read_at = volumes.VolumeBytes.read_at
        cut = threading.Lock()

        def cutting(self: volumes.VolumeBytes, offset: int, length: int) -> bytes:
            if cut.acquire(blocking=False):
                far.relay.cut()
            return read_at(self, offset, length)

        monkeypatch.setattr(volumes.VolumeBytes, "read_at", cutting)
        broken = analysed(far.connection, layers)
        assert cut.locked()
        assert not broken.overlaps
        assert domain_costs(tree, broken).snapshots["one"].frees.bytes is None


def test_fetching_can_be_cancelled(daemon: LibvirtDaemon) -> None:
    machine = with_history(daemon, Capture.DISKS)
    with connected(daemon, machine) as far:
        _, layers = far.read()
        with pytest.raises(CancelledError):
            analysed(far.connection, layers, lambda: True)


def test_what_the_analysis_reads_comes_in_four_rounds(daemon: LibvirtDaemon) -> None:
    machine = with_history(daemon, Capture.INTERNAL)
    (path,) = (str(path) for path in machine.active_layers().values())
    with connected(daemon, machine) as far:
        found = volumes.VolumeImages(far.connection).find(path)
        rounds: list[int] = []

        class Counting(volumes.VolumeBytes):
            def read_pieces(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
                pieces = list(pieces)
                rounds.append(len(pieces))
                return super().read_pieces(pieces)

            def read_at(self, offset: int, length: int) -> bytes:
                singles.append(offset)
                return super().read_at(offset, length)

        singles: list[int] = []
        copy = copy_metadata(Counting(far.connection, found.volume, found.physical), found.allocated, lambda: False)
        assert len(rounds) == 4
        assert len(singles) == sum(rounds), "nothing was read by itself"
        assert copy.size == Path(path).stat().st_size
        assert copy.read_at(0, 4096) == Path(path).read_bytes()[:4096]
        assert Images(far.connection).read_image(path, "qcow2").problem == ""
