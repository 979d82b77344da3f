"""The demo estate's life: where it lives, who holds it, how it is built, and how it goes without a trace."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from snaptree.demo.stories import STORIES, Site, Story, now
from snaptree.hosts.connection import Connection, is_embedded
from snaptree.hosts.embedded import kill_machines, prepare_root, release_root
from snaptree.hosts.workshop import check_tools, list_machines
from snaptree.model.errors import CancelledError, SnapTreeError

_PREFIX = "snaptree-demo-"
_MARKER = "demo-estate.json"
_LOCK = "lock"
_OURS = frozenset(
    {_MARKER, f"{_MARKER}.new", _LOCK, f"{_LOCK}.new", "images", "etc", "run", "lib", "cache", "log", "state"}
)
"""Everything that an estate's directory may hold at its top."""
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class DemoProgress:
    """How far the building is, in steps; `doing` is what was done last."""

    doing: str
    done: int
    total: int


OnProgress = Callable[[DemoProgress], None]


class DemoEstate:
    """Eight machines on libvirt's embedded QEMU driver, under one directory.

    Without a directory it is thrown away by `close`, at the latest when Python exits (callers see to it that signals
    do not end it otherwise); what a killed process leaves is removed by the next that starts. In a directory it is
    kept, its machines stay as they are between commands, and one process at a time may have it.

    A process gets one estate in its life: libvirt binds the embedded driver to its first root until the process ends.
    """

    _of_this_process: DemoEstate | None = None

    def __init__(self, directory: Path, *, kept: bool) -> None:
        """Use `prepare` or `create`."""
        self.directory = directory
        self.is_kept = kept
        self._closed = False
        self._closing = threading.Lock()
        self.uri = prepare_root(directory)
        """What to connect to; works before and while the estate is built."""

    @classmethod
    def prepare(cls, directory: Path | None = None) -> DemoEstate:
        """Claim a place for the estate, in milliseconds. Follow with `build`. Removes what killed processes left.

        Raises SnapTreeError if the directory holds something else, is in use, or can't be written.
        """
        if cls._of_this_process is not None:
            raise SnapTreeError(
                f"The demo estate in {cls._of_this_process.directory} was opened by this SnapTree already.",
                hint="There can be one in each: start another SnapTree.",
            )
        check_tools()
        clean_up_leftovers()
        with _explained(directory or _base()):
            path = _new_directory() if directory is None else _claim(directory)
            if _state(path) != "ready":
                _wipe(path)
                _mark(path, "building")
                (path / "images").mkdir()
            estate = cls(path, kept=directory is not None)
        cls._of_this_process = estate
        atexit.register(estate.close)
        return estate

    @classmethod
    def create(cls, directory: Path | None = None, on_progress: OnProgress | None = None) -> DemoEstate:
        """Prepare and build in one go; nothing is left behind if that fails."""
        estate = cls.prepare(directory)
        try:
            estate.build(on_progress)
        except BaseException:
            estate.close()
            raise
        return estate

    def __enter__(self) -> DemoEstate:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_built(self) -> bool:
        """Whether all machines are there. One that was interrupted is built again from nothing."""
        return _state(self.directory) == "ready"

    @property
    def images(self) -> Path:
        """Where the machines' images are."""
        return self.directory / "images"

    def build(self, on_progress: OnProgress | None = None, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Build the machines, side by side; a kept estate that is built only gets the time to wake up.

        `on_progress` is called from threads, one at a time. Raises SnapTreeError, CancelledError soon after
        `cancelled` turns true; then call `close`.
        """
        connection = Connection(self.uri)
        connection.open()
        try:
            if self.is_built:
                _wait_for_machines(connection)
            else:
                _Building(connection, self.images, on_progress, cancelled).build_all()
                for machine in list_machines(connection):
                    machine.flush()
                with _explained(self.directory):
                    _mark(self.directory, "ready")
        finally:
            connection.close()

    def stop(self) -> None:
        """Turn all machines off."""
        connection = Connection(self.uri)
        connection.open()
        try:
            # One after the other: this must also work in an exit handler, where Python starts no threads any more.
            for machine in list_machines(connection):
                machine.stop()
        finally:
            connection.close()

    def close(self) -> None:
        """Let go of it: a throw-away estate is stopped and removed, a kept one stays. Safe to call twice.

        Connections to it should be closed before. Other processes can open a kept one when this process has ended.
        """
        with self._closing:
            if self._closed:
                return
            if not self.is_kept or not self.is_built:
                self._remove()
            # Not before: what interrupts the removal leaves the rest of it to the exit handler.
            self._closed = True
            atexit.unregister(self.close)

    def remove(self) -> None:
        """Stop the machines and remove the directory, kept or not."""
        self.is_kept = False
        self.close()

    def _remove(self) -> None:
        with contextlib.suppress(SnapTreeError):  # what libvirt does not stop is killed below
            self.stop()
        _demolish(self.directory)


def clean_up_leftovers() -> None:
    """Remove throw-away estates whose process is gone: end their QEMU processes, remove their files."""
    for path in _base().glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if path.is_symlink() or not path.is_dir() or found.st_uid != os.geteuid():
                continue
            lock_file = path / _LOCK
            if not lock_file.exists():  # being made right now, or its maker was killed doing so
                if time.time() - found.st_mtime > _ABANDONED_SECONDS:
                    _demolish(path)
                continue
            lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _demolish(path)
            except BlockingIOError:
                pass  # alive
            finally:
                os.close(lock)


def kept_estate(directory: Path) -> Path:
    """The path of an estate that is kept in a directory. Raises SnapTreeError if there is none."""
    path = directory.expanduser().resolve()
    if _state(path) is None:
        raise SnapTreeError(
            f"{path} is no demo estate of SnapTree's: no {_MARKER} in it says so.", hint="Nothing was removed."
        )
    return path


def is_demo(uri: str) -> bool:
    """Whether an address is that of a demo estate, kept or not: its directory says so."""
    roots = parse_qs(urlsplit(uri).query).get("root", []) if is_embedded(uri) else []
    return any(_state(Path(root)) is not None for root in roots)


def remove_kept(directory: Path) -> tuple[str, ...]:
    """End the machines of a kept estate and remove what is its own; return the names of what else is there, and stays.

    Raises SnapTreeError if there is no estate, if another SnapTree has it open, or if it can't be removed.
    """
    path = kept_estate(directory)
    with _explained(path):
        _lock_for_us(path)
        _demolish(path)
        left = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if ours := [name for name in left if name in _OURS]:
        raise SnapTreeError(
            f"Not all of the demo estate in {path} could be removed: '{ours[0]}' is still there.",
            hint="Look at who owns it, and remove it by hand: the machines were ended.",
        )
    return tuple(left)


class _Building:
    """The stories, told side by side."""

    def __init__(
        self, connection: Connection, images: Path, on_progress: OnProgress | None, cancelled: Callable[[], bool]
    ) -> None:
        self._connection = connection
        self._images = images
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._stopping = threading.Event()
        self._telling = threading.Lock()
        self._done = 0
        self._total = sum(story.steps for story in STORIES)

    def build_all(self) -> None:
        """Build everything, or raise the first failure after all threads have ended."""
        site = Site(self._connection, self._images, now(), self._step)

        def build(story: Story) -> None:
            story.build(site)

        with ThreadPoolExecutor(len(STORIES), thread_name_prefix="snaptree-demo") as pool:
            try:
                futures = [pool.submit(build, story) for story in STORIES]
                done, _pending = wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # a failed story, or Ctrl+C here: the others end at their next step
                self._stopping.set()
        for future in sorted(done, key=lambda future: isinstance(future.exception(), CancelledError)):
            future.result()
        for future in futures:
            future.result()

    def _step(self, doing: str) -> None:
        if self._stopping.is_set() or self._cancelled():
            self._stopping.set()
            raise CancelledError("Building the demo estate was cancelled.")
        with self._telling:
            self._done += 1
            if self._on_progress is not None:
                self._on_progress(DemoProgress(doing, self._done, self._total))


def _wait_for_machines(connection: Connection) -> None:
    """Let libvirt find its QEMU processes again. It does so in threads that crash if the process ends meanwhile."""
    for machine in list_machines(connection):
        if machine.is_active:
            with contextlib.suppress(SnapTreeError):  # it may have gone since
                machine.monitor("info status")


# Places


def _base() -> Path:
    """Where throw-away estates live: on a disk, as /tmp and the runtime directory are often RAM."""
    if "TMPDIR" in os.environ:
        return Path(tempfile.gettempdir())
    on_disk = Path("/var/tmp")  # noqa: S108  the directories made in it are named by mkdtemp
    return on_disk if os.access(on_disk, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _new_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
    # Locked before it gets its name, so that nobody takes it for a leftover.
    unnamed = path / f"{_LOCK}.new"
    _lock(unnamed)
    unnamed.rename(path / _LOCK)
    return path


def _claim(directory: Path) -> Path:
    """Lock the user's directory for us, if it is new, empty or an estate of ours."""
    path = directory.expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    names = {entry.name for entry in path.iterdir()}
    is_ours = _state(path) is not None or names <= {_LOCK}
    if not is_ours or (_state(path) == "building" and names - _OURS):
        surprise = min(names - _OURS or names)
        raise SnapTreeError(
            f"{path} is not empty and not a demo estate: it holds '{surprise}'.",
            hint="Choose a directory that is empty or does not exist yet.",
        )
    _lock_for_us(path)
    return path


def _lock_for_us(path: Path) -> None:
    """Raises SnapTreeError if another SnapTree has the estate open."""
    if not _lock(path / _LOCK):
        owner = (path / _LOCK).read_text(encoding="utf-8").strip() or "unknown"
        raise SnapTreeError(
            f"The demo estate in {path} is open in another SnapTree (pid {owner}).",
            hint="Close that one first, or choose another directory.",
        )


def _lock(path: Path) -> bool:
    """Lock a file until this process ends and write our pid into it. False if someone else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return True  # never closed: that would unlock it


def _mark(directory: Path, state: str) -> None:
    fresh = directory / f"{_MARKER}.new"
    fresh.write_text(json.dumps({"program": "snaptree", "format": 1, "state": state}), encoding="utf-8")
    fresh.replace(directory / _MARKER)


def _state(directory: Path) -> str | None:
    """What the marker says: building or ready. None without a marker of ours."""
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or marker.get("program") != "snaptree":
        return None
    return str(marker.get("state"))


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SnapTreeError(
            f"The demo estate cannot be kept in {error.filename or place}: {error.strerror}.",
            hint="Choose a directory that you may write, with about 1 GB free.",
            details=str(error),
        ) from error


# Taking it down


def _wipe(directory: Path) -> None:
    """End what runs on an estate and remove all that is ours but the lock."""
    kill_machines(directory)
    for name in _OURS - {_LOCK}:
        entry = directory / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _demolish(directory: Path) -> None:
    """Remove an estate. The lock goes last, so that an interrupted removal is taken up again by the next start."""
    _wipe(directory)
    release_root(directory)
    (directory / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file of somebody else's keeps it
        directory.rmdir()
