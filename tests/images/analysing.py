"""Looks at images in a process of its own, which tells what each look took of the processor and of memory.

The process goes the program's own way: what opens the files knows what they take, and reads no more.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from snaptree.images.analyses import Analyses
from snaptree.images.files import ImageReader, LocalPlace, allocated_by, open_local
from snaptree.images.qcow2 import as_image, read_content
from snaptree.images.read_at import BadImageError
from snaptree.images.refcounts import read_refcounts
from snaptree.images.saved_memory import read_memory_file, read_memory_header

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
HANGS_AFTER = 20
"""Seconds of the processor after which a look is given up."""
MOST_ADDRESSES = 4 << 30
"""Bytes that the process may map: a look that wants more fails, and the computer lives on."""


@dataclass(frozen=True)
class Look:
    """What one look at a file, or at a chain of them, took."""

    what: str
    seconds: float
    """Of the processor, whatever else the computer does."""
    peak: int
    """Bytes in memory at most: all of the process."""
    refused: str
    """Why the image was refused, in words; empty if it was read."""
    failed: str
    """A traceback of anything that should not happen."""


class Analyser:
    """The process, from the side of the tests."""

    def __init__(self) -> None:
        self._process = _start()

    def look_at(self, paths: Sequence[Path], looks: Sequence[str]) -> list[Look]:
        """Look at a chain, top first; what is of one image looks at the top."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(map(str, paths)), list(looks)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            status = self._process.returncode
            self._process = _start()  # for the next one
            raise AssertionError(f"the process ended: {status}")
        return [Look(*each) for each in json.loads(answer)]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.images.analysing"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# ---- in the process ----


def _never() -> bool:
    return False


def _content(paths: list[str]) -> None:
    with open_local(paths[0]) as file:
        as_image(paths[0], read_content(file), allocated_by(file.status))


def _sharing(paths: list[str]) -> None:
    sharing = Analyses().sharing(LocalPlace(), paths[0], _never)
    for holder in {0, sharing.present}:
        sharing.frees([holder]) if holder < sharing.present else sharing.unique(holder)


def _refcounts(paths: list[str]) -> None:
    with open_local(paths[0]) as file:
        read_refcounts(file, read_content(file), allocated=allocated_by(file.status).bytes)


def _chain(paths: list[str]) -> None:
    assert ImageReader().read_chain(paths[0], "qcow2").images


def _overlaps(paths: list[str]) -> None:
    below: dict[str, str | None] = dict(zip(paths, [*paths[1:], None], strict=True))
    formats = {path: "raw" if path.endswith(".raw") else "qcow2" for path in paths}
    found = Analyses().overlaps(LocalPlace(), below, formats, _never)
    for path in {paths[0], paths[-1]}:
        assert found.visible(path, paths[0]) >= 0
    if len(paths) > 1:
        found.merge(paths[-1], paths[0], paths[-1])


def _memory(paths: list[str]) -> None:
    read_memory_file(paths[0])
    with open_local(paths[0]) as file:
        read_memory_header(file)


_LOOKS: dict[str, Callable[[list[str]], None]] = {
    "content": _content,
    "sharing": _sharing,
    "refcounts": _refcounts,
    "chain": _chain,
    "overlaps": _overlaps,
    "memory": _memory,
}
EVERY_LOOK = tuple(_LOOKS)


class _HangsError(BaseException):
    """It takes far too long."""


def _give_up(*_: object) -> None:
    raise _HangsError


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _look(what: str, paths: list[str]) -> Look:
    refused = failed = ""
    ctypes.CDLL(None).malloc_trim(0)  # what the look before left behind is not this one's
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted anew
    signal.setitimer(signal.ITIMER_PROF, HANGS_AFTER)
    began = time.process_time()
    try:
        _LOOKS[what](paths)
    except (BadImageError, OSError) as error:
        refused = str(error) or "without a word"
    except (Exception, _HangsError):  # noqa: BLE001 - whatever it is, the tests tell it
        failed = traceback.format_exc()
    seconds = time.process_time() - began
    signal.setitimer(signal.ITIMER_PROF, 0)
    return Look(what, seconds, _peak(), refused, failed)


def _serve() -> None:
    import snaptree.images.overlaps
    import snaptree.images.sharing  # noqa: F401 - loaded before anything is measured

    signal.signal(signal.SIGPROF, _give_up)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    for line in sys.stdin:
        paths, looks = json.loads(line)
        found = [_look(what, paths) for what in looks]
        sys.stdout.write(json.dumps([astuple(each) for each in found]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
