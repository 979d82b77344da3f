"""What the layers of a disk hold of it: what of each shows, what those above cover, what merging any of them takes.

The layers form a tree, each standing on at most one other. For every layer the disk is seen as its reader sees it: for
each unit, how deep the topmost layer lies that says anything of it. How often each depth occurs answers every
question about merging layers that lie on each other, for whatever was below the lowest of them is below it still.

What a job of QEMU writes depends on its version where zeros are concerned: there both bounds are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from snaptree.images.files import DEEPEST_CHAIN
from snaptree.images.layer_windows import (
    DATA,
    LARGEST_CLUSTER,
    TRANSPARENT,
    Kinds,
    Layer,
    Window,
    allocated_by,
    common_unit,
    readers_of,
    touched_windows,
)
from snaptree.images.read_at import BadImageError
from snaptree.model.errors import CancelledError

View = NDArray[np.uint16]
"""For each unit of a window twice the depth of the topmost layer that defines it, counted from 1, and 1 more where
that is data. 0 where none does."""

Tally = NDArray[np.int64]
"""How often each code occurs in a view."""

_MOST_UNITS: Final = 1 << 31
"""Units times layers that are looked at: some ten seconds, 6 TiB in each of twenty layers."""
_LEAST_UNITS: Final = 1 << 24
_BYTES_PER_UNIT: Final = 2
"""If files take little on the host, fewer are looked at: 1 TiB of clusters of 64 KiB, and one unit for so many bytes
that they take."""
_UNITS_PER_LOOK: Final = 1 << 9
"""What a look at a layer costs at least, even if it has nothing there."""
_EVEN: Final = 8
"""So many units cost as much as one, where all of a window are alike."""
_SMALLEST_GRANULE: Final = 4 << 10
_LARGEST_GRANULE: Final = 64 << 10
"""QEMU's mirror copies pieces of a cluster of what it writes to, but none smaller or larger than these
(`bdrv_get_default_bitmap_granularity`)."""

_Number = TypeVar("_Number", np.uint16, np.uint8)
_Sums = tuple[int, ...]
"""By depth: how much there is at that depth and above."""


@dataclass(frozen=True, slots=True)
class MergeBounds:
    """What making one layer of several writes, in bytes; tables of reference counts are left out."""

    copies_least: int
    copies_most: int
    growth_least: int
    growth_most: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a reader of one layer sees, by how deep it lies: index 0 stands for all, 1 for the bottom layer and up."""

    data: _Sums
    """Bytes of data."""
    defined: _Sums
    """Bytes of data and zeros."""
    coarse: _Sums
    """Bytes of those large clusters in which anything is defined."""
    tables: _Sums
    """Tables in which anything is defined."""
    data_tables: _Sums
    """Tables in which data is defined."""


@dataclass(frozen=True, slots=True)
class _Known:
    """One layer."""

    depth: int
    """Counted from 1 at the bottom."""
    below: str | None
    size: int
    cluster: int
    table_span: int
    is_raw: bool
    is_cut: bool
    """Into subclusters."""
    data: int
    """Bytes that it defines as data."""
    own_tables: int
    """Tables in which it defines anything."""
    owned: int
    owned_data: int
    shared_data: int
    unsure: int
    """Of what counts as data: bytes that may be zeros."""
    tables: int
    seen: _Seen


@dataclass(frozen=True, slots=True)
class Overlaps:
    """What was found of the layers of one disk. Layers are named by path, bytes are the guest's."""

    layers: Mapping[str, _Known]
    unit: int
    """Bytes in which all was counted; what is less at the end of a layer counts in full."""
    table_span: int
    """Bytes of the disk for which tables were counted."""
    anomalies: int
    """Entries of tables that a sound image does not have; while it is written to, a reason to read again."""

    def data(self, layer: str) -> int:
        """What a layer itself defines as data. Of a raw one, what was written."""
        return self.layers[layer].data

    def visible(self, layer: str, top: str) -> int:
        """How much of a layer's data a reader of `top` sees, which is that layer or stands on it."""
        depth = self._depth_below(layer, top)
        data = self.layers[top].seen.data
        return data[depth] - data[depth + 1]

    def merge(self, bottom: str, top: str, into: str) -> MergeBounds:
        """What it takes to make one layer of those from `bottom` to `top` that shows what `top` shows.

        It is made in the file of `into`: what is above that is committed into it, then what is below is pulled. What an
        image calls data counts as data, even zeros, which a pull may find out, and holes of its file, which any job
        does. Raises ValueError if `top` does not stand on `bottom`, or `into` is none of them.
        """
        depth, at = self._depth_below(bottom, top), self._depth_below(into, top)
        if bottom == top or at < depth:
            raise ValueError("several layers are merged into one of them")
        path = self._path(bottom, top)
        target, seen = self.layers[into], self.layers[top].seen
        upper = depth + 1  # the lowest but one
        clusters = {layer.cluster for layer in path if not layer.is_raw}
        is_even = len(clusters) == 1 and min(clusters) >= _SMALLEST_GRANULE and not any(each.is_cut for each in path)
        if target.is_raw and is_even:
            is_even = min(clusters) == _LARGEST_GRANULE
        together = seen.defined if is_even else seen.coarse
        copies_least = seen.data[at + 1] + seen.data[depth] - seen.data[at]
        copies_most = together[at + 1]
        if into != bottom:
            copies_most += together[depth] - (seen.defined[at] if is_even else 0)
        unsure = 0
        if into != bottom:
            unsure = min(path[-1].unsure, self.visible(bottom, top))
            copies_least -= unsure
        growth_least = seen.data[depth] - unsure - target.owned - target.shared_data
        growth_most = together[depth] - target.owned_data + self._beyond_end(target)
        if target.is_raw:
            holes = seen.defined[1] - seen.defined[2] - (seen.data[1] - seen.data[2])
            set_aside = max(0, target.owned - target.data)  # these show as holes, and take room all the same
            growth_most = growth_most - max(0, holes - set_aside) if is_even else together[upper]
            zeros_above = seen.defined[upper] - seen.data[upper]  # which may give room back
            taken = target.owned + target.shared_data
            growth_least = max(growth_least, max(0, seen.data[upper] - taken) - zeros_above)
        else:
            tables_most = seen.tables[depth] - target.own_tables
            if not is_even:  # tables were counted by the shortest span of all, though not less than a coarse cluster
                tables_most = seen.tables[depth] * max(1, self.table_span // target.table_span)
            tables_least = seen.data_tables[depth] - max(target.own_tables, target.tables) if is_even else 0
            growth_most += tables_most * target.cluster
            growth_least += max(0, tables_least) * target.cluster
        zeros = self._zeros_at_ends(path)
        tables = zeros // target.table_span + 3 if zeros and not target.is_raw else 0  # with a longer L1 table
        ragged = self.unit if any(layer.size % self.unit for layer in path) else 0
        return MergeBounds(
            max(0, copies_least - ragged),
            max(copies_least, copies_most, 0) + zeros,
            growth_least - ragged,
            max(growth_least, growth_most) + zeros + tables * target.cluster,
        )

    def _beyond_end(self, layer: _Known) -> int:
        """How much of a layer's last cluster was counted where clusters are counted, and not where units are."""
        return -layer.size % layer.cluster // self.unit * self.unit

    def _zeros_at_ends(self, path: list[_Known]) -> int:
        """At most how many zeros stand where one of these layers, or the one below, is shorter than another."""
        below = path[-1].below
        sizes = {layer.size for layer in path} | ({self.layers[below].size} if below is not None else set())
        return 0 if len(sizes) == 1 else max(sizes) - min(sizes) + LARGEST_CLUSTER

    def _path(self, bottom: str, top: str) -> list[_Known]:
        """Layers from the top down."""
        path = [self.layers[top]]
        name = top
        while name != bottom:
            below = self.layers[name].below
            assert below is not None  # `_depth_below` looked
            name = below
            path.append(self.layers[name])
        return path

    def _depth_below(self, layer: str, top: str) -> int:
        """How deep a layer lies. Raises ValueError if `top` does not stand on it."""
        name: str | None = top
        while name is not None and name != layer:
            name = self.layers[name].below
        if name is None:
            raise ValueError(f"{top} does not stand on {layer}")
        return self.layers[layer].depth


def read_overlaps(
    layers: Mapping[str, Layer], below: Mapping[str, str | None], *, cancelled: Callable[[], bool] = lambda: False
) -> Overlaps:
    """Look at all layers of a disk, each by the path of the one that it stands on; None if it stands on nothing.

    Memory and time are bounded, by what all files take on the host where that is known: layers of few bytes take less
    than a second, however many they are and whatever they say. Raises BadImageError, OSError, CancelledError soon after
    `cancelled` turns true, and ValueError for what is no tree of layers, or a raw one that stands on another.
    """
    return _Walk(layers, below, cancelled).run()


class _Counts:
    """Counts by depth, of one layer's view."""

    def __init__(self, depth: int) -> None:
        slots = depth + 1
        self.data = np.zeros(slots, np.int64)
        self.defined = np.zeros(slots, np.int64)
        self.coarse = np.zeros(slots, np.int64)
        self.tables = np.zeros(slots, np.int64)
        self.data_tables = np.zeros(slots, np.int64)
        self.own = 0
        self.own_tables = 0

    def add(self, view: View, tally: Tally, per_coarse: int, per_table: int) -> None:
        """Count the units of a window, how many clusters of the coarsest kind they touch, and how many tables."""
        slots = len(self.data)
        if (code := _only_code(tally, len(view))) is not None:
            self._add_even(len(view), code, per_coarse, per_table)
            return
        counts = tally.reshape(-1, 2)
        defined = counts.sum(axis=1)
        self.data += counts[:, 1]
        self.defined += defined
        deepest = view if per_coarse == 1 else _highest(view, per_coarse)
        self.coarse += defined if per_coarse == 1 else np.bincount(deepest >> 1, minlength=slots)
        tables = np.bincount(_highest(deepest, per_table // per_coarse) >> 1, minlength=slots)
        self.tables += tables
        if counts[1:, 0].any():
            only_data = view * (view & np.uint16(1))
            tables = np.bincount(_highest(only_data, per_table) >> 1, minlength=slots)
        self.data_tables += tables

    def _add_even(self, units: int, code: int, per_coarse: int, per_table: int) -> None:
        """Count a window all units of which have the same code."""
        depth, is_data = code >> 1, code & 1
        self.data[depth] += units * is_data
        self.defined[depth] += units
        self.coarse[depth] += units // per_coarse
        self.tables[depth] += units // per_table
        self.data_tables[depth] += units // per_table * is_data

    def add_own(self, kinds: Kinds, data: int, per_table: int) -> None:
        """Count what the layer itself defines in a window, so many units of it as data."""
        self.own += data
        self.own_tables += int(np.count_nonzero(_highest(kinds, per_table)))

    def seen(self, unit: int, coarse: int) -> _Seen:
        return _Seen(
            _from_the_top(self.data, unit),
            _from_the_top(self.defined, unit),
            _from_the_top(self.coarse, coarse),
            _from_the_top(self.tables, 1),
            _from_the_top(self.data_tables, 1),
        )


def _only_code(tally: Tally, units: int) -> int | None:
    """The code of all units, if they have the same."""
    code = int(tally.argmax())
    return code if tally[code] == units else None


def _cost(window: Window, seen: tuple[View, Tally] | None) -> int:
    """What it takes to look at a layer in a window, counted in units."""
    if seen is None:
        return _UNITS_PER_LOOK
    is_even = _only_code(seen[1], window.units) is not None
    return max(window.units // _EVEN, _UNITS_PER_LOOK) if is_even else window.units


def _highest(values: NDArray[_Number], width: int) -> NDArray[_Number]:
    """The highest of each so many neighbours."""
    return values if width == 1 else values.reshape(-1, width).max(axis=1)


def _from_the_top(counts: NDArray[np.int64], size: int) -> _Sums:
    """Sum up from each depth to the top; one more at the end, above the top. What nobody defines is left out."""
    counts = counts * size
    counts[0] = 0
    return tuple(reversed(list(accumulate(reversed(counts.tolist()), initial=0))))


class _Walk:
    def __init__(
        self, layers: Mapping[str, Layer], below: Mapping[str, str | None], cancelled: Callable[[], bool]
    ) -> None:
        self._layers = layers
        self._below = below
        self._cancelled = cancelled
        self._above = _upside_down(layers, below)
        self._order = list(_from_the_bottom(self._above))
        if len(self._order) != len(layers):
            raise ValueError("layers must stand on each other without a circle")
        self._depths: dict[str, int] = {}
        for name in self._order:
            base = below[name]
            self._depths[name] = 1 if base is None else self._depths[base] + 1
            if base is not None and layers[name].header is None:
                raise ValueError("only a bottom layer can be raw")
        if max(self._depths.values(), default=0) > DEEPEST_CHAIN:
            raise BadImageError(f"it has more than {DEEPEST_CHAIN} layers")
        self._readers = dict(zip(layers, readers_of([*layers.values()], cancelled), strict=True))
        self._units_left = _MOST_UNITS
        if (allocated := allocated_by(layers.values())) is not None:
            self._units_left = min(_MOST_UNITS, _LEAST_UNITS + allocated // _BYTES_PER_UNIT)

    def run(self) -> Overlaps:
        readers = list(self._readers.values())
        unit = common_unit(readers)
        clusters = [self._readers[name].cluster for name in self._order if self._layers[name].header is not None]
        coarse = max([*clusters, _LARGEST_GRANULE])
        spans = [self._readers[name].table_span for name in self._order if self._layers[name].header is not None]
        span = max(min(spans, default=0), coarse)
        counts = {name: _Counts(self._depths[name]) for name in self._order}
        held = 2 + sum(len(above) > 1 for above in self._above.values())
        for window in touched_windows(readers, unit, max(span, LARGEST_CLUSTER), held):
            self._look(window, counts, coarse // unit, span // unit)
        return Overlaps(
            {name: self._known(name, counts[name], unit, coarse) for name in self._order},
            unit,
            span,
            sum(reader.anomalies for reader in readers),
        )

    def _known(self, name: str, counts: _Counts, unit: int, coarse: int) -> _Known:
        reader, held = self._readers[name], self._readers[name].held
        return _Known(
            depth=self._depths[name],
            below=self._below[name],
            size=reader.size,
            cluster=reader.cluster,
            table_span=reader.table_span,
            is_raw=self._layers[name].header is None,
            is_cut=reader.finest != reader.cluster,
            data=counts.own * unit,
            own_tables=counts.own_tables,
            owned=held.owned,
            owned_data=held.owned_data,
            shared_data=held.shared_data,
            unsure=held.unsure,
            tables=held.tables,
            seen=counts.seen(unit, coarse),
        )

    def _look(self, window: Window, counts: Mapping[str, _Counts], per_coarse: int, per_table: int) -> None:
        """Go through all layers from the bottom up, branch by branch."""
        views: dict[str, tuple[View, Tally] | None] = {}
        waiting = {name: len(above) for name, above in self._above.items()}
        for name in self._order:
            if self._cancelled():
                raise CancelledError("Looking at the layers was cancelled.")
            seen = self._seen_below(name, views, waiting)
            kinds = self._readers[name].load(window)
            if kinds is not None:
                data = int(np.count_nonzero(kinds == DATA))
                zeros = int(np.count_nonzero(kinds)) - data
                counts[name].add_own(kinds, data, per_table)
                seen = _lay_over(seen, kinds, data, zeros, self._depths[name])
            self._units_left -= _cost(window, seen)
            if self._units_left < 0:
                raise BadImageError("its disk is too large, and cut too finely, to be looked at")
            if seen is not None:
                seen = _cut_off(*seen, window.units_before(self._readers[name].size), self._depths[name])
                counts[name].add(*seen, per_coarse, per_table)
            views[name] = seen

    def _seen_below(
        self, name: str, views: dict[str, tuple[View, Tally] | None], waiting: dict[str | None, int]
    ) -> tuple[View, Tally] | None:
        """What shows below a layer, and how often each code does: its own to write to, a copy where others want it."""
        below = self._below[name]
        if below is None:
            return None
        waiting[below] -= 1
        seen = views[below]
        if seen is None:
            return None
        view, tally = seen
        if waiting[below]:
            view = view.copy()
        else:
            del views[below]
        return view, np.append(tally, np.zeros(2, np.int64))


def _lay_over(seen: tuple[View, Tally] | None, kinds: Kinds, data: int, zeros: int, depth: int) -> tuple[View, Tally]:
    """Put a layer over what is seen below it."""
    code = np.uint16(2 * depth - 1)
    units = len(kinds)
    if seen is None or data + zeros == units:
        # Nothing else is seen: the common case of a base, and of a disk that was written full.
        tally = np.zeros(2 * depth + 2, np.int64)
        tally[[0, 2 * depth, 2 * depth + 1]] = units - data - zeros, zeros, data
        if data == units:
            return np.full(units, 2 * depth + 1, np.uint16), tally
        view = kinds + code
        view *= kinds != TRANSPARENT  # a product has no branches
        return view, tally
    view, tally = seen
    if data + zeros > units >> 2:
        np.copyto(view, kinds + code, where=kinds != TRANSPARENT)
        return view, np.bincount(view, minlength=len(tally))
    if data + zeros:
        changed = kinds != TRANSPARENT
        tally -= np.bincount(view[changed], minlength=len(tally))
        tally[2 * depth] += zeros
        tally[2 * depth + 1] += data
        np.copyto(view, kinds + code if zeros else code + np.uint16(DATA), where=changed)
    return view, tally


def _cut_off(view: View, tally: Tally, units: int, depth: int) -> tuple[View, Tally]:
    """Leave nothing to be seen beyond the end of a layer."""
    if units == len(view) or not view[units:].any():
        return view, tally
    view[units:] = 0
    return view, np.bincount(view, minlength=2 * depth + 2)


def _upside_down(layers: Mapping[str, Layer], below: Mapping[str, str | None]) -> dict[str | None, list[str]]:
    """Layer -> those that stand on it; None -> those at the bottom."""
    above: dict[str | None, list[str]] = {}
    for name in layers:
        base = below[name]
        if base is not None and base not in layers:
            raise ValueError(f"{name} stands on {base}, which is not among the layers")
        above.setdefault(base, []).append(name)
    return above


def _from_the_bottom(above: Mapping[str | None, list[str]]) -> Iterator[str]:
    """Every layer after the one that it stands on, branch by branch."""
    waiting = list(reversed(above.get(None, [])))
    while waiting:
        name = waiting.pop()
        yield name
        waiting += reversed(above.get(name, []))
