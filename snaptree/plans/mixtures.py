"""Which snapshots may hold something else than when they were taken, as far as anything tells. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from snaptree.plans.facts import Facts
from snaptree.plans.recovery import half_deleted
from snaptree.plans.situation import glance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snaptree.model.estate import Domain, DomainLayers, Host
    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.operation import Operation

HALF_DELETED = "half deleted"
DOUBTFUL = "doubtful"


def doubtful_ones(host: Host, domain: Domain, tree: SnapshotTree, layers: DomainLayers) -> frozenset[str]:
    """Snapshots with layers that seem to have been written to since: others' records tell, or a mark does."""
    told = Facts(glance(host, domain, tree, layers)).written_to_since
    return told.union(snapshot.name for snapshot in tree if snapshot.annotations.doubtful)


def mixtures(tree: SnapshotTree, doubtful: Iterable[str], unfinished: Operation | None) -> Mapping[str, str]:
    """All such snapshots, each with its mark in a word or two. `doubtful` are the `doubtful_ones`.

    What an operation that was interrupted had begun to overwrite is half deleted already.
    """
    found = dict.fromkeys(doubtful, DOUBTFUL)
    found |= {snapshot.name: HALF_DELETED for snapshot in tree if snapshot.annotations.half_deleted}
    if unfinished is not None:
        found |= {name: HALF_DELETED for name in half_deleted(unfinished) if name in tree}
    return MappingProxyType(found)
