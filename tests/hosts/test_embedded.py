"""QEMU inside this process: its root, its machines, and the processes that it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from snaptree.hosts import embedded
from snaptree.hosts.connection import Connection
from snaptree.hosts.embedded import MAX_ROOT, kill_machines, place_on_cpus, prepare_root, release_root
from snaptree.model.errors import SnapTreeError
from tests.kit.machines import EmbeddedHost
from tests.kit.processes import qemu_processes

LONG = "a directory 100% too long for the sockets that libvirt makes inside of it"


def root_in(uri: str) -> Path:
    return Path(parse_qs(urlsplit(uri).query)["root"][0])


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, with a short path."""
    runtime = Path("/proc/self/cwd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return tmp_path


def test_a_root_is_named_by_its_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_ROOT", 4096)
    directory = tmp_path / "50% of a &?#ö name"
    assert root_in(prepare_root(directory)) == directory
    assert f'user = "+{os.geteuid()}"' in (directory / "etc" / "qemu.conf").read_text()
    release_root(directory)
    assert directory.exists()


def test_a_long_root_gets_a_short_name_that_stays(tmp_path: Path, runtime: Path) -> None:
    directory = tmp_path / LONG
    link = root_in(prepare_root(directory))
    assert len(os.fsencode(link)) <= MAX_ROOT
    assert link.resolve() == directory.resolve()
    assert root_in(prepare_root(directory)) == link, "running machines remember it"
    other = root_in(prepare_root(tmp_path / f"{LONG} 2"))
    assert other != link
    release_root(directory)
    assert not link.is_symlink()
    assert other.is_symlink()


def test_the_place_of_short_names_must_be_ours_alone(tmp_path: Path, runtime: Path) -> None:
    (runtime / "snaptree").mkdir()
    (runtime / "snaptree").chmod(0o777)
    with pytest.raises(SnapTreeError, match="not a directory of yours alone"):
        prepare_root(tmp_path / LONG)


def test_a_root_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapTreeError, match=r"Cannot write .*/file"):
        prepare_root(tmp_path / "file")


@pytest.mark.qemu
def test_a_second_root_in_one_process_is_explained(host: EmbeddedHost, tmp_path: Path) -> None:
    with pytest.raises(SnapTreeError, match="start another SnapTree for the other directory"):
        Connection(prepare_root(tmp_path)).open()


@pytest.mark.qemu
def test_a_root_in_use_by_virsh_is_explained(tmp_path: Path) -> None:
    uri = prepare_root(tmp_path)
    with subprocess.Popen(
        ["virsh", "--connect", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as virsh:
        assert virsh.stdin is not None
        assert virsh.stdout is not None
        virsh.stdin.write("echo ready\n")
        virsh.stdin.flush()
        while "ready" not in (line := virsh.stdout.readline()):
            assert line, "it ended"
        done = _in_a_process_of_its_own(_OPEN, tmp_path)
        virsh.stdin.close()
    assert "end that one first" in done.stdout


@pytest.mark.qemu
def test_machines_start_where_sys_is_not_mounted(host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """In clean chroots libvirt 11 finds no CPUs; naming them must be right for every libvirt."""
    monkeypatch.setattr(embedded, "_ONLINE_CPUS", Path("/nowhere"))
    machine = host.make_machine()
    cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    domain = ET.fromstring(machine.handle.XMLDesc())
    assert domain.find("cputune/emulatorpin") is not None
    assert machine.is_running
    place_on_cpus(domain)
    assert [element.get("cpuset") for element in domain.findall("cputune/emulatorpin")] != [cpus, cpus], "said once"


def test_where_sys_is_mounted_nothing_is_said_about_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_ONLINE_CPUS", Path("/"))
    domain = ET.fromstring("<domain><vcpu>1</vcpu></domain>")
    place_on_cpus(domain)
    assert ET.tostring(domain) == b"<domain><vcpu>1</vcpu></domain>"


@pytest.mark.qemu
def test_machines_are_killed_by_their_directory(host: EmbeddedHost) -> None:
    doomed, other = host.make_machine(), host.make_machine()
    kill_machines(doomed.directory)
    assert not qemu_processes(doomed.directory)
    assert other.is_running
    assert qemu_processes(other.directory)


@pytest.mark.qemu
def test_stopped_machines_leave_no_zombies(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.handle.destroy()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
    assert "Z" not in states


@pytest.mark.qemu
@pytest.mark.parametrize(("name", "own_session"), [("qemu-tool", False), ("my-qemu", True)])
def test_other_children_are_left_to_those_who_started_them(
    host: EmbeddedHost, tmp_path: Path, name: str, own_session: bool
) -> None:
    program = tmp_path / name
    program.symlink_to(sys.executable)
    child = subprocess.Popen([program, "-c", "raise SystemExit(3)"], start_new_session=own_session)
    host.make_machine().handle.destroy()  # takes longer than the reaper's interval
    assert child.wait() == 3


def test_the_log_of_the_embedded_driver_stays_off_stderr(tmp_path: Path) -> None:
    """What concerns the user reaches them as an error; libvirt's own chatter does not."""
    done = _in_a_process_of_its_own(_OPEN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


_OPEN = """
import pathlib, sys
from snaptree.hosts.connection import Connection
from snaptree.hosts.embedded import prepare_root
from snaptree.model.errors import SnapTreeError
try:
    Connection(prepare_root(pathlib.Path(sys.argv[1]))).open()
except SnapTreeError as error:
    print(error)
"""


def _in_a_process_of_its_own(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIBVIRT_")}
    return subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        env=environment, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
