"""All benches still measure what they name: the quick sizes, and no word about how fast anything was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import start
from tests.benchmarks.__main__ import BENCHES

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.daemon
@pytest.mark.qemu
@pytest.mark.parametrize("bench", BENCHES)
def test_every_figure_is_produced(bench: str) -> None:
    if bench == "start" and start.missing():
        pytest.skip(f"{start.missing()}: windows are watched on a real screen")
    # A process of its own: this one has libvirt's embedded driver open, and perhaps a window.
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", bench, "--quick"],
        cwd=CHECKOUT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows
    for row in rows:
        assert re.search(r"\d( ms| s| [KMG]iB| %|\.\d) ", row), row
