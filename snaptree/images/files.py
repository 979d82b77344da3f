"""Image files on this computer: what one is, what it takes on disk, and what it stands on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from snaptree.images.analyses import OpenImage
from snaptree.images.qcow2 import Qcow2Content, as_image, has_protocol, read_content
from snaptree.images.read_at import BadImageError, in_words
from snaptree.images.versions import Remembered, Version
from snaptree.model.estate import Image
from snaptree.model.figures import Figure, exact, unknown

DEEPEST_CHAIN: Final = 500
"""Layers in one chain: far above what QEMU itself would open, and an end for hostile images."""

_ALWAYS_AT_THE_BOTTOM: Final = frozenset(
    {"raw", "luks", "iso", "vdi", "vpc", "vhdx", "dmg", "bochs", "cloop", "parallels", "ploop"}
)
"""Formats that cannot have a backing file, so that all is known without reading them."""

_MOST_SNAPSHOTS_CACHED: Final = 1000

ReadImage = Callable[[str, str], Image]
"""Reads an image by path and recorded format; never raises for a bad one."""


@dataclass(frozen=True, slots=True)
class Chain:
    """An image and all it stands on, from the top down, the one that ended the walk included."""

    images: tuple[Image, ...]
    problem: str = ""
    """Why the walk ended above the bottom; empty if it did not."""


def read_chain(path: str, recorded_format: str, read_image: ReadImage) -> Chain:
    """Follow backing files down to the bottom. A circle, a gap, or too many layers end the walk and are told."""
    images: list[Image] = []
    seen: set[object] = set()
    image = read_image(path, recorded_format)
    while True:
        if (image.identity or image.path) in seen:
            return Chain(tuple(images), f"its backing files run in a circle: {image.path} stands on itself")
        seen.add(image.identity or image.path)
        images.append(image)
        if image.problem:
            names_it = image.path in image.problem
            return Chain(tuple(images), image.problem if names_it else f"{image.path}: {image.problem}")
        if image.backing is None:
            return Chain(tuple(images))
        if len(images) >= DEEPEST_CHAIN:
            return Chain(tuple(images), f"it has more than {DEEPEST_CHAIN} layers")
        image = read_image(image.backing, image.backing_format or "")


class ImageReader:
    """Reads image files, and remembers what was in those that did not change. Any thread may use it."""

    def __init__(self, most_remembered: int = 4096) -> None:
        self._contents: Remembered[Qcow2Content] = Remembered(most_remembered)

    def read_image(self, path: str | Path, recorded_format: str) -> Image:
        """Read what is known of an image, by its recorded format alone: none is ever guessed from content.

        Never raises for an image: what is missing, forbidden or broken stands in `problem`.
        """
        path = str(path)
        if has_protocol(path) or not path.startswith("/"):
            return _without_bytes(path, recorded_format, "it is not a local file")
        try:
            status = look_at(path)
            image = Image(path, recorded_format, allocated_by(status), identity=_identity(status))
        except FileNotFoundError:
            return replace(_without_bytes(path, recorded_format, f"no such file: {path}"), is_missing=True)
        except (OSError, BadImageError) as error:
            return _without_bytes(path, recorded_format, why_not_read(error))
        if not recorded_format:
            return replace(image, problem="its format is not recorded")
        if recorded_format == "raw":
            return replace(image, virtual_size=_length(status))
        if recorded_format in _ALWAYS_AT_THE_BOTTOM:
            return image
        if recorded_format != "qcow2":
            return replace(image, problem=f"images of format {recorded_format} cannot be read")
        try:
            content = self._content(path, status)
        except (OSError, BadImageError) as error:
            return replace(image, problem=why_not_read(error))
        allocated = _with_data_file(image.allocated, content.header.data_file)
        return replace(as_image(path, content, allocated), identity=image.identity)

    def read_chain(self, path: str | Path, recorded_format: str) -> Chain:
        """Follow the backing files of a local image."""
        return read_chain(str(path), recorded_format, self.read_image)

    def _content(self, path: str, status: os.stat_result) -> Qcow2Content:
        if (known := self._contents.get(path, version_of(status))) is not None:
            return known
        with open_local(path) as file:
            content = read_content(file)
        if len(content.snapshots) <= _MOST_SNAPSHOTS_CACHED:
            self._contents.keep(path, content, version_of(file.status))
        return content


class LocalPlace:
    """Images that are files or block devices of this computer, as `Analyses` wants them."""

    name = ""

    def versions(self, paths: Sequence[str]) -> tuple[Version, ...]:
        """Look at images. Raises OSError or BadImageError."""
        return tuple(version_of(look_at(path)) for path in paths)

    @contextmanager
    def open_images(
        self,
        formats: Mapping[str, str],
        cancelled: Callable[[], bool],  # noqa: ARG002  # opening files takes no time
    ) -> Iterator[Mapping[str, OpenImage]]:
        """Open images. Raises OSError or BadImageError."""
        from snaptree.images.extents import shown_in, taken_on_host, written_in  # numpy is loaded when it is needed

        with ExitStack() as opened:
            files = {path: opened.enter_context(open_local(path)) for path in formats}
            yield {
                path: OpenImage(
                    file,
                    version_of(file.status),
                    allocated_by(file.status).bytes,
                    taken_on_host(file),
                    written_in(file),
                    shown_in(file),
                )
                for path, file in files.items()
            }


class LocalFile:
    """An open file or block device, as the readers of images want it."""

    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self._descriptor = descriptor
        self.status = status
        """As it was when it was opened."""

    def fileno(self) -> int:
        """Its descriptor, for what else may be asked of it while it is open."""
        return self._descriptor

    @property
    def size(self) -> int:
        """Bytes to the end, now."""
        status = os.fstat(self._descriptor)
        return os.lseek(self._descriptor, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end. Raises OSError."""
        read = os.pread(self._descriptor, length, offset)
        while len(read) < length and (more := os.pread(self._descriptor, length - len(read), offset + len(read))):
            read += more
        return read


@contextmanager
def open_local(path: str) -> Iterator[LocalFile]:
    """Open an image for reading. Raises OSError, or BadImageError for anything but files and block devices."""
    look_at(path)  # opening alone can do harm: it starts a watchdog, and rewinds a tape
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield LocalFile(descriptor, _checked(os.fstat(descriptor)))
    finally:
        os.close(descriptor)


def look_at(path: str) -> os.stat_result:
    """Follow symbolic links to what is there, without opening it. Raises as `open_local` does."""
    try:
        return _checked(Path(path).stat())
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, path) from error
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(2, "no such file", path) from error


def _checked(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise BadImageError("it is neither a regular file nor a block device")
    return status


def allocated_by(status: os.stat_result) -> Figure:
    """Bytes that a file takes on its file system, or all of a block device."""
    if stat.S_ISBLK(status.st_mode):
        size = _device_size(status)
        return unknown("the size of the block device cannot be read") if size is None else exact(size, "block device")
    return exact(status.st_blocks * 512, "blocks of the file system")


def why_not_read(error: OSError | BadImageError) -> str:
    """Say what is wrong with an image, and what to do where that is not plain."""
    if isinstance(error, PermissionError):
        return (
            "you may not read it. Run SnapTree as a user who may, or put its directory into a storage pool"
            " (virsh pool-create-as NAME dir --target DIRECTORY), so that libvirt reads it for you."
        )
    return in_words(error)


def _without_bytes(path: str, recorded_format: str, problem: str) -> Image:
    return Image(path, recorded_format, unknown(problem), problem=problem)


def _with_data_file(allocated: Figure, data_file: str | None) -> Figure:
    """Add what the second file takes, if an image keeps its guest's data in one."""
    if data_file is None or allocated.bytes is None:
        return allocated
    if not data_file:
        return unknown("its data lies in a second file that it does not name")
    if not data_file.startswith("/"):  # QEMU takes it relative to its own directory, whichever that is
        return unknown(f"its data lies in {data_file}, which is not a path on this computer")
    try:
        data = allocated_by(look_at(data_file))
    except (OSError, BadImageError) as error:
        return unknown(f"its data lies in {data_file}: {why_not_read(error)}")
    if data.bytes is None:
        return data
    return exact(allocated.bytes + data.bytes, f"blocks of the file system, those of {data_file} included")


def _identity(status: os.stat_result) -> tuple[int, int]:
    """One image has one, whatever paths lead to it. No file has inode 0, so that devices have room beside them."""
    return (status.st_rdev, 0) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


def _device_size(status: os.stat_result) -> int | None:
    """Ask the kernel, which tells it even to those who may not open the device; its unit is always 512 bytes."""
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        return int(Path(f"/sys/dev/block/{device}/size").read_text(encoding="ascii")) * 512
    except (OSError, ValueError):
        return None


def _length(status: os.stat_result) -> int | None:
    return _device_size(status) if stat.S_ISBLK(status.st_mode) else status.st_size


def version_of(status: os.stat_result) -> Version:
    """What changes when a file is written to or replaced."""
    told_by = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return Version.of(told_by, status.st_ctime_ns if stat.S_ISREG(status.st_mode) else None)
