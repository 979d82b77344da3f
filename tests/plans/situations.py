"""Situations in few lines: `a_machine().external("a").internal("b").build()`."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from snaptree.model.estate import DiskChain, Domain, DomainLayers, DomainState, Host, Image
from snaptree.model.figures import exact
from snaptree.model.tree import SnapshotTree
from snaptree.plans.aftermath import after_delete, after_revert, after_take
from snaptree.plans.intention import Capture, Intention, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import DeleteSnapshot, RevertToSnapshot, StateAfter
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Disk, Situation
from snaptree.plans.take import take_step

DEBIAN_12 = 9_000_000
DEBIAN_13 = 11_003_000
NOW = 1_700_000_000
MIB = 2**20


def disk(target: str = "vda", **fields: Any) -> Disk:
    """A disk as libvirt-manager would define it: a qcow2 file on virtio."""
    given = {
        "device": "disk",
        "type": "file",
        "format": "qcow2",
        "path": f"/images/{target}.qcow2",
        "bus": "virtio",
        **fields,
    }
    return Disk(target, **given)


def a_machine(
    *disks: Disk, version: int = DEBIAN_13, state: DomainState = DomainState.OFF, **fields: Any
) -> SituationBuilder:
    """A machine named web-01 without snapshots, off, on a local host with this libvirt."""
    return SituationBuilder(disks or (disk(),), version, state, fields)


class SituationBuilder:
    """Takes, reverts and deletes as libvirt would, and then changes whatever the test is about."""

    def __init__(self, disks: tuple[Disk, ...], version: int, state: DomainState, fields: dict[str, Any]) -> None:
        images = {
            path: Image(path, given.format, exact(100 * MIB), virtual_size=1024 * MIB)
            for given in disks
            if (path := given.path) is not None
        }
        self._situation = Situation(
            host=Host("qemu:///system", "host", "QEMU", version, 10_000_000, False, True, version >= 9_009_000),
            domain=Domain("7c0e4a3c-0000-4000-8000-000000000001", "web-01", state, True),
            tree=SnapshotTree.build([], None),
            layers=DomainLayers(
                chains=tuple(DiskChain(given.target, (given.path,)) for given in disks if given.path is not None),
                images=MappingProxyType(images),
            ),
            disks=disks,
            existing_files=frozenset(images),
            memory_bytes=512 * MIB,
            now=NOW,
        )
        self.having(**fields)

    def build(self) -> Situation:
        self._set_layers(is_running=self._situation.domain.state.is_active)
        return self._situation

    def _later(self) -> None:
        self._situation = replace(self._situation, now=self._situation.now + 60)

    def _take(self, name: str, capture: Capture, excluded: tuple[str, ...]) -> SituationBuilder:
        step = take_step(Take(name=name, capture=capture, excluded_disks=excluded), self._situation)
        self._situation = after_take(self._situation, step)
        new = {*step.overlays.values()}
        for path in new:
            self.image(path, allocated=exact(10 * MIB))
        if step.memory_file is not None:
            self._set_layers(
                memory_files=MappingProxyType(
                    {**self._situation.layers.memory_files, step.memory_file: exact(200 * MIB)}
                )
            )
        self._later()
        return self

    def external(self, name: str, *, memory: bool = False, excluded: tuple[str, ...] = ()) -> SituationBuilder:
        return self._take(name, Capture.DISKS_AND_MEMORY if memory else Capture.DISKS, excluded)

    def internal(self, name: str) -> SituationBuilder:
        return self._take(name, Capture.INTERNAL, ())

    def revert(self, name: str) -> SituationBuilder:
        step = RevertToSnapshot(name, StateAfter.AS_CAPTURED, self._situation.tree.current)
        self._situation = replace(after_revert(self._situation, step), unnamed_layers=frozenset())
        self._later()
        return self

    def delete(self, name: str) -> SituationBuilder:
        self._situation = after_delete(self._situation, DeleteSnapshot(name, (), merges=True))
        return self

    # What no ordinary history leads to

    def layers(self, **fields: Any) -> SituationBuilder:
        """Change what is known of the machine's images."""
        return self._set_layers(**fields)

    def having(self, **fields: Any) -> SituationBuilder:
        """Change fields of the situation."""
        self._situation = replace(self._situation, **fields)
        return self

    def host(self, **fields: Any) -> SituationBuilder:
        return self.having(host=replace(self._situation.host, **fields))

    def domain(self, **fields: Any) -> SituationBuilder:
        return self.having(domain=replace(self._situation.domain, **fields))

    def state(self, state: DomainState) -> SituationBuilder:
        return self.domain(state=state)

    def snapshot(self, name: str, **fields: Any) -> SituationBuilder:
        """Change what libvirt recorded about a snapshot."""
        tree = self._situation.tree
        changed = [replace(each, **fields) if each.name == name else each for each in tree]
        return self.having(tree=SnapshotTree.build(changed, tree.current))

    def twice(self, name: str, other: str) -> SituationBuilder:
        """List a snapshot under a second name as well."""
        tree = self._situation.tree
        return self.having(tree=SnapshotTree.build([*tree, replace(tree[name], name=other)], tree.current))

    def renamed(self, name: str, new: str) -> SituationBuilder:
        """Give a snapshot a name that we would not: other tools do."""
        tree = self._situation.tree
        changed = [
            replace(
                each,
                name=new if each.name == name else each.name,
                parent=new if each.parent == name else each.parent,
            )
            for each in tree
        ]
        self.having(tree=SnapshotTree.build(changed, new if tree.current == name else tree.current))
        for path, image in self._situation.layers.images.items():
            entries = tuple(
                replace(entry, name=new) if entry.name == name else entry for entry in image.internal_snapshots
            )
            self.image(path, internal_snapshots=entries)
        return self

    def current(self, name: str | None) -> SituationBuilder:
        return self.having(tree=SnapshotTree.build(self._situation.tree, name))

    def image(self, path: str, **fields: Any) -> SituationBuilder:
        """Change what an image says, or add one."""
        images = dict(self._situation.layers.images)
        images[path] = replace(images.get(path, Image(path, "qcow2", exact(0))), **fields)
        return self._set_layers(images=MappingProxyType(images))

    def missing(self, path: str) -> SituationBuilder:
        """An image that something names and that is not there."""
        self.having(existing_files=self._situation.existing_files - {path})
        return self.image(path, is_missing=True, problem="there is no such file", backing=None)

    def chain(self, target: str, *layers: str, problem: str = "") -> SituationBuilder:
        """Let a disk stand on other layers than libvirt's own history would give."""
        others = [chain for chain in self._situation.layers.chains if chain.target != target]
        for upper, lower in zip(layers, [*layers[1:], None], strict=True):
            self.image(upper, backing=lower)
        self.having(
            disks=tuple(
                replace(given, path=layers[0]) if given.target == target else given for given in self._situation.disks
            )
        )
        return self._set_layers(chains=(*others, DiskChain(target, layers, problem)))

    def _set_layers(self, **fields: Any) -> SituationBuilder:
        return self.having(layers=replace(self._situation.layers, **fields))


def interrupted(
    builder: SituationBuilder, intention: Intention, *, done: int = 0, begun: int = 1, who: str = "", number: int = 7
) -> Operation:
    """An operation that was cut short in a machine's past."""
    plan = make_plan(intention, builder.build())
    assert not plan.is_refused, plan.refusals
    return Operation(
        id=number,
        plan=plan,
        state=OperationState.INTERRUPTED,
        started=float(NOW),
        steps_done=done,
        steps_begun=begun,
        who=who,
    )
