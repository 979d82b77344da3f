"""Pictures of guests' screens at the moment of their snapshots, in the user's cache directory. Nothing needs them.

They come from the guest, so they are kept as they came: who draws them has to be prepared for anything.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from snaptree.hosts.journal import embedded_root
from snaptree.model.estate import Snapshot

LARGEST_PICTURE: Final = 64 << 20
"""Bytes of a picture as QEMU sends it: of the largest screens, one without compression is larger, and is not kept."""
LARGEST_CACHE: Final = 256 << 20
"""Bytes of all pictures of a user together. The oldest go first."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_KINDS: Final = (_PNG, b"P6")
"""How the pictures begin that QEMU makes: PNG since 7.1, PPM before."""
_FILE = re.compile(r"([0-9a-f]{32})-(\d+)")
"""A snapshot's name, hashed, and when it was taken, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """The pictures of one machine. No method raises an error of the file system: what can't be kept is not there."""

    directory: Path

    @classmethod
    def of(cls, host_uri: str, uuid: str) -> Thumbnails:
        """Those of a machine of a host."""
        root = embedded_root(host_uri)
        cache = user_cache_path("snaptree") if root is None else root / "cache"
        return cls(cache / "thumbnails" / _hashed(f"{host_uri} {uuid}"))

    def path(self, name: str, created: int) -> Path:
        """Where the picture of a snapshot is, if there is one. A later snapshot of the same name has another."""
        return self.directory / f"{_hashed(name)}-{max(0, created)}"

    def keep(self, name: str, created: int, picture: bytes) -> None:
        """Keep a picture as QEMU sent it, if it looks like one. Others that there were of this name go."""
        if not picture.startswith(_KINDS) or len(picture) > LARGEST_PICTURE:
            return
        with suppress(OSError):
            # What is on a screen is nobody else's business.
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.forget([name])
            _write_whole(self.path(name, created), picture if picture.startswith(_PNG) else zlib.compress(picture, 1))
            _make_room(self.directory.parent)

    def replace(self, name: str, created: int, picture: bytes) -> None:
        """Keep a smaller picture instead of one that is kept, a PNG."""
        with suppress(OSError):
            if self.path(name, created).exists():
                _write_whole(self.path(name, created), picture)

    def read(self, name: str, created: int) -> bytes:
        """A picture in the format in which it came, PNG or PPM; empty if there is none."""
        with suppress(OSError, zlib.error):
            with self.path(name, created).open("rb") as file:
                kept = file.read(LARGEST_PICTURE)
            picture = kept if kept.startswith(_PNG) else zlib.decompressobj().decompress(kept, LARGEST_PICTURE)
            if picture.startswith(_KINDS):
                return picture
        return b""

    def rename(self, old: str, new: str) -> None:
        """Keep the picture of a snapshot that has another name by now."""
        with suppress(OSError):
            for path, (name, created) in self._files():
                if name == _hashed(old):
                    path.replace(self.path(new, created))

    def forget(self, names: Iterable[str]) -> None:
        """Remove the pictures of snapshots that are no more."""
        hashes = {_hashed(name) for name in names}
        for path, (name, _) in self._files():
            if name in hashes:
                _remove(path)

    def keep_only(self, snapshots: Iterable[Snapshot]) -> None:
        """Remove the pictures of all others."""
        if not (files := self._files()):
            return
        times = {created for _, (_, created) in files}
        known = {(_hashed(each.name), each.created) for each in snapshots if each.created in times}
        for path, key in files:
            if key not in known:
                _remove(path)

    def _files(self) -> list[tuple[Path, tuple[str, int]]]:
        try:
            paths = list(self.directory.iterdir())
        except OSError:
            return []
        return [(path, (match[1], int(match[2]))) for path in paths if (match := _FILE.fullmatch(path.name))]


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that nobody sees half written. Raises OSError."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(unfinished).replace(path)
    except BaseException:
        _remove(Path(unfinished))
        raise


def _hashed(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _make_room(directory: Path) -> None:
    """Remove the oldest pictures of all machines until the rest is no more than a cache may be. Raises OSError."""
    found = [(path, path.stat()) for path in directory.glob("*/*")]
    found.sort(key=lambda each: each[1].st_mtime)
    excess = sum(status.st_size for _, status in found) - LARGEST_CACHE
    for path, status in found:
        if excess <= 0:
            break
        excess -= status.st_size
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
