"""What parts of a file take, against what the file system says of the whole."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.images.extents import taken_on_host, written_in

BLOCK = 4096


class Opened:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield Opened(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extents") / "sparse"


@pytest.mark.parametrize("is_mapped", [True, False])
@given(
    blocks=st.sets(st.integers(0, 60)),
    unit=st.sampled_from([512, 1024, 4096, 12288, 65536]),
    first=st.integers(0, 70),
    units=st.integers(0, 200),
)
def test_each_piece_takes_what_was_written_of_it(
    sparse: Path, is_mapped: bool, blocks: set[int], unit: int, first: int, units: int
) -> None:
    sparse.unlink(missing_ok=True)
    with opened(sparse) as file, pytest.MonkeyPatch.context() as patch:
        for block in blocks:
            os.pwrite(file.descriptor, b"x" * BLOCK, block * BLOCK)
        os.fsync(file.descriptor)
        if not is_mapped:
            patch.setattr(fcntl, "ioctl", no_map)
        taken = taken_on_host(file)
        assert taken is not None
        found = taken(first * 512, unit, units).tolist()
        expected = [
            sum(max(0, min(start + unit, (block + 1) * BLOCK) - max(start, block * BLOCK)) for block in blocks)
            for start in range(first * 512, first * 512 + unit * units, unit)
        ]
        assert found == expected


def no_map(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_file_in_many_pieces(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as file:
        for block in range(0, 10_000, 2):
            os.pwrite(file.descriptor, b"x", block * BLOCK)
        os.fsync(file.descriptor)
        taken = taken_on_host(file)
        assert taken is not None
        assert taken(0, BLOCK, 10_000).tolist() == [BLOCK, 0] * 5_000


@pytest.mark.parametrize("is_mapped", [True, False])
def test_what_was_set_aside_takes_room_and_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    with opened(tmp_path / "a") as file:
        os.posix_fallocate(file.descriptor, 0, 4 * BLOCK)
        os.pwrite(file.descriptor, b"x" * BLOCK, 2 * BLOCK)
        os.fsync(file.descriptor)
        taken = taken_on_host(file)
        assert taken is not None
        assert taken(0, BLOCK, 5).tolist() == [BLOCK] * 4 + [0]
        if not is_mapped:
            monkeypatch.setattr(fcntl, "ioctl", no_map)
        written = written_in(file)
        assert written is not None
        assert written(0, BLOCK, 5).tolist() == [0, 0, BLOCK, 0, 0]


def test_what_is_no_file_does_not_tell() -> None:
    ends = os.pipe()
    try:
        assert taken_on_host(Opened(ends[0])) is None
    finally:
        for end in ends:
            os.close(end)
