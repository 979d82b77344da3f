"""Files of saved memory: bytes on disk, and what makes them no saved memory at all."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snaptree.images.files import open_local
from snaptree.images.saved_memory import read_memory_file, read_memory_header
from snaptree.model.figures import exact


def header(
    magic: bytes = b"LibvirtQemudSave", version: int = 2, xml: int = 4, order: str = "<", kind: int = 0
) -> bytes:
    return struct.pack(order + "16s5I56x", magic, version, xml, 1, kind, 0) + b"<a/>"


def test_a_sparse_file_takes_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(header())
    os.truncate(path, 140 << 20)
    assert read_memory_file(path) == exact(path.stat().st_blocks * 512, "blocks of the file system")
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_of_hosts_of_either_byte_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "memory"
    path.write_bytes(header(order=order, kind=5))
    with open_local(str(path)) as file:
        found = read_memory_header(file)
    assert (found.is_complete, found.data_length, found.was_running, found.compression) == (True, 4, True, "zstd")


def test_a_compression_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(header(kind=40))
    with open_local(str(path)) as file:
        assert read_memory_header(file).compression == "40"


def test_a_save_that_did_not_finish_takes_its_bytes_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(header(b"LibvirtQemudPart"))
    figure = read_memory_file(path)
    assert figure.bytes == path.stat().st_blocks * 512
    assert "did not finish" in figure.how


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin like saved memory"),
        (b"something else" * 10, "does not begin like saved memory"),
        (header()[:50], "ends in the middle of its header"),
        (header(version=0x01020304), "version"),
        (header(xml=5), "longer than it may be"),
        (header(xml=(1 << 32) - 1), "longer than it may be"),
    ],
)
def test_what_is_no_saved_memory_is_unknown_and_told(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "memory"
    path.write_bytes(content)
    figure = read_memory_file(path)
    assert not figure.is_known
    assert why in figure.how
    assert str(path) in figure.how


def test_a_missing_file(tmp_path: Path) -> None:
    figure = read_memory_file(tmp_path / "memory")
    assert not figure.is_known
    assert figure.how == f"no such file: {tmp_path}/memory"


@pytest.mark.timeout(10)
def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "memory")
    assert "neither a regular file" in read_memory_file(tmp_path / "memory").how


def test_who_may_not_read_it_still_learns_its_size(as_nobody: Callable[[], AbstractContextManager[None]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "memory"
        path.write_bytes(header())
        path.chmod(0)
        with as_nobody():
            assert read_memory_file(path) == exact(path.stat().st_blocks * 512, "blocks of the file system")
        Path(name).chmod(0)
        with as_nobody():
            assert "you may not read it" in read_memory_file(path).how
        Path(name).chmod(0o755)
