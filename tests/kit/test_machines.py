"""The oracle of every change: the digest of what a guest reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.machines import digest_of_raw

_PIECE = 4096
_PLACES = st.dictionaries(st.integers(0, 79), st.binary(min_size=1, max_size=3), max_size=6)
"""Pieces of a small image that are not zero, a few around its blocks' ends."""


def image(pieces: dict[int, bytes], size: int, *, sparse: bool) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "image")
        with path.open("wb") as file:
            if not sparse:
                file.write(bytes(size))
            file.truncate(size)
            for number, data in pieces.items():
                if number * _PIECE + len(data) <= size:
                    file.seek(number * _PIECE)
                    file.write(data)
        return digest_of_raw(path)


def written(pieces: dict[int, bytes], size: int) -> tuple[object, ...]:
    """What tells one image from another."""
    data = ((number, data.rstrip(b"\0")) for number, data in pieces.items() if number * _PIECE + len(data) <= size)
    return size, frozenset(each for each in data if each[1])


@given(_PLACES, _PLACES, st.integers(0, 80 * _PIECE), st.booleans())
def test_digests_are_equal_where_contents_are_however_they_lie_in_the_file(
    one: dict[int, bytes], other: dict[int, bytes], size: int, same: bool
) -> None:
    other = one if same else other
    is_equal = image(one, size, sparse=True) == image(other, size, sparse=False)
    assert is_equal == (written(one, size) == written(other, size))
