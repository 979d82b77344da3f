"""What is fetched of a far image beforehand is all that its analysis reads, and bounded whatever the image says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snaptree.images.files import LocalFile, open_local
from snaptree.images.layer_windows import Layer
from snaptree.images.metadata_copy import FIRST_READ, GAP, PIECE, MetadataCopy, Piece, copy_metadata
from snaptree.images.overlaps import read_overlaps
from snaptree.images.qcow2 import read_content
from snaptree.images.read_at import BadImageError
from snaptree.images.sharing import Sharing, read_sharing
from snaptree.images.tables import LEAST_TABLE_BYTES
from snaptree.model.errors import CancelledError
from tests.images.conftest import QemuImg, run
from tests.images.lying_files import GALLERY

MEBIBYTE = 1 << 20


class FarFile:
    """A file, as if it were far away; counts what was asked for by itself, and in rounds."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        self.singles: list[Piece] = []
        self.rounds: list[list[Piece]] = []

    @property
    def size(self) -> int:
        return self._file.size

    def read_at(self, offset: int, length: int) -> bytes:
        self.singles.append((offset, length))
        return self._file.read_at(offset, length)

    def read_pieces(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        self.rounds.append(list(pieces))
        return (self._file.read_at(*piece) for piece in self.rounds[-1])

    @property
    def bytes(self) -> int:
        return sum(length for each in self.rounds for _, length in each)


@contextmanager
def far(path: Path) -> Iterator[FarFile]:
    with open_local(str(path)) as file:
        yield FarFile(file)


def never() -> bool:
    return False


def told(sharing: Sharing) -> list[object]:
    """Figures of each holder."""
    holders = range(len(sharing.snapshots) + 1)
    return [(sharing.referred(each), sharing.unique(each)) for each in holders]


@settings(max_examples=settings().max_examples // 4)
@given(
    cluster=st.sampled_from([512, 4096, 65536, 2 * MEBIBYTE]),
    writes=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 60), st.booleans()), max_size=8),
)
def test_an_analysis_of_the_copy_reads_nothing_more(cluster: int, writes: list[tuple[int, int, bool]]) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, "256M")
        for number, (place, length, is_held) in enumerate(writes):
            run("qemu-io", "-c", f"write -q {place * 65536} {length * 4096}", path)
            if is_held:
                run("qemu-img", "snapshot", "-c", f"state{number}", path)
        with far(path) as image, open_local(str(path)) as file:
            copy = copy_metadata(image, path.stat().st_blocks * 512, never)
            assert len(image.rounds) <= 4 + (cluster > FIRST_READ)
            assert max(length for each in image.rounds for _, length in each) <= PIECE
            assert told(read_sharing(copy, read_content(copy))) == told(read_sharing(file, read_content(file)))
            alone = {str(path): None}
            found = read_overlaps({str(path): Layer.of_qcow2(copy)}, alone)
            assert found == read_overlaps({str(path): Layer.of_qcow2(file)}, alone)
            assert image.singles == []


def test_tables_far_apart_come_alone_and_neighbours_together(qemu_img: QemuImg) -> None:
    path = qemu_img.create("image", "64G")
    for place in range(0, 64, 8):
        run("qemu-io", "-c", f"write -q {place}G {MEBIBYTE if place > 16 else 65536}", path)
    with far(path) as image:
        copy_metadata(image, None, never)
        tables = image.rounds[-1]
        assert image.bytes < path.stat().st_blocks * 512
        assert all(second - sum(first) > GAP for first, (second, _) in pairwise(tables))
        assert 1 < len(tables) < 8


def test_what_was_not_fetched_is_read_from_the_image(qemu_img: QemuImg) -> None:
    path = qemu_img.create("image", "1G")
    run("qemu-io", "-c", "write -q -P 7 0 8M", path)
    with far(path) as image:
        copy = copy_metadata(image, None, never)
        whole = path.read_bytes()
        assert copy.read_at(5 * MEBIBYTE, 4096) == whole[5 * MEBIBYTE : 5 * MEBIBYTE + 4096]
        assert image.singles == [(5 * MEBIBYTE, 4096)]
        assert copy.read_at(len(whole) - 10, 100) == whole[-10:]
        assert copy.read_at(len(whole) + 10, 100) == b""


def test_pieces_that_touch_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4)
    with far(path) as image:
        copy = MetadataCopy(image)
        copy.fetch([(512, 256), (0, 256), (256, 256)], never)
        assert copy.read_at(100, 600) == path.read_bytes()[100:700]
        assert image.singles == []
        rounds = len(image.rounds)
        copy.fetch([(300, 400)], never)
        assert len(image.rounds) == rounds, "it is there already"


def test_fetching_is_cancelled_between_pieces(qemu_img: QemuImg) -> None:
    path = qemu_img.create("image", "64G")
    for place in range(0, 64, 8):
        run("qemu-io", "-c", f"write -q {place}G 1M", path)
    answers = iter([False] * 3)
    with far(path) as image, pytest.raises(CancelledError):
        copy_metadata(image, None, lambda: next(answers, True))


@pytest.mark.parametrize("name", GALLERY)
def test_no_image_makes_us_fetch_much_more_than_it_takes(tmp_path: Path, name: str) -> None:
    path = GALLERY[name](tmp_path)[0]
    allocated = path.stat().st_blocks * 512
    with far(path) as image:
        with suppress(BadImageError):
            copy_metadata(image, allocated, never)
        assert image.bytes <= LEAST_TABLE_BYTES + 5 * allocated
