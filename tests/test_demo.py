"""The demo estate, each time in processes of its own as users have it: built, used again, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snaptree.hosts.embedded import kill_machines
from tests.kit.machines import digest, run_tool
from tests.kit.processes import qemu_processes

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(170)]

ROOT = Path(__file__).parent.parent
RUNNING = {"web-01", "db-01", "clone-01", "fresh-01"}
OFF = {"ci-runner-01", "golden-debian", "clone-02", "legacy-01"}
# libvirt 10.8 to 11.10 can neither start a machine on more than 25 layers nor take it up again, and kills it when its
# process starts anew (NEWS of 12.0.0: "VMs with more than ~25 external snapshots").
LOST = {"web-01"} if 10_008_000 <= libvirt.getVersion() < 12_000_000 else set[str]()
"""Machines that are off as soon as another process has opened a kept estate."""

TREES = {
    "db-01": """
        initial-import
          before-upgrade-to-16
            upgraded-to-16
              after-reindex
            upgraded-to-16-again
              quarter-end
                what-if-partitioned
                  what-if-without-index
                before-patch-day
                  patched *
        """,
    "ci-runner-01": """
        base-install
          toolchain
            dependencies
              nightly-1
                nightly-2
                  nightly-3
                    nightly-4
                      nightly-5
                        nightly-6
                          nightly-7
                            nightly-8
              merge-request-482
                merge-request-482-fixed
            dependencies-lts
              release-3-0-rc1
                release-3-0-rc2
                  release-3-0-rc3
                    release-3-0-rc4
                      release-3-0-rc5
                        release-3-0 *
        """,
    "golden-debian": """
        installed
          sealed *
        """,
    "clone-01": """
        personalised
          deployed
            before-config-change *
        """,
    "clone-02": """
        personalised
          load-test *
        """,
    "legacy-01": """
        installed
          before-migration
            kernel-test
              after-migration
                monday
                  tuesday *
        """,
    "fresh-01": "",
}

BUILD = """
import sys
from pathlib import Path
from snaptree.demo import DemoEstate
estate = DemoEstate.create(
    Path(sys.argv[1]) if len(sys.argv) > 1 else None,
    lambda progress: print(progress.done, progress.total, progress.doing, flush=True),
)
print("uri", estate.uri, flush=True)
if not sys.stdin.isatty():
    sys.stdin.read()
estate.close()
"""


def start(program: str, *arguments: str | Path, places: Path) -> subprocess.Popen[str]:
    """Run Python of its own, which puts throw-away estates into `places`. It ends when its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        cwd=ROOT, env=environment(places), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def environment(places: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(places)}


def run(program: str, *arguments: str | Path, places: Path) -> subprocess.CompletedProcess[str]:
    process = start(program, *arguments, places=places)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def snaptree(*arguments: str, places: Path) -> subprocess.CompletedProcess[str]:
    """What a user types."""
    return subprocess.run(
        [sys.executable, "-m", "snaptree", *arguments],
        cwd=ROOT, env=environment(places), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where throw-away estates go in a test."""
    place = tmp_path_factory.mktemp("d")
    yield place
    kill_machines(place)
    shutil.rmtree(place)


@dataclass(frozen=True)
class Kept:
    """An estate that the tests of this module look at."""

    directory: Path
    uri: str
    progress: list[tuple[int, int]]
    built_at: float

    @property
    def images(self) -> Path:
        return self.directory / "images"

    def virsh(self, *commands: str) -> str:
        """Run virsh commands in one process of their own."""
        # libvirt crashes in a process that ends while it still looks for running machines; a monitor waits for that.
        waits = [f"qemu-monitor-command {name} --hmp 'info status'; echo =ready=" for name in sorted(RUNNING)]
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self.uri, "; ".join([*waits, *commands])],
            env={**os.environ, "LIBVIRT_LOG_OUTPUTS": "3:file:/dev/null"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = done.stdout.rpartition("=ready=")[2]
        return "\n".join(filter(str.strip, answer.splitlines()))

    def snapshots(self, name: str) -> dict[str, Any]:
        """{snapshot: (parent, seconds since 1970)} as virsh lists them."""
        rows = self.virsh(f"snapshot-list {name} --parent").splitlines()
        found = {}
        for row in rows:
            snapshot, created, _state, parent = [*re.split(r"\s{2,}", row.strip()), ""][:4]
            found[snapshot] = parent, created
        return found

    def chain(self, image: Path) -> list[dict[str, Any]]:
        """The layers under an image, itself first, as qemu-img finds them."""
        layers: list[dict[str, Any]] = json.loads(
            run_tool("qemu-img", "info", "-U", "--backing-chain", "--output=json", str(image))
        )
        return layers

    def active_image(self, name: str) -> Path:
        disk = next(line for line in self.virsh(f"domblklist {name}").splitlines() if line.split()[0] == "vda")
        return Path(disk.split(maxsplit=1)[1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    directory = tmp_path_factory.mktemp("kept")
    before = time.time()
    built = run(BUILD, directory, places=tmp_path_factory.mktemp("d"))
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    *steps, uri_line = built.stdout.splitlines()
    progress = [(int(done), int(total)) for done, total, *_ in (line.split() for line in steps)]
    yield Kept(directory, uri_line.split()[1], progress, before)
    kill_machines(directory)
    shutil.rmtree(directory)


def drawn(text: str) -> tuple[dict[str, str], str]:
    """{snapshot: parent} and the current one of a tree drawn by indentation."""
    parents: dict[str, str] = {}
    current, path = "", list[tuple[int, str]]()
    for line in filter(str.strip, text.splitlines()):
        depth = len(line) - len(line.lstrip())
        name, *mark = line.split()
        path = [(other, above) for other, above in path if other < depth]
        parents[name] = path[-1][1] if path else ""
        path.append((depth, name))
        if mark:
            current = name
    return parents, current


# What is built


def test_progress_runs_to_its_end(kept: Kept) -> None:
    done, totals = zip(*kept.progress, strict=True)
    assert set(totals) == {len(done)}
    assert list(done) == list(range(1, len(done) + 1))


def test_the_machines_are_there_and_as_they_should_be(kept: Kept) -> None:
    assert set(kept.virsh("list --name").split()) == RUNNING - LOST
    assert set(kept.virsh("list --name --inactive").split()) == OFF | LOST


@pytest.mark.parametrize("name", TREES)
def test_the_trees_are_as_designed(kept: Kept, name: str) -> None:
    nightly = sorted(snapshot for snapshot in kept.snapshots(name) if snapshot.startswith("nightly-"))
    plain = {snapshot: f"nightly-{number}" for number, snapshot in enumerate(nightly, start=1)}
    parents, current = drawn(TREES[name])
    found = {plain.get(each, each): plain.get(parent, parent) for each, (parent, _) in kept.snapshots(name).items()}
    assert found == parents
    if current:
        assert kept.virsh(f"snapshot-current {name} --name").strip() == current


def test_the_web_server_has_forty_automatic_snapshots_in_one_line(kept: Kept) -> None:
    snapshots = kept.snapshots("web-01")
    automatic = [name for name in snapshots if name.startswith("auto-")]
    assert len(automatic) == 40
    assert len(snapshots) == 41
    parents = [parent for parent, _ in snapshots.values()]
    assert sorted(parents) == sorted({*parents}), "each has one child at most"
    assert sorted(automatic) == automatic, "listed by age, named by age"
    assert kept.virsh("snapshot-current web-01 --name").strip() == automatic[-1]
    assert len(kept.chain(kept.active_image("web-01"))) == 42


def test_snapshots_are_as_old_as_they_say(kept: Kept) -> None:
    for name in TREES.keys() | {"web-01"}:
        snapshots = kept.snapshots(name)
        for snapshot, (parent, created) in snapshots.items():
            assert not parent or snapshots[parent][1] < created, f"{snapshot} is older than its parent"
            if match := re.search(r"-(\d{8})-(\d{4})$", snapshot):
                stamp = kept.virsh(f"snapshot-dumpxml {name} {snapshot}")
                seconds = int(re.search(r"<creationTime>(\d+)<", stamp)[1])  # type: ignore[index]  # always said
                assert time.strftime("%Y%m%d %H%M", time.gmtime(seconds)) == f"{match[1]} {match[2]}"
                assert seconds < kept.built_at + 60
                break


def test_every_image_is_sound_and_differs_from_the_others(kept: Kept) -> None:
    images = [path for path in kept.images.iterdir() if path.suffix != ".mem"]
    for image in images:
        run_tool("qemu-img", "check", "-q", "-U", "-f", "qcow2", str(image))
    assert all(image.stat().st_blocks * 512 > 2**20 for image in images)
    assert sum(path.stat().st_blocks * 512 for path in kept.images.iterdir()) < 650 * 2**20
    web = kept.chain(kept.active_image("web-01"))
    contents = [digest(Path(layer["filename"]), "qcow2") for layer in web[-6:]]
    assert len(set(contents)) == len(contents)


def test_memory_was_saved_with_real_content(kept: Kept) -> None:
    for path in kept.images.glob("*.mem"):
        assert path.stat().st_blocks * 512 > 6 * 2**20, path
    assert len(list(kept.images.glob("*.mem"))) == 2
    (image,) = kept.chain(kept.images / "db-01.qcow2")
    saved = {entry["name"]: entry["vm-state-size"] for entry in image["snapshots"]}
    assert saved.pop("initial-import") == 0, "it was taken while the machine was off"
    assert len(saved) == 9
    assert all(size > 6 * 2**20 for size in saved.values())


def test_clones_stand_on_the_template(kept: Kept) -> None:
    golden = kept.images / "golden-debian.qcow2"
    for clone, depth in (("clone-01", 5), ("clone-02", 4)):
        layers = [layer["filename"] for layer in kept.chain(kept.active_image(clone))]
        assert len(layers) == depth
        assert layers[-1] == str(golden)
    assert not golden.stat().st_mode & 0o222


def test_branches_of_the_build_runner_share_their_trunk(kept: Kept) -> None:
    snapshots = kept.snapshots("ci-runner-01")
    frozen = {
        name: re.search(
            r"<domain type.*?<source file='([^']*)'", kept.virsh(f"snapshot-dumpxml ci-runner-01 {name}"), re.DOTALL
        )
        for name in snapshots
    }
    image = {name: Path(match[1]) for name, match in frozen.items() if match}
    for name, (parent, _) in snapshots.items():
        layers = [layer["filename"] for layer in kept.chain(image[name])]
        if parent:
            assert layers[1] == str(image[parent]), name
    used = kept.chain(kept.active_image("ci-runner-01"))
    assert used[1]["filename"] == str(image["release-3-0"])


def test_the_legacy_machine_has_what_others_left_behind(kept: Kept) -> None:
    known = set(kept.snapshots("legacy-01"))
    (*_, base) = chain = kept.chain(kept.active_image("legacy-01"))
    inside = {entry["name"] for entry in base["snapshots"]}
    assert inside == {"installed", "before-migration", "by-hand"}
    assert "kernel-test" in known
    assert "by-hand" not in known
    frozen = re.search(
        r"<domain type.*?<source file='([^']*)'", kept.virsh("snapshot-dumpxml legacy-01 tuesday"), re.DOTALL
    )
    assert frozen
    assert not Path(frozen[1]).exists()
    assert [Path(layer["filename"]).name for layer in chain] == [
        "legacy-01.tuesday", "legacy-01.after-migration", "legacy-01.qcow2",
    ]  # fmt: skip
    kept.virsh("start legacy-01 --paused", "destroy legacy-01")


def test_a_kept_estate_is_used_again_at_once(kept: Kept, places: Path) -> None:
    kept.virsh("list")
    machines = qemu_processes(kept.directory)
    assert len(machines) == len(RUNNING - LOST)
    again = run(BUILD, kept.directory, places=places)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == ["uri", kept.uri], "nothing was built"
    assert qemu_processes(kept.directory) == machines


def test_only_one_process_has_a_kept_estate(kept: Kept, places: Path) -> None:
    owner = start(BUILD, kept.directory, places=places)
    assert owner.stdout is not None
    assert owner.stdout.readline().startswith("uri")
    second = snaptree("--demo-dir", str(kept.directory), "list", places=places)
    removal = snaptree("remove-demo", str(kept.directory), "-y", places=places)
    owner.communicate()
    assert (second.returncode, removal.returncode) == (1, 1)
    assert (
        second.stderr
        == removal.stderr
        == (
            f"snaptree: The demo estate in {kept.directory} is open in another SnapTree (pid {owner.pid}). "
            "Close that one first, or choose another directory.\n"
        )
    )
    third = snaptree("--demo-dir", str(kept.directory), "list", places=places)
    assert third.returncode == 0, third.stderr


# Where it may be


def test_any_path_will_do(places: Path) -> None:
    """Too long for a socket, with a space, a percent sign and another script: built, used again by name."""
    directory = places / f"my 100% ☃ & estate {'x' * 100}"
    built = run(BUILD, directory, places=places)
    assert built.returncode == 0, built.stderr
    listed = snaptree("--demo-dir", str(directory), "list", "--json", places=places)
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in RUNNING | OFF)
    (directory / "notes.txt").write_text("mine")
    machines = qemu_processes(directory)
    only_said = snaptree("remove-demo", str(directory), places=places)
    assert only_said.returncode == 3, "nobody agreed"
    assert "This can't be undone." in only_said.stdout
    assert machines
    assert qemu_processes(directory) == machines
    removed = snaptree("remove-demo", str(directory), "-y", "--json", places=places)
    assert removed.returncode == 0, removed.stderr
    assert json.loads(removed.stdout) == {"directory": str(directory), "removed": True, "left": ["notes.txt"]}
    assert not qemu_processes(places)
    assert [entry.name for entry in directory.iterdir()] == ["notes.txt"], "what is not the estate's stays"


def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(places: Path) -> None:
    (places / "thesis.txt").write_text("irreplaceable")
    refused = snaptree("--demo-dir", str(places), "list", places=places)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"snaptree: {places} is not empty and not a demo estate: it holds 'thesis.txt'. "
        "Choose a directory that is empty or does not exist yet.\n"
    )
    no_demo = snaptree("remove-demo", str(places), "-y", places=places)
    assert no_demo.returncode == 1
    assert f"{places} is no demo estate of SnapTree's" in no_demo.stderr
    assert [entry.name for entry in places.iterdir()] == ["thesis.txt"]


def test_an_interrupted_building_is_done_again(places: Path) -> None:
    directory = places / "estate"
    first = start(BUILD, directory, places=places)
    _wait_for_a_machine(first)
    first.kill()
    first.communicate()
    assert qemu_processes(directory), "a killed process can't clean up"
    stranger = directory / "notes.txt"
    stranger.write_text("mine")
    refused = snaptree("--demo-dir", str(directory), "list", places=places)
    assert "it holds 'notes.txt'" in refused.stderr
    assert refused.returncode == 1
    stranger.unlink()
    orphans = qemu_processes(directory)
    second = start(BUILD, directory, places=places)
    assert second.stdout is not None
    assert second.stdout.readline().startswith("1 ")
    assert not set(orphans) & set(qemu_processes(directory))
    second.send_signal(signal.SIGINT)
    second.communicate()
    assert not directory.exists(), "what is built half is not kept"


def test_a_place_that_cannot_be_written_is_said(places: Path) -> None:
    refused = snaptree("--demo-dir", "/proc/estate", "list", places=places)
    assert refused.returncode == 1
    assert "cannot be kept in /proc/estate" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_missing_programs_are_named(places: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snaptree", "--demo", "list"],
        cwd=ROOT, env={**environment(places), "PATH": str(places)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "apt install qemu-system-x86 qemu-utils" in done.stderr
    assert not list(places.iterdir())


# How it goes


def _wait_for_a_machine(process: subprocess.Popen[str]) -> None:
    """Read its progress until a machine runs: the web server does when it has its first snapshot."""
    assert process.stdout is not None
    for line in process.stdout:
        if "web-01: auto-" in line:
            return
    pytest.fail(f"it ended: {process.stderr.read() if process.stderr else ''}")


def test_a_throw_away_estate_leaves_nothing(places: Path) -> None:
    done = snaptree("--demo", "list", "--json", places=places)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in RUNNING | OFF)
    assert not qemu_processes(places)
    assert not list(places.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_building_leave_nothing(places: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "snaptree", "--demo", "list"],
        cwd=ROOT, env=environment(places), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not qemu_processes(places):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _out, err = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in err
    assert not qemu_processes(places)
    assert not list(places.iterdir())


def test_an_error_that_nobody_catches_leaves_nothing(places: Path) -> None:
    done = run(BUILD.replace("sys.stdin.read()", "raise RuntimeError('not caught')"), places=places)
    assert done.returncode == 1
    assert "not caught" in done.stderr
    assert not qemu_processes(places)
    assert not list(places.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(places: Path) -> None:
    alive = start(BUILD, places=places)
    _wait_for_a_machine(alive)
    dead = start(BUILD, places=places)
    (of_the_living,) = places.iterdir()
    _wait_for_a_machine(dead)
    dead.kill()
    dead.communicate()
    assert len(list(places.iterdir())) == 2
    cleaned = run("import snaptree.demo; snaptree.demo.clean_up_leftovers()", places=places)
    assert cleaned.returncode == 0, cleaned.stderr
    assert list(places.iterdir()) == [of_the_living], "what is in use was left alone"
    alive.send_signal(signal.SIGINT)
    alive.communicate()
    assert not qemu_processes(places)
    assert not list(places.iterdir())


def test_building_can_be_cancelled(places: Path) -> None:
    done = run(
        """
from snaptree.demo import DemoEstate
from snaptree.model.errors import CancelledError
estate = DemoEstate.prepare()
steps = []
try:
    estate.build(steps.append, lambda: len(steps) >= 12)
except CancelledError:
    print("cancelled", len(steps) < 20)
estate.close()
""",
        places=places,
    )
    assert done.stdout.split() == ["cancelled", "True"], done.stderr
    assert not qemu_processes(places)
    assert not list(places.iterdir())
