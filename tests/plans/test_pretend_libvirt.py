"""The libvirt in memory does what the real one does: trees, files and contents, where they are lost as well."""

from __future__ import annotations

import time
from collections.abc import Callable

import libvirt
import pytest

from snaptree.hosts.situation import read_situation
from snaptree.hosts.snapshot_xml import take_xml
from snaptree.plans.intention import Capture, Take
from snaptree.plans.plan import DeleteSnapshot, RevertToSnapshot, StateAfter, TakeSnapshot
from snaptree.plans.take import take_step
from tests.kit.machines import NOW, EmbeddedHost, Machine
from tests.plans.pretend_libvirt import BLOCKS, PretendLibvirt, RefusedError

pytestmark = pytest.mark.qemu

BLOCK_SIZE = 64 * 1024

HISTORIES = [
    "external a, external b, external c, delete b, delete a, delete c",
    "internal a, internal b, revert a, internal c, delete a, delete c",
    "external a, internal b, external c, delete c",
    "internal a, external b, external c, delete c, delete b, delete a, delete b",
    # What people lose data by, without a word from libvirt:
    "external a, internal b, delete a",
    "internal a, external b, revert a",
]
WITH_EXTERNAL_REVERTS = [
    "external a, external b, revert a, external c, delete b, delete c",
    "external a, external b, external c, revert a, delete c, delete b, delete a",
    "external a, revert a, revert a, delete a",
    "external a, internal b, revert a, revert b, delete b",
    "external a, external b, external c, revert b, delete b, delete c, delete b",
    # And by which the layer of b is gone:
    "external a, external b, revert a, external c, delete c, revert a",
]


class Pair:
    """The same machine twice."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        paths = {target: str(path) for target, path in machine.active_layers().items()}
        self.pretend = PretendLibvirt(paths=paths)
        for number in range(BLOCKS):
            self.write(number)

    def write(self, block: int) -> None:
        self.pretend.write(block)
        self.machine.write(self.pretend.token, offset=block * BLOCK_SIZE, length=BLOCK_SIZE)

    def take(self, name: str, capture: Capture) -> None:
        step = take_step(Take(name, capture=capture), read_situation(self.machine.connection, self.machine.uuid))
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if step.overlays else 0
        self.run(step, lambda: self.machine.handle.snapshotCreateXML(take_xml(step), flags))

    def revert(self, name: str) -> None:
        handle = self.machine.handle
        while int(time.time()) <= self.pretend.clock:
            # libvirt names the overlays of a revert after the second, and refuses a second one in it.
            time.sleep(0.05)
        step = RevertToSnapshot(name, StateAfter.AS_CAPTURED, None)
        self.run(step, lambda: handle.revertToSnapshot(handle.snapshotLookupByName(name)))

    def delete(self, name: str) -> None:
        handle = self.machine.handle
        step = DeleteSnapshot(name, (), merges=True)
        self.run(step, lambda: handle.snapshotLookupByName(name).delete(0))

    def run(self, step: TakeSnapshot | RevertToSnapshot | DeleteSnapshot, really: Callable[[], object]) -> None:
        refused = False
        try:
            really()
        except libvirt.libvirtError:
            refused = True
        for path in map(str, self.machine.active_layers().values()):
            if path.rpartition(".")[2].isdigit() and not refused:
                self.pretend.clock = int(path.rpartition(".")[2]) - 2
        if refused:
            with pytest.raises(RefusedError):
                self.pretend.run(step)
        else:
            self.pretend.run(step)

    def check(self) -> None:
        real = read_situation(self.machine.connection, self.machine.uuid)
        pretend = self.pretend.situation()
        assert dict(real.tree.parents) == dict(pretend.tree.parents)
        assert real.tree.current == pretend.tree.current
        for snapshot in real.tree:
            other = pretend.tree[snapshot.name]
            assert [(disk.target, disk.how, disk.frozen, disk.overlay) for disk in snapshot.disks] == [
                (disk.target, disk.how, disk.frozen, disk.overlay) for disk in other.disks
            ]
            assert snapshot.revert_overlays == other.revert_overlays
            assert snapshot.state == other.state
        assert [chain.layers for chain in real.layers.chains] == [chain.layers for chain in pretend.layers.chains]
        assert {str(path) for path in self.machine.directory.iterdir()} == set(self.pretend.files)
        self.check_contents()

    def check_contents(self) -> None:
        """Where the real one has the same content twice, or has lost it, so has this one."""
        try:
            contents = self.machine.contents()
        except AssertionError:  # what the oracle says of a snapshot that can't be read
            assert any(not self.pretend.is_intact(name) for name in self.pretend.snapshots)
            return
        same: dict[str, str] = {}
        for name, disks in contents.items():
            content = self.pretend.now() if name == NOW else self.pretend.held(name)
            for target, digest in disks.items():
                assert same.setdefault(digest, str(content[target])) == str(content[target])
                assert same.setdefault(str(content[target]), digest) == digest


def _play(pair: Pair, history: str) -> None:
    for number, event in enumerate(history.split(", ")):
        verb, name = event.split()
        match verb:
            case "external":
                pair.take(name, Capture.DISKS)
            case "internal":
                pair.take(name, Capture.INTERNAL)
            case "revert":
                pair.revert(name)
            case "delete":
                pair.delete(name)
        pair.check()
        pair.write(number % BLOCKS)


@pytest.mark.parametrize("history", HISTORIES)
def test_histories(host: EmbeddedHost, history: str) -> None:
    if not host.connection.host.external_snapshots:
        # libvirt 9.0 can't merge below the newest layer of a machine that is off.
        history = history.split(", delete")[0] if history.startswith("external a, external") else history
    _play(Pair(host.make_machine(running=False)), history)


@pytest.mark.parametrize("history", WITH_EXTERNAL_REVERTS)
def test_histories_with_external_reverts(host: EmbeddedHost, history: str) -> None:
    if not host.connection.host.external_snapshots:
        pytest.skip("this libvirt has no external reverts")
    _play(Pair(host.make_machine(running=False)), history)
