"""Where lies what a job copies: where QEMU says that the layers hold anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snaptree.images import copy_map
from snaptree.images.copy_map import CopyMap, read_copy_map
from snaptree.images.read_at import BadImageError
from snaptree.model.errors import CancelledError
from tests.images.block_jobs import KIBIBYTE, MEBIBYTE, Made, driver_of, make_chain
from tests.images.conftest import run
from tests.images.test_overlaps import chains, hostile, opened, pile_of

pytestmark = pytest.mark.qemu

SECTOR = 512


def held(path: Path, sectors: int) -> NDArray[np.bool_]:
    """The sectors of which a layer itself says anything."""
    found = np.zeros(sectors, np.bool_)
    for extent in json.loads(run("qemu-img", "map", "--output=json", "-f", driver_of(path), path)):
        if extent["depth"] == 0 and (extent["present"] or driver_of(path) == "raw"):
            found[extent["start"] // SECTOR : -(-(extent["start"] + extent["length"]) // SECTOR)] = True
    return found


def look(sources: Sequence[Path], covered_by: Path | None = None) -> CopyMap:
    with opened([*sources, *([] if covered_by is None else [covered_by])]) as layers:
        covers = None if covered_by is None else layers[str(covered_by)]
        return read_copy_map([layers[str(path)] for path in sources], covers)


@settings(phases=[Phase.generate], max_examples=40)
@given(made=chains(), data=st.data())
def test_any_chain_is_copied_where_qemu_says_that_it_holds_anything(made: list[Made], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        paths = make_chain(Path(directory), made)
        top = data.draw(st.integers(0, len(made) - 2), "top")
        is_pull = data.draw(st.booleans(), "pull")
        sources = paths[top + 1 :] if is_pull else paths[top:-1]
        found = look(sources, paths[top] if is_pull else None)
        sectors = made[top].size // SECTOR
        copied = np.zeros(sectors, np.bool_)
        for path in sources:
            copied |= held(path, sectors)
        if is_pull:
            copied &= ~held(paths[top], sectors)
    assert found.size == made[top].size
    before = np.concatenate([[0], np.cumsum(copied)]) * SECTOR
    slack = found.stretch * (len(made) + 1)  # a layer that ends within a stretch
    for place in sorted(data.draw(st.lists(st.integers(0, sectors)), "places")):
        assert abs(found.copied(place * SECTOR) - int(before[place])) <= slack
    told = [found.copied(place) for place in range(0, found.size + 1, 5000)]
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= found.total == found.copied(found.size)


def test_a_large_disk_is_told_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_map, "_MOST_STRETCHES", 16)
    size = 64 * MEBIBYTE
    written = ("write -q 0 1M", "write -q 33M 2M")
    paths = make_chain(tmp_path, [Made(size), Made(size, sessions=(written,)), Made(size)])
    found = look([paths[1]])
    assert (found.stretch, len(found.before)) == (4 * MEBIBYTE, 17)
    assert found.total == 3 * MEBIBYTE
    assert found.copied(2 * MEBIBYTE) == 512 * KIBIBYTE, "half way through the stretch that holds the first"
    assert [found.copied(place * MEBIBYTE) for place in (4, 32, 36, 64)] == [MEBIBYTE, MEBIBYTE, 3 << 20, 3 << 20]


def test_looking_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    image = hostile(16, 1 << 12, lambda index: (64 << 20) + (index % 4 << 16), 1 << 40)
    layers, _ = pile_of(image, 3, allocated=1 << 22)
    with pytest.raises(BadImageError):
        read_copy_map([*layers.values()])
    empty = hostile(21, 1 << 22, lambda index: 0 * index, 1 << 40)
    layers, _ = pile_of(empty, 2)
    assert read_copy_map([*layers.values()]).total == 0
    monkeypatch.setattr(copy_map, "_MOST_UNITS", 0)
    image = hostile(16, 1 << 12, lambda index: (64 << 20) + (index << 16), 1 << 40)
    layers, _ = pile_of(image, 1)
    with pytest.raises(BadImageError, match="too finely"):
        read_copy_map([*layers.values()])
    with pytest.raises(CancelledError):
        read_copy_map([*layers.values()], cancelled=lambda: True)
