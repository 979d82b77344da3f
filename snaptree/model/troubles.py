"""What is wrong with a machine, in a sentence each: layers that are missing or can't be read, chains too deep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from snaptree.model.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from snaptree.model.estate import DomainLayers
    from snaptree.model.tree import SnapshotTree

DEEP_CHAIN = 25
"""Layers up to which a chain is nothing to speak of: more slow the guest's reads, and libvirt 10.8 to 11 does not start
a machine on them (`plans/rules_depth.py`); it ends at 200 everywhere."""


class Severity(IntEnum):
    """How bad a trouble is."""

    NOTE = 0
    """Good to know, and nothing to be woken for."""
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """As it stands on the terminal and in JSON: `note`, `warning` or `error`."""
        return self.name.lower()


class Kind(StrEnum):
    """What may be wrong; the values stand in JSON."""

    NOT_READ = "not-read"
    INTERRUPTED = "interrupted"
    BROKEN_CHAIN = "broken-chain"
    MISSING_IMAGE = "missing-image"
    UNREADABLE_IMAGE = "unreadable-image"
    DEEP_CHAIN = "deep-chain"
    DAMAGED_SNAPSHOT = "damaged-snapshot"
    HALF_DELETED = "half-deleted"
    MIXTURE = "mixture"
    DOUBTFUL = "doubtful"
    NO_CURRENT = "no-current"
    # What only advice tells of (`plans/check.py`):
    STALE_SNAPSHOT = "stale-snapshot"
    OLD_SNAPSHOTS = "old-snapshots"
    UNKNOWN_COST = "unknown-cost"
    FAST_GROWTH = "fast-growth"
    LOW_SPACE = "low-space"
    ORPHAN = "orphan"
    SCHEDULE_FAILED = "schedule-failed"
    SCHEDULE_NOT_RUN = "schedule-not-run"
    SCHEDULE_NAMES = "schedule-names"
    SCHEDULE_HOURS = "schedule-hours"
    POLICY_FILE = "policy-file"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that an administrator should know about a machine."""

    severity: Severity
    text: str
    kind: Kind
    about: str = ""
    """The disk, image or snapshot that it speaks of; empty where that is the machine."""


_Found = TypeVar("_Found", bound="_Graded")


class _Graded(Protocol):
    @property
    def severity(self) -> Severity: ...


def worst_first(troubles: Iterable[_Found]) -> tuple[_Found, ...]:
    """Troubles, or advice, in the order in which to look at them."""
    return tuple(sorted(troubles, key=lambda trouble: -trouble.severity))


def troubles_of_layers(
    tree: SnapshotTree | None, layers: DomainLayers, *, most_layers: int = DEEP_CHAIN
) -> Iterator[Trouble]:
    """What is wrong with the chains that a machine stands on, and with the layers that its snapshots name."""
    for chain in layers.chains:
        if chain.problem:
            text = f"Disk {plain(chain.target)}: {plain(chain.problem)}"
            yield Trouble(Severity.ERROR, text, Kind.BROKEN_CHAIN, chain.target)
        if len(chain.layers) > most_layers:
            text = f"Disk {plain(chain.target)} stands on a chain of {len(chain.layers)} layers: slow reads."
            yield Trouble(Severity.WARNING, text, Kind.DEEP_CHAIN, chain.target)
    # Overlays may be missing: libvirt unlinks the last one of a branch when it leaves it. Content may not.
    frozen = {disk.frozen for snapshot in tree or () for disk in snapshot.disks}
    in_use = {path for chain in layers.chains for path in chain.layers}
    bases = {image.backing for image in layers.images.values()} - in_use
    unread: dict[str, list[str]] = {}
    for path, image in sorted(layers.images.items()):
        if image.is_missing:
            is_said = any(path in chain.layers and path in chain.problem for chain in layers.chains)
            if (path in frozen or path in bases) and not is_said:
                text = f"The image {plain(path)} is missing, and with it what it held."
                yield Trouble(Severity.ERROR, text, Kind.MISSING_IMAGE, path)
        elif image.problem and path not in in_use:  # what is in use says so itself
            unread.setdefault(image.problem, []).append(path)
    for problem, paths in unread.items():
        more = f" So it is with {len(paths) - 1} more." if len(paths) > 1 else ""
        text = f"The image {plain(paths[0])} can't be read: {plain(problem).rstrip('.')}.{more}"
        yield Trouble(Severity.WARNING, text, Kind.UNREADABLE_IMAGE, paths[0])


def troubles_of_tree(tree: SnapshotTree, *, is_complete: bool) -> Iterator[Trouble]:
    """What is wrong with the snapshots themselves, as libvirt lists them."""
    for snapshot in tree:
        if snapshot.problem:
            text = f"Snapshot {quoted(snapshot.name)}: {plain(snapshot.problem)}"
            yield Trouble(Severity.WARNING, text, Kind.DAMAGED_SNAPSHOT, snapshot.name)
        if snapshot.annotations.half_deleted:
            text = f"Snapshot {quoted(snapshot.name)} was left half deleted: what it holds is a mixture."
            yield Trouble(Severity.WARNING, text, Kind.MIXTURE, snapshot.name)
        if snapshot.annotations.doubtful:
            text = (
                f"Snapshot {quoted(snapshot.name)} may not show what was there when it was taken: it is marked as"
                " doubtful, since a layer that it stands on was merged or written to by hand."
            )
            yield Trouble(Severity.WARNING, text, Kind.DOUBTFUL, snapshot.name)
        if snapshot.delete_in_progress:
            text = f"A delete below snapshot {quoted(snapshot.name)} was interrupted."
            yield Trouble(Severity.WARNING, text, Kind.HALF_DELETED, snapshot.name)
    if is_complete and len(tree) and tree.current is None:
        text = "libvirt knows of no current snapshot: what runs now descends from none."
        yield Trouble(Severity.WARNING, text, Kind.NO_CURRENT)
