"""`packaging/run`, with a tiny project in place of SnapTree and a package manager that only pretends.

The script, Python's venv and pip are real. Real packages are installed in CI, in clean roots (`.ci/as-users-do`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "snaptree"
"""

# A build backend that needs no network: an editable wheel whose program prints its arguments.
BACKEND = """
import pathlib, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "snaptree-1-py3-none-any.whl"
    here = pathlib.Path(__file__).parent
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as wheel:
        def add(file, text):
            wheel.writestr(file, text)
        needs = [line[2:] for line in here.joinpath("pyproject.toml").read_text().splitlines() if line[:2] == "# "]
        add("snaptree.pth", str(here))
        add("snaptree-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: snaptree\\nVersion: 1\\n"
            + "".join(f"Requires-Dist: {need}\\n" for need in needs))
        add("snaptree-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        add("snaptree-1.dist-info/entry_points.txt", "[console_scripts]\\nsnaptree = tiny:main\\n")
        add("snaptree-1.dist-info/RECORD", "")
    return name
"""

PROGRAM = """
import json, sys

def main():
    print(json.dumps(sys.argv[1:]))
    return 3 if "refuse" in sys.argv else 0
"""

# A Debian in which some packages are missing until they are installed; $HERE is the directory of all this.
DPKG_QUERY = """
shift 2
for package; do grep -qxF "$package" $HERE/missing || printf 'installed %s ' "$package"; done
"""
DPKG = """
[ "$1" = --audit ] || echo "dpkg $*" >>$HERE/calls
"""
APT_GET = """
echo "apt-get $*" >>$HERE/calls
[ "$1" = update ] || : >$HERE/missing
"""
SUDO = """
echo sudo >>$HERE/calls
exec "$@"
"""


@dataclass(frozen=True)
class Computer:
    """A checkout, and a PATH in which nothing can really be installed."""

    directory: Path

    @property
    def checkout(self) -> Path:
        return self.directory / "a checkout"

    @property
    def calls(self) -> str:
        """What was asked of package managers."""
        return (self.directory / "calls").read_text()

    @property
    def environment(self) -> Path:
        """Root's Python environment."""
        (environment,) = self.checkout.glob(".venv-*-u0")
        return environment

    def pretend(self) -> None:
        """Be root's on a Debian to which nothing is missing; forget earlier calls."""
        for name, script in {"dpkg": DPKG, "dpkg-query": DPKG_QUERY, "apt-get": APT_GET, "sudo": SUDO}.items():
            self.add_tool(name, script)
        self.add_tool("apt-cache", "")  # every package
        self.add_tool("getent", "")  # and every user exists
        self.add_tool("id", "echo 0")
        (self.directory / "calls").write_text("")
        self.lacks()

    def lacks(self, *packages: str) -> None:
        (self.directory / "missing").write_text("".join(f"{package}\n" for package in packages))

    def add_tool(self, name: str, script: str) -> None:
        tool = self.directory / "bin" / name
        tool.unlink(missing_ok=True)
        tool.write_text(f"#!/bin/bash\nHERE={self.directory}\n{script}")
        tool.chmod(0o755)

    def as_user(self, uid: int) -> None:
        self.add_tool("id", f"echo {uid}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": str(self.directory / "bin"),
            "HOME": str(self.directory),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
            "PIP_NO_INDEX": "1",
        }
        command = [str(self.checkout / "packaging" / "run"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def arguments_of_snaptree(self, *arguments: str) -> list[str]:
        """What `snaptree` gets if the script gets these, which must not have anything to install or to say."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        got = json.loads(done.stdout)
        assert isinstance(got, list)
        return got


def make_computer(directory: Path) -> Computer:
    computer = Computer(directory)
    (computer.checkout / "packaging").mkdir(parents=True)
    for script in ("run", "common.sh"):
        shutil.copy(PACKAGING / script, computer.checkout / "packaging")
    (computer.checkout / "pyproject.toml").write_text(PYPROJECT)
    (computer.checkout / "backend.py").write_text(BACKEND)
    (computer.checkout / "tiny.py").write_text(PROGRAM)

    (directory / "bin").mkdir()
    for tool in {*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()}:
        link = directory / "bin" / tool.name
        if not link.is_symlink():
            link.symlink_to(tool)
    computer.pretend()
    return computer


@pytest.fixture(scope="module")
def used_computer(tmp_path_factory: pytest.TempPathFactory) -> Computer:
    """One on which the script has been run: making an environment takes seconds."""
    computer = make_computer(tmp_path_factory.mktemp("computer"))
    assert computer.run().returncode == 0
    return computer


@pytest.fixture
def computer(used_computer: Computer) -> Computer:
    """The same, in which nothing is missing and nobody was asked to install anything."""
    used_computer.pretend()
    return used_computer


@pytest.mark.parametrize("arguments", [[], ["tree", "web-01", "--json"], ["list", "--", "--demo"]])
def test_the_demo_estate_is_the_default(computer: Computer, arguments: list[str]) -> None:
    assert computer.arguments_of_snaptree(*arguments) == ["--demo", *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--demo", "list"],
        ["list", "--demo"],
        ["--demo-dir", "/tmp/x", "list"],
        ["--demo-dir=/tmp/x"],
        ["--connect", "qemu:///system"],
        ["list", "--connect=qemu:///system"],
        ["-c", "qemu:///system"],
        ["-cqemu:///system", "list"],
        ["--help"],
        ["tree", "--help"],
        ["--version"],
    ],
)
def test_a_named_estate_is_left_alone(computer: Computer, arguments: list[str]) -> None:
    assert computer.arguments_of_snaptree(*arguments) == arguments


def test_arguments_and_exit_status_pass_unchanged(computer: Computer) -> None:
    odd = ["--demo", "a  b", "", "*", "'\"$(id)`\\", "two\nlines", "refuse"]
    done = computer.run(*odd)
    assert json.loads(done.stdout) == odd
    assert done.returncode == 3


def test_a_second_run_installs_nothing_and_says_nothing(computer: Computer) -> None:
    done = computer.run("list")
    assert (done.returncode, done.stderr, computer.calls) == (0, "", "")


def test_root_installs_what_is_missing_and_names_it_before(computer: Computer) -> None:
    computer.lacks("qemu-utils", "libgl1")
    done = computer.run("list")
    assert done.returncode == 0
    assert "missing on this system: libgl1 qemu-utils\n" in done.stderr
    assert "apt-get install --yes --no-install-recommends" in computer.calls
    assert "libgl1 qemu-utils" in computer.calls
    assert "sudo" not in computer.calls
    assert json.loads(done.stdout) == ["--demo", "list"], "standard output is the program's alone"


def test_a_user_installs_by_sudo(computer: Computer) -> None:
    computer.lacks("libgl1")
    computer.as_user(1000)
    assert computer.run().returncode == 0
    assert computer.calls.startswith("sudo\napt-get update")


def test_a_user_without_sudo_is_told_what_to_ask_for(computer: Computer) -> None:
    computer.lacks("libgl1", "qemu-utils")
    computer.as_user(1000)
    (computer.directory / "bin" / "sudo").unlink()
    done = computer.run()
    assert done.returncode == 1
    assert "As root, run: apt-get install --yes --no-install-recommends libgl1 qemu-utils\n" in done.stderr
    assert (done.stdout, computer.calls) == ("", "")


def test_an_installation_that_was_broken_off_is_finished_first(computer: Computer) -> None:
    computer.lacks("libgl1")
    computer.add_tool("dpkg", DPKG + '[ "$1" != --audit ] || echo "libgl1 is only half installed"')
    assert computer.run().returncode == 0
    assert computer.calls.startswith("dpkg --configure -a\napt-get update")


def test_an_installation_that_fails_is_said_to_have_failed(computer: Computer) -> None:
    computer.lacks("libgl1")
    computer.add_tool("apt-get", "echo 'E: unmet dependencies' >&2; exit 100")
    done = computer.run()
    assert done.returncode == 125, "the distribution's fault"
    assert "E: unmet dependencies" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("run: could not install them")


def test_a_package_that_has_another_name_by_now_is_our_fault(computer: Computer) -> None:
    computer.lacks("libgl1", "qemu-utils")
    computer.add_tool("apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    computer.add_tool("apt-cache", '[ "$2" != qemu-utils ]')
    done = computer.run()
    assert done.returncode == 1
    assert "has no package qemu-utils: please report" in done.stderr.splitlines()[-1]


def test_hosts_elsewhere_need_no_qemu_here(computer: Computer) -> None:
    computer.lacks("qemu-system-x86", "qemu-utils")
    assert computer.arguments_of_snaptree("-c", "qemu+ssh://far/system") == ["-c", "qemu+ssh://far/system"]


def break_off(environment: Path) -> None:
    """As a run leaves it that was killed while pip was at work."""
    (environment / "complete").unlink()
    for record in environment.glob("lib/python3*/site-packages/snaptree-1.dist-info/RECORD"):
        record.unlink()


def outdate(environment: Path) -> None:
    """As a new Python leaves it."""
    complete = environment / "complete"
    complete.write_text(complete.read_text().replace("Python 3.", "Python 2."))
    (environment / "bin" / "snaptree").unlink()


@pytest.mark.parametrize("spoil", [break_off, outdate])
def test_a_spoilt_environment_heals(computer: Computer, spoil: Callable[[Path], None]) -> None:
    spoil(computer.environment)
    assert computer.run("list").stdout == '["--demo", "list"]\n'
    assert computer.arguments_of_snaptree() == ["--demo"]


def test_pip_failing_is_said_and_the_next_run_tries_again(computer: Computer) -> None:
    pyproject = computer.checkout / "pyproject.toml"
    pyproject.write_text(PYPROJECT + "# no-such-package\n")
    done = computer.run()
    assert done.returncode == 1
    assert "no-such-package" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("run: pip could not install")
    pyproject.write_text(PYPROJECT)
    done = computer.run()
    assert done.returncode == 0
    assert "making the Python environment" in done.stderr, "what pip left is not trusted"


def test_two_first_runs_at_once_do_not_disturb_each_other(computer: Computer) -> None:
    shutil.rmtree(computer.environment)
    computer.lacks("libgl1")
    processes = [computer.start() for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [out for out, _ in results] == ['["--demo"]\n'] * 2
    assert computer.calls.count("apt-get install") == 1
    assert sum(err.count("making the Python environment") for _, err in results) == 1


def test_nothing_is_written_into_a_checkout_that_is_not_ours(tmp_path: Path) -> None:
    computer = make_computer(tmp_path)
    if os.geteuid() == 0:
        os.chown(computer.checkout, 12345, 12345)
    else:
        computer.checkout.chmod(0o555)
    before = sorted(computer.checkout.rglob("*"))
    try:
        assert computer.run().returncode == 0
        assert computer.arguments_of_snaptree() == ["--demo"]
        assert sorted(computer.checkout.rglob("*")) == before
        assert len(list((computer.directory / "cache" / "snaptree").iterdir())) == 1
    finally:
        computer.checkout.chmod(0o755)
