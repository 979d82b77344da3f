"""An X server of our own, whose screen is watched: what a program shows and when, whatever toolkit it is made with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOOK_SECONDS = 0.01
QUIET_SECONDS = 2.0
"""A screen on which nothing changed for so long shows all that the program has to show."""
LONGEST_SECONDS = 60.0
SAME = 0.002
"""Pictures that differ in no larger part than this show the same: a cursor blinks."""
LEFT_EDGE = 180
"""Pixels."""
_STEP = 2
"""Every second pixel in each direction is looked at."""


@dataclass(frozen=True)
class Appearance:
    """How a program came up: seconds from its start, and bytes of resident memory at most until then."""

    first_paint: float
    listed: float
    """When the left edge, where these programs list machines by name, first looked as it did in the end."""
    complete: float
    """When all of it did."""
    peak_memory: int


class Screen:
    """A running X server with nothing on it."""

    def __init__(self, display: str, framebuffer: Path) -> None:
        self.display = display
        # XWD: a header of big-endian words, then the colours, then the pixels.
        header = np.memmap(framebuffer, dtype=">u4", mode="r", shape=25)
        offset, height, bytes_per_line, colours = (int(header[word]) for word in (0, 5, 12, 19))
        self._pixels = np.memmap(
            framebuffer, dtype="u4", mode="r", offset=offset + 12 * colours, shape=(height, bytes_per_line // 4)
        )
        self._blank = self.picture()

    def picture(self) -> np.ndarray:
        """What is on the screen now, at half its resolution."""
        return np.array(self._pixels[::_STEP, ::_STEP])

    def watch(self, command: Sequence[str], environment: Mapping[str, str]) -> Appearance:
        """Start a program, look on until its screen is quiet, and end it."""
        while not np.array_equal(self.picture(), self._blank):
            time.sleep(LOOK_SECONDS)  # the one before is still being wiped away
        pictures: list[tuple[float, np.ndarray]] = []
        with tempfile.TemporaryFile() as output:
            began = changed = time.monotonic()
            process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                while (now := time.monotonic()) - began < LONGEST_SECONDS:
                    if process.poll() is not None:
                        output.seek(0)
                        raise RuntimeError(f"{command[0]} ended: {output.read().decode(errors='replace')[-2000:]}")
                    picture = self.picture()
                    if not np.array_equal(picture, pictures[-1][1] if pictures else self._blank):
                        pictures.append((now, picture))
                        changed = now
                    elif pictures and now - changed > QUIET_SECONDS:
                        break
                    time.sleep(LOOK_SECONDS)
                peak = _peak_memory(process.pid)
            finally:
                process.terminate()
                process.wait()
        if not pictures:
            raise RuntimeError(f"{command[0]} showed nothing in {LONGEST_SECONDS:.0f} s")
        last = pictures[-1][1]

        def same_since(part: slice) -> float:
            return next(
                seconds - began for seconds, picture in pictures if np.mean(picture[:, part] != last[:, part]) <= SAME
            )

        return Appearance(
            first_paint=pictures[0][0] - began,
            listed=same_since(slice(LEFT_EDGE // _STEP)),
            complete=same_since(slice(None)),
            peak_memory=peak,
        )


def _peak_memory(pid: int) -> int:
    """The most resident memory a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Process {pid} has no memory.")


@contextlib.contextmanager
def own_screen() -> Iterator[Screen]:
    """An X server, 1280x800."""
    read_end, write_end = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="snaptree-benchmark-screen-") as directory,
        subprocess.Popen(
            ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1280x800x24", "-fbdir", directory],
            pass_fds=[write_end], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        os.close(write_end)
        try:
            with os.fdopen(read_end) as answer:
                number = answer.readline().strip()
            yield Screen(f":{number}", Path(directory) / "Xvfb_screen0")
        finally:
            process.terminate()
