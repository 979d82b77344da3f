"""Which snapshots may hold something else than when they were taken, as far as anything tells. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from snaptree.plans.operation import half_deleted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.operation import Operation

HALF_DELETED = "half deleted"
DOUBTFUL = "doubtful"


def mixtures(tree: SnapshotTree, doubtful: Iterable[str], unfinished: Operation | None) -> Mapping[str, str]:
    """All such snapshots, each with its mark in a word or two. `doubtful` are those of `Facts.doubtful_snapshots`.

    What an operation that was interrupted had begun to overwrite is half deleted already.
    """
    found = dict.fromkeys(doubtful, DOUBTFUL)
    found |= {snapshot.name: HALF_DELETED for snapshot in tree if snapshot.annotations.half_deleted}
    if unfinished is not None:
        found |= {name: HALF_DELETED for name in half_deleted(unfinished) if name in tree}
    return MappingProxyType(found)
