"""Why nobody can rely on a snapshot to go back to, in a word or two. `Facts.of_no_use` finds it; pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from snaptree.plans.operation import half_deleted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.operation import Operation

HALF_DELETED: Final = "half deleted"
DOUBTFUL: Final = "doubtful"
NOT_IN_IMAGE: Final = "not in its image"
IMAGE_MISSING: Final = "image missing"
MEMORY_MISSING: Final = "memory missing"


def with_interrupted(known: Mapping[str, str], tree: SnapshotTree, unfinished: Operation | None) -> Mapping[str, str]:
    """What is `of_no_use`, with what an operation that was interrupted had begun to overwrite."""
    found = {**known, **{each.name: HALF_DELETED for each in tree if each.annotations.half_deleted}}
    if unfinished is not None:
        found |= {name: HALF_DELETED for name in half_deleted(unfinished) if name in tree}
    return MappingProxyType(found)
