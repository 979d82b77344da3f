"""`packaging/test-matrix`, with roots that only pretend: how it judges what happens in them. Real ones are CI's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"

# $HERE/SUITE says what happens in a root of that suite.
CLEAN_ROOT = """#!/bin/bash
HERE=${0%/*}
echo "$*" >>"$HERE/calls"
[ "$1" != --as-root ] || shift
. "$HERE/$1"
"""
PASSED = """
echo 'libvirt 9.9.9, QEMU 8.8.8'
echo '========== 3 passed, 1 skipped in 5.01s ========='
"""
FAILED = """
echo 'libvirt 9.9.9, QEMU 8.8.8'
echo '========== 1 failed, 3 passed in 5.01s =========='
exit 1
"""
NOT_TO_BE_HAD = "echo 'unmet dependencies'; exit 125"


class Matrix:
    """The script, in a checkout of its own, run by somebody whom it takes for root."""

    def __init__(self, directory: Path) -> None:
        self.packaging = directory / "packaging"
        self.packaging.mkdir()
        for script in ("test-matrix", "common.sh"):
            shutil.copy(PACKAGING / script, self.packaging)
        self.add("clean-root", CLEAN_ROOT)
        self.tools = directory / "bin"
        self.tools.mkdir()
        (self.tools / "id").write_text("#!/bin/sh\necho 0\n")
        (self.tools / "id").chmod(0o755)

    def add(self, name: str, script: str) -> None:
        (self.packaging / name).write_text(script)
        (self.packaging / name).chmod(0o755)

    def happens(self, **suites: str) -> None:
        for suite, script in suites.items():
            self.add(suite, script)

    @property
    def calls(self) -> list[str]:
        return (self.packaging / "calls").read_text().splitlines()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PATH": f"{self.tools}:{os.environ['PATH']}"}
        command = [str(self.packaging / "test-matrix"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """Its exit status, its summary and all that it printed."""
        with self.start(*arguments) as process:
            out, _ = process.communicate(timeout=60)
        return process.returncode, [line for line in out.splitlines() if line.startswith("matrix: ")], out


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return Matrix(tmp_path)


def test_each_debian_is_tested_and_summed_up(matrix: Matrix) -> None:
    matrix.happens(bookworm=PASSED, trixie=PASSED, sid=PASSED)
    status, summary, out = matrix.run()
    assert status == 0
    assert [line.split()[:3] for line in summary] == [["matrix:", "ok", f"{each},"] for each in SUITES]
    assert all("libvirt 9.9.9, QEMU 8.8.8" in line and "3 passed, 1 skipped" in line for line in summary)
    assert "trixie: ========== 3 passed" in out, "each line says where it is from"
    assert matrix.calls == [f"{suite} .ci/as-users-do" for suite in SUITES]


SUITES = ("bookworm", "trixie", "sid")


def test_arguments_choose_suites_and_tests(matrix: Matrix) -> None:
    matrix.happens(trixie=PASSED)
    status, summary, _ = matrix.run("--as-root", "trixie", "--", "-m", "qemu or daemon")
    assert (status, len(summary)) == (0, 1)
    assert matrix.calls == ["--as-root trixie .ci/as-users-do -m qemu or daemon"]


@pytest.mark.parametrize("suite", SUITES)
def test_a_test_that_fails_anywhere_fails(matrix: Matrix, suite: str) -> None:
    matrix.happens(**dict.fromkeys(SUITES, PASSED) | {suite: FAILED})
    status, summary, _ = matrix.run()
    assert status == 1
    assert [line.split()[2] for line in summary if "FAILED" in line] == [f"{suite},"]
    assert len(matrix.calls) == len(SUITES), "the others are tested all the same"


def test_a_sid_that_can_not_be_had_is_said_and_fails_nothing(matrix: Matrix) -> None:
    matrix.happens(bookworm=PASSED, trixie=PASSED, sid=NOT_TO_BE_HAD)
    status, summary, out = matrix.run()
    assert status == 0
    assert summary[-1].startswith("matrix: NOT RUN sid, no test began")
    assert "sid: unmet dependencies" in out


def test_a_release_that_can_not_be_had_fails(matrix: Matrix) -> None:
    matrix.happens(trixie=NOT_TO_BE_HAD)
    status, summary, _ = matrix.run("trixie")
    assert status == 1
    assert summary[-1].startswith("matrix: FAILED  trixie, no test began")


def test_several_roots_can_be_had_at_once(matrix: Matrix) -> None:
    """Each waits until the other is there: one after another they would wait for ever."""
    meet = 'touch "$HERE/$1-came"; until [ -e "$HERE/%s-came" ]; do :; done; ' + PASSED
    matrix.happens(trixie=meet % "sid", sid=meet % "trixie")
    assert matrix.run("--at-once", "2", "trixie", "sid")[0] == 0


def test_nothing_goes_on_when_it_is_ended(matrix: Matrix) -> None:
    matrix.happens(trixie='echo $$ >"$HERE/pid"; mv "$HERE/pid" "$HERE/began"; exec sleep 600')
    with matrix.start("trixie") as process:
        began = matrix.packaging / "began"
        deadline = time.monotonic() + 30
        while not began.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 130
    assert not Path("/proc", began.read_text().strip()).exists()


@pytest.mark.parametrize("arguments", [["--at-once", "0"], ["--at-once"], ["--unknown"]])
def test_wrong_usage_is_said(matrix: Matrix, arguments: list[str]) -> None:
    status, _, out = matrix.run(*arguments)
    assert status == 1
    assert "usage: test-matrix" in out
