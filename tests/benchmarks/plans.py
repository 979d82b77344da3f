"""How long it takes to plan a prune, from what was read of the machines to plans that can be run.

The machines are made of plain values: external snapshots in a line, analysed, that a schedule took. Of many machines as
on a host, each night's prune lets a few go, the first one ever most of them; of one machine, most go. The peer is what
`virsh` would have to be told, name by name: it plans nothing, so there is none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

from snaptree.model.estate import Annotations, Domain, DomainState
from snaptree.model.tree import SnapshotTree
from snaptree.plans.intention import Prune
from snaptree.plans.policy import Period, Policy
from snaptree.plans.prune_many import plan_prunes
from snaptree.plans.situation import Disk, Situation
from tests.benchmarks.comparison import Comparison
from tests.ui.values import HOST, NOW, analysed, chain, layers_for

AIM_SECONDS = 0.5


def measure(runs: int, machines: int, snapshots_each: int) -> Iterator[Comparison]:
    """Yield comparisons for many machines, and for one that has all of their snapshots."""
    many, one = [snapshots_each] * machines, [machines * snapshots_each]
    for sizes, going in ((many, 1), (many, snapshots_each - 7), (one, machines), (one, one[0] - 7)):
        what = f"{len(sizes)} machines, {sum(sizes):,} snapshots" if len(sizes) > 1 else f"one with {sum(sizes):,}"
        kept = sizes[0] - going
        samples = tuple(_plan(sizes, kept) for _ in range(runs))
        yield Comparison(f"{what}, {going * len(sizes):,} go", samples, aim=AIM_SECONDS)


def _plan(sizes: Sequence[int], kept: int) -> float:
    """Seconds to plan for machines with so many snapshots each, of which so many are kept."""
    prune = Prune(Policy(MappingProxyType({Period.LAST: kept})))
    wanted = [(prune, _situation(size)) for size in sizes]
    began = time.perf_counter()
    planned = plan_prunes(wanted)
    seconds = time.perf_counter() - began
    for each, size in zip(planned, sizes, strict=True):
        assert len(each.plan.snapshots) == size - kept, each.plan.refusals
        assert each.plan.steps
    return seconds


def _situation(size: int) -> Situation:
    marks = Annotations(schedule="nightly")
    snapshots = [replace(each, annotations=marks) for each in chain(size)]
    tree = SnapshotTree.build(snapshots, snapshots[-1].name)
    layers = analysed(layers_for(tree))
    return Situation(
        host=replace(HOST, libvirt_version=12_008_000),  # earlier ones may open few layers, and no such line
        domain=Domain("7c0e4a3c-0000-4000-8000-000000000001", "web-01", DomainState.OFF, is_persistent=True),
        tree=tree,
        layers=layers,
        disks=(Disk("vda", "disk", "file", "qcow2", layers.chains[0].active, "virtio"),),
        existing_files=frozenset(layers.images),
        now=NOW,
    )
