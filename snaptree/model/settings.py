"""What a machine's settings are at a moment, and what of them differs between two, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType

from snaptree.model.estate import DomainLayers
from snaptree.model.tree import SnapshotTree

THERE = "yes"
"""The value of what is either there or not."""

WHILE_RUNNING = "While running: "
"""Before what differs between two running machines, but not between their definitions."""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting that differs: `before` and `after` are words, None where there is no such thing."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two moments of a machine: snapshots by name, or *Now* (None)."""

    before: str | None
    after: str | None
    changes: tuple[SettingChange, ...]
    xml: tuple[str, ...] = ()
    """The difference of the two definitions, line by line, as `diff -u` writes it."""


@dataclass(frozen=True, slots=True)
class DiskImage:
    """The image that a disk writes to."""

    path: str
    format: str

    def __str__(self) -> str:
        return f"{self.path} ({self.format})"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a machine: one of its devices, or (with no title) the machine itself."""

    kind: str
    name: str
    """What tells it from others of its kind; empty if nothing does."""
    title: str
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What is set -> its value, both in words."""
    summary: str = field(default="", compare=False)
    """What it is, where it is added or removed."""
    name_is: str = ""
    """What `name` is called among its settings: "MAC address"."""
    image: DiskImage | None = None
    """What a disk writes to. Snapshots change that all the time, which is no change of settings."""


SharesLayers = Callable[[str, str], bool]
"""Whether two images are layers of one disk."""


def compare(
    before: Sequence[Part], after: Sequence[Part], same_disk: SharesLayers | None = None
) -> tuple[SettingChange, ...]:
    """What differs, in the order of `after`, what was removed last.

    Parts are paired by what they are called. Those that nothing tells apart pair if they are equal, the others in their
    order. `same_disk` tells whether two images are layers of one disk; without it nothing is said of images.
    """
    pairs = _without_renamed(list(_pairs(before, after)), same_disk)
    changes: list[SettingChange] = []
    for old, new in sorted(pairs, key=lambda pair: pair[1] is None):
        if old is None or new is None:
            part = old or new
            assert part is not None
            what = part.title or part.kind
            changes.append(SettingChange(what, old.summary if old else None, new.summary if new else None))
        else:
            changes += _differences(old, new, same_disk)
    return tuple(changes)


_Pair = tuple[Part | None, Part | None]


def _pairs(before: Sequence[Part], after: Sequence[Part]) -> Iterator[_Pair]:
    """Each part with its counterpart, in the order of `after`; what has none stands alone."""
    olds = _by_key(before)
    for key, news in _by_key(after).items():
        others = olds.pop(key, [])
        equal: list[_Pair] = []
        for new in list(news):
            if new in others:
                others.remove(new)
                news.remove(new)
                equal.append((new, new))
        yield from equal
        yield from zip_longest(others, news)
    yield from ((old, None) for others in olds.values() for old in others)


def _by_key(parts: Iterable[Part]) -> dict[tuple[str, str], list[Part]]:
    found: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        found.setdefault((part.kind, part.name), []).append(part)
    return found


def _without_renamed(pairs: list[_Pair], same_disk: SharesLayers | None) -> list[_Pair]:
    """Pair what was removed with what was added where only its name is another."""
    for removed in [old for old, new in pairs if old is not None and new is None and old.name]:
        for added in [new for old, new in pairs if old is None and new is not None]:
            is_same = added.kind == removed.kind and not list(_other_settings(removed, added, same_disk))
            if is_same and added.name:
                pairs.remove((removed, None))
                pairs[pairs.index((None, added))] = (removed, added)
                break
    return pairs


def _differences(old: Part, new: Part, same_disk: SharesLayers | None) -> Iterator[SettingChange]:
    if old.name != new.name:
        yield SettingChange(f"{old.title}: {new.name_is}", old.name, new.name)
    for what, before, after in _other_settings(old, new, same_disk):
        yield SettingChange(f"{new.title}: {what}" if new.title else what, before, after)


def _other_settings(
    old: Part, new: Part, same_disk: SharesLayers | None
) -> Iterator[tuple[str, str | None, str | None]]:
    if (old.image is None) != (new.image is None) or _is_other_disk(old.image, new.image, same_disk):
        yield "image", _image(old), _image(new)
    for what in dict.fromkeys([*new.settings, *old.settings]):
        before, after = old.settings.get(what), new.settings.get(what)
        if before != after:
            yield what, before, after


def _image(part: Part) -> str | None:
    return None if part.image is None else str(part.image)


def _is_other_disk(old: DiskImage | None, new: DiskImage | None, same_disk: SharesLayers | None) -> bool:
    if old is None or new is None or old == new:
        return False
    if old.path == new.path:
        return True  # read in another format
    # Layers of one disk may have any format.
    return same_disk is not None and not same_disk(old.path, new.path)


def layers_of_one_disk(tree: SnapshotTree, layers: DomainLayers) -> SharesLayers:
    """Tell which images the snapshots of a machine made layers of one disk.

    What lies below all snapshots, such as an image that several machines share, makes no disks one.
    """
    overlays = [(disk.frozen, disk.overlay) for snapshot in tree for disk in snapshot.disks]
    for snapshot in tree:
        frozen = {disk.target: disk.frozen for disk in snapshot.disks}
        overlays += [(frozen.get(target), overlay) for target, overlay in snapshot.revert_overlays]
    links = [(lower, upper) for lower, upper in overlays if lower and upper]
    snapshotted = {lower for lower, _ in overlays if lower} | {upper for _, upper in links}
    links += [
        (image.backing, image.path)
        for image in layers.images.values()
        if image.backing is not None and image.backing in snapshotted
    ]
    disks = {path: path for link in links for path in link}

    def disk(path: str) -> str:
        """One of the layers, which stands for all of them."""
        while path in disks and disks[path] != path:
            disks[path] = disks[disks[path]]
            path = disks[path]
        return path

    for lower, upper in links:
        disks[disk(lower)] = disk(upper)
    return lambda one, other: disk(one) == disk(other)
