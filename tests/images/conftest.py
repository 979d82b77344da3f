"""Real images from qemu-img, and a way to look at files as somebody who may not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534


NO_CLOCK = "Unable to get accurate CPU usage"
"""QEMU fails with this now and then, on a computer whose clock jumps, when it makes a LUKS key."""


def run(*command: str | Path) -> str:
    for tries_left in reversed(range(50)):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if tries_left and NO_CLOCK in done.stderr:
            continue
        assert done.returncode == 0, done.stderr
        return done.stdout
    raise AssertionError


class QemuImg:
    """qemu-img in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str | Path) -> str:
        return run("env", "-C", self.directory, "qemu-img", *arguments)

    def create(self, name: str, size: str = "1M", *options: str | Path) -> Path:
        self("create", "-q", "-f", "qcow2", *options, name, size)
        return self.directory / name

    def overlay(self, name: str, backing: str, backing_format: str = "qcow2") -> Path:
        self("create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, name)
        return self.directory / name

    def info(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("info", "--output=json", path))
        return found


@pytest.fixture
def qemu_img(tmp_path: Path) -> QemuImg:
    return QemuImg(tmp_path)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """Be a user without rights for a moment; who is one already stays so."""

    @contextmanager
    def changed() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    return changed
