"""What shows of a chain's layers, and what merging them writes: as QEMU shows it, and as QEMU's jobs do it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from snaptree.images import overlay
from snaptree.images.files import open_local
from snaptree.images.overlay import ChainCosts, CommitCosts, Layer, Merge, measure_commit, walk_chain
from snaptree.images.qcow2 import read_content
from snaptree.images.read_at import BadImageError
from snaptree.images.tables import Budget
from snaptree.model.errors import CancelledError
from tests.images.conftest import QemuImg, run

CASES = int(os.environ.get("SNAPTREE_CASES", "100"))
KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30

# ---- chains, made by QEMU ----


@dataclass(frozen=True)
class Made:
    """A layer to be made. Operations are commands of qemu-io; compressed writes come in a session of their own."""

    size: int
    cluster: int = 64 * KIBIBYTE
    version: int = 3
    subclusters: bool = False
    is_raw: bool = False
    preallocated: bool = False
    sessions: tuple[tuple[str, ...], ...] = ()


def make_chain(directory: Path, layers: Sequence[Made]) -> list[Path]:
    """Make images, top first, and write to them."""
    paths = [directory / f"layer{index}.img" for index in range(len(layers))]
    words: list[str] = []
    for index, layer in reversed(list(enumerate(layers))):
        path = paths[index]
        driver = "raw" if layer.is_raw else "qcow2"
        if layer.is_raw:
            with path.open("wb") as file:
                file.truncate(layer.size)
        else:
            below = layers[index + 1] if index + 1 < len(layers) else None
            backing = [] if below is None else ["-b", paths[index + 1], "-F", "raw" if below.is_raw else "qcow2"]
            options = f"cluster_size={layer.cluster},compat={'1.1' if layer.version == 3 else '0.10'}"
            options += ",extended_l2=on" if layer.subclusters else ""
            options += ",preallocation=metadata" if layer.preallocated and (below is None or layer.subclusters) else ""
            run("qemu-img", "create", "-q", "-f", "qcow2", *backing, "-o", options, path, str(layer.size))
        for session in layer.sessions:
            words += ["-c", f"open -o driver={driver},discard=unmap {path}"]
            for command in session:
                words += ["-c", command]
            words += ["-c", "close"]
    if words:
        # A compressed cluster cannot be written over one that is there: that command fails, the others go on.
        said = subprocess.run(["qemu-io", *words], check=False, capture_output=True, text=True)
        assert set((said.stdout + said.stderr).splitlines()) <= {"write failed: Input/output error"}
    return paths


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[Layer]]:
    with ExitStack() as stack:
        layers = []
        for path in paths:
            file = stack.enter_context(open_local(str(path)))
            is_qcow2 = file.read_at(0, 4) == b"QFI\xfb"
            layers.append(Layer.of_qcow2(file) if is_qcow2 else Layer.of_raw(file))
        yield layers


def walk(paths: Sequence[Path], **options: Any) -> ChainCosts:
    with opened(paths) as layers:
        return walk_chain(layers, **options)


# ---- what QEMU says ----


def driver_of(path: Path) -> str:
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def bytes_by_depth(image: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for extent in json.loads(run("qemu-img", "map", "--output=json", image)):
        if extent["present"] and extent["data"]:
            found[extent["depth"]] += extent["length"]
    return found


def alone(path: Path) -> tuple[int, int]:
    """Bytes of data and of zeros that one layer defines."""
    node: dict[str, Any] = {"driver": driver_of(path), "file": {"driver": "file", "filename": str(path)}}
    if node["driver"] == "qcow2":
        node["backing"] = None
    data = zeros = 0
    for extent in json.loads(run("qemu-img", "map", "--output=json", "json:" + json.dumps(node))):
        data += extent["length"] * (extent["present"] and extent["data"])
        zeros += extent["length"] * (extent["present"] and not extent["data"])
    return data, zeros


def clusters_used(path: Path) -> int:
    """Clusters that are counted in use, but for those that hold the counts."""
    raw = np.fromfile(path, np.uint8)
    header = raw[:104].tobytes()
    cluster = 1 << int.from_bytes(header[20:24], "big")
    at = int.from_bytes(header[48:56], "big")
    table_clusters = int.from_bytes(header[56:60], "big")
    order = int.from_bytes(header[96:100], "big") if header[4:8] == b"\0\0\0\3" else 4
    assert order == 4
    table = raw[at : at + table_clusters * cluster].view(">u8").astype(np.int64)
    used = 0
    for place in table[table != 0].tolist():
        block = raw[place : place + cluster]
        used += int(np.count_nonzero(block[: len(block) // 2 * 2].view(">u2")))
    return used - table_clusters - int(np.count_nonzero(table))


class Daemon:
    """A qemu-storage-daemon that runs jobs."""

    def __init__(self, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        chardev = f"socket,id=monitor,fd={descriptor}"
        command = ["qemu-storage-daemon", "--chardev", chardev, "--monitor", "chardev=monitor"]
        self.process = subprocess.Popen(command, pass_fds=[descriptor], cwd=directory)
        theirs.close()
        ours.settimeout(60)
        self._socket = ours
        self._lines = ours.makefile("r", encoding="utf-8")
        self._events: list[dict[str, Any]] = []
        self._lines.readline()
        self.ask("qmp_capabilities")

    def close(self) -> None:
        self.ask("quit")
        self._lines.close()
        self._socket.close()
        assert self.process.wait(timeout=60) == 0

    def ask(self, command: str, **arguments: Any) -> Any:
        question = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._socket.sendall(json.dumps(question).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{question}: {answer['error']}")
            else:
                return answer["return"]

    def wait_for(self, *names: str) -> dict[str, Any]:
        while True:
            while self._events:
                happened = self._events.pop(0)
                if happened["event"] in names:
                    return happened
            self._events.append(json.loads(self._lines.readline()))

    def open_chain(self, paths: Sequence[Path]) -> None:
        for index, path in reversed(list(enumerate(paths))):
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node: dict[str, Any] = {"driver": driver_of(path), "node_name": f"layer{index}", "file": file}
            if node["driver"] == "qcow2":
                node["backing"] = f"layer{index + 1}" if index + 1 < len(paths) else None
                node["discard"] = "unmap"
            self.ask("blockdev-add", **node)

    def close_chain(self, paths: Sequence[Path]) -> None:
        """Close what a job left open, from the top down."""
        names = {node["node-name"] for node in self.ask("query-named-block-nodes", flat=True)}
        for index in range(len(paths)):
            if f"layer{index}" in names:
                self.ask("blockdev-del", node_name=f"layer{index}")

    def commit(self, paths: Sequence[Path], top: int, base: int) -> int | None:
        """Commit layers; give the length of the job if it is a live one."""
        self.open_chain(paths)
        self._events.clear()
        arguments = {"job_id": "job", "device": "layer0", "base_node": f"layer{base}"}
        length = None
        if top == 0:
            self.ask("block-commit", **arguments)
            ready = self.wait_for("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR")
            assert ready["event"] == "BLOCK_JOB_READY", ready
            length = ready["data"]["len"]
            self.ask("block-job-complete", device="job")
        else:
            self.ask("block-commit", **arguments, top_node=f"layer{top}")
        self._end(paths)
        return length

    def pull(self, paths: Sequence[Path], index: int) -> None:
        self.open_chain(paths)
        self._events.clear()
        self.ask("block-stream", job_id="job", device=f"layer{index}")
        self._end(paths)

    def _end(self, paths: Sequence[Path]) -> None:
        done = self.wait_for("BLOCK_JOB_COMPLETED")
        assert "error" not in done["data"], done
        while self.ask("query-jobs"):
            self.wait_for("JOB_STATUS_CHANGE")
        self.close_chain(paths)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    started = Daemon(tmp_path_factory.mktemp("daemon"))
    yield started
    started.close()


def grown(path: Path, change: Callable[[], Any]) -> int:
    """Bytes that a file grows by while something is done: its clusters in use, or its blocks if it is raw."""

    def taken() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        blocks = os.fstat(descriptor).st_blocks
        os.close(descriptor)
        if driver_of(path) == "raw":
            return blocks * 512
        with open_local(str(path)) as file:
            return clusters_used(path) << read_content(file).header.cluster_bits

    before = taken()
    change()
    return taken() - before


# ---- any chain ----

SIZES = st.one_of(
    st.just(6 * MEBIBYTE),
    st.integers(1, 14000).map(lambda sectors: sectors * 512),
    st.integers(1, 1750).map(lambda blocks: blocks * 4096),
)


@st.composite
def sessions(
    draw: st.DrawFn, layer_size: int, cluster: int, version: int, *, is_raw: bool
) -> tuple[tuple[str, ...], ...]:
    """What a guest might do to a layer, at places that are neighbours more often than not."""
    found: list[tuple[str, ...]] = []
    grain = draw(st.sampled_from([512, 4096, cluster, 64 * KIBIBYTE]))
    for number in range(draw(st.integers(0, 2))):
        if not is_raw and cluster <= layer_size and draw(st.integers(0, 4)) == 0:
            first = draw(st.integers(0, layer_size // cluster - 1))
            found.append((f"write -q -c -P {number + 1} {first * cluster} {cluster}",))
            continue
        commands = []
        for _ in range(draw(st.integers(1, 6))):
            first = draw(st.integers(0, (layer_size - 1) // grain)) * grain
            length = min(draw(st.integers(1, 40)) * grain, layer_size - first, 3 * MEBIBYTE)
            kinds = ["write -q -P 7", "write -q -P 9", "discard -q"]
            kinds += ["write -q -z", "write -q -z -u"] if version == 3 else []
            commands.append(f"{draw(st.sampled_from(kinds))} {first} {length}")
        found.append(tuple(commands))
    return tuple(found)


@st.composite
def chains(draw: st.DrawFn) -> list[Made]:
    same_size = draw(SIZES) if draw(st.booleans()) else None
    same_cluster = draw(st.integers(9, 18)) if draw(st.booleans()) else None
    depth = draw(st.integers(2, 5))
    layers = []
    for index in range(depth):
        size = same_size or draw(SIZES)
        bits = same_cluster or draw(st.sampled_from([9, 10, 12, 12, 14, 16, 16, 16, 17, 21]))
        version = draw(st.sampled_from([3, 3, 3, 2]))
        subclusters = version == 3 and bits >= 14 and draw(st.integers(0, 3)) == 0
        is_raw = index == depth - 1 and draw(st.integers(0, 2)) == 0
        done = draw(sessions(size, 1 << bits, version, is_raw=is_raw))
        preallocated = not is_raw and draw(st.integers(0, 5)) == 0
        layers.append(Made(size, 1 << bits, version, subclusters, is_raw, preallocated, done))
    return layers


def check_what_shows(paths: Sequence[Path], costs: ChainCosts) -> None:
    visible = bytes_by_depth(str(paths[0]))
    for index, (path, layer) in enumerate(zip(paths, costs.layers, strict=True)):
        assert (layer.data, layer.zero) == alone(path), f"layer {index}"
        assert layer.visible == visible[index], f"layer {index}"
        assert layer.shadowed >= 0
        assert layer.anomalies == 0
        assert not layer.is_upper_bound


def check_growth(told: Merge, really: int, *, is_raw: bool) -> None:
    if is_raw:  # the file system takes blocks of its own for a file of many pieces
        assert abs(told.growth - told.freed - really) <= 8192
    elif told.is_upper_bound:
        assert really <= told.growth
    else:
        assert really == told.growth - told.freed


@pytest.mark.timeout(0 if CASES > 100 else 170)
@settings(
    max_examples=CASES,
    deadline=None,
    derandomize="SNAPTREE_CASES" not in os.environ,
    database=None,
    phases=[Phase.generate],  # smaller examples are not clearer here, and take long to find
    suppress_health_check=list(HealthCheck),
)
@given(made=chains(), data=st.data())
def test_any_chain_is_what_qemu_says_and_does(daemon: Daemon, made: list[Made], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        paths = make_chain(Path(directory), made)
        costs = walk(paths)
        check_what_shows(paths, costs)
        top = data.draw(st.integers(0, len(made) - 2), "top")
        job = data.draw(st.sampled_from(["commit", "commit", "pull"]), "job")
        event(job)
        if job == "pull" and made[top].subclusters:
            event("QEMU 7.2 dies of an assertion when it pulls into subclusters")
            return
        if job == "pull":
            check_pull(daemon, paths, made, costs, top)
            return
        base = data.draw(st.integers(top + 1, len(made) - 1), "base")
        with opened(paths) as layers:
            commit = measure_commit(layers, top, base)
        if base == top + 1:
            assert commit == costs.commits[top]
        if grows_impossibly(made, top, base):
            event("version 2 cannot hide what is below")
            return
        check_commit(daemon, paths, made, commit)


def grows_impossibly(made: Sequence[Made], top: int, base: int) -> bool:
    """Whether QEMU refuses: an image of version 2 cannot grow over a backing file that is longer."""
    into = made[base]
    below = made[base + 1 :][:1]
    return (
        into.version == 2 and not into.is_raw and made[top].size > into.size and any(b.size > into.size for b in below)
    )


def check_commit(daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], commit: CommitCosts) -> None:
    lengths: list[int | None] = []
    into = paths[commit.base]
    really = grown(into, lambda: lengths.append(daemon.commit(paths, commit.top, commit.base)))
    if commit.top:
        assert lengths == [None]
        check_growth(commit.intermediate, really, is_raw=made[commit.base].is_raw)
        return
    [length] = lengths
    granule = 64 * KIBIBYTE if made[commit.base].is_raw else min(max(made[commit.base].cluster, 4096), 64 * KIBIBYTE)
    assert length is not None
    assert 0 <= length - commit.live.copied - commit.live.zeroed < granule
    check_growth(commit.live, really, is_raw=made[commit.base].is_raw)


def check_pull(daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], costs: ChainCosts, index: int) -> None:
    told = costs.pulls[index]
    really = grown(paths[index], lambda: daemon.pull(paths, index))
    is_plain = len({layer.cluster for layer in made}) == 1 and not any(
        layer.subclusters or layer.is_raw or layer.preallocated or "-z" in str(layer.sessions) for layer in made
    )
    if is_plain:
        event("pull, to the byte")
        assert really == told.growth
    else:  # QEMU pulls zeros as data where they come together with data, and data that are zeros as such
        assert really <= told.growth + told.zeroed
