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
            backing: list[str | Path] = []
            if below is not None:
                backing = ["-b", paths[index + 1], "-F", "raw" if below.is_raw else "qcow2"]
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


def check_growth(told: Merge, really: int, into: Made) -> None:
    if into.is_raw:  # the file system takes blocks of its own for a file of many pieces
        assert really <= told.growth - told.freed + 8192
        if "-z" not in str(into.sessions):  # which sets blocks aside
            assert really >= told.growth - told.freed - 8192
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
        check_growth(commit.intermediate, really, made[commit.base])
        return
    [length] = lengths
    granule = 64 * KIBIBYTE if made[commit.base].is_raw else min(max(made[commit.base].cluster, 4096), 64 * KIBIBYTE)
    assert length is not None
    assert 0 <= length - commit.live.copied - commit.live.zeroed < granule
    check_growth(commit.live, really, made[commit.base])


def check_pull(daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], costs: ChainCosts, index: int) -> None:
    told = costs.pulls[index]
    really = grown(paths[index], lambda: daemon.pull(paths, index))
    is_plain = len({(layer.cluster, layer.size) for layer in made}) == 1 and not any(
        layer.subclusters or layer.is_raw or layer.preallocated or "-z" in str(layer.sessions) for layer in made
    )
    if is_plain:
        event("pull, to the byte")
        assert really == told.growth
    else:  # QEMU pulls zeros as data where they come together with data, and data that are zeros as such
        assert really <= told.growth + told.zeroed


# ---- certain chains ----


def test_layers_of_other_sizes_hide_what_is_beyond_their_end(daemon: Daemon, tmp_path: Path) -> None:
    made = [
        Made(5 * MEBIBYTE + 512, 4096),
        Made(3 * MEBIBYTE + 1536, 64 * KIBIBYTE, sessions=(("write -q -P 3 3145728 1024",),)),
        Made(5 * MEBIBYTE, sessions=(("write -q -P 5 0 5M",),)),
    ]
    paths = make_chain(tmp_path, made)
    costs = walk(paths)
    check_what_shows(paths, costs)
    assert costs.layers[1].visible == 1536  # the rest of its cluster lies beyond its end
    assert costs.layers[2].visible == 3 * MEBIBYTE
    with opened(paths) as layers:
        commit = measure_commit(layers, 0, 2)
    # What the middle layer's end made zeros has to be zeros in the base afterwards.
    assert commit.live.copied + commit.live.zeroed >= 2 * MEBIBYTE
    check_commit(daemon, paths, made, commit)


def test_a_raw_base_is_sparse_or_of_unknown_holes(tmp_path: Path) -> None:
    paths = make_chain(
        tmp_path, [Made(8 * MEBIBYTE), Made(8 * MEBIBYTE, is_raw=True, sessions=(("write -q 1M 64k",),))]
    )
    with opened(paths) as layers:
        local = walk_chain(layers).layers[1]
        blind = walk_chain([layers[0], Layer(layers[1].source, None, layers[1].virtual_size)])
    assert (local.data, local.zero, local.visible) == (65536, 8 * MEBIBYTE - 65536, 65536)
    assert not local.is_upper_bound
    assert (blind.layers[1].data, blind.layers[1].visible) == (8 * MEBIBYTE, 8 * MEBIBYTE)
    assert blind.layers[1].is_upper_bound
    assert blind.pulls[0].is_upper_bound


@pytest.mark.parametrize("raw_data_file", ["off", "on"])
def test_data_in_a_second_file(daemon: Daemon, tmp_path: Path, raw_data_file: str) -> None:
    """There a cluster at place 0 is one like others."""
    top, base, data = tmp_path / "top.qcow2", tmp_path / "base.qcow2", tmp_path / "data.raw"
    options = f"data_file={data},data_file_raw={raw_data_file}"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, base, "4M")
    run("qemu-io", "-c", "write -q 0 128k", "-c", "write -q -z 1M 64k", base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "4M")
    run("qemu-io", "-c", "write -q 64k 128k", top)
    costs = walk([top, base])
    check_what_shows([top, base], costs)
    # QEMU defines all of a disk whose second file is to be a raw image of it.
    data_there = 4 * MEBIBYTE - 65536 if raw_data_file == "on" else 2 * 65536
    assert costs.layers[1].data == data_there
    assert costs.commits[0].live.growth == (0 if raw_data_file == "on" else 65536)


def test_encrypted_layers_are_like_others(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=key,data=secret")
    top, base = tmp_path / "top.qcow2", tmp_path / "base.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "4M")
    run("qemu-io", "-c", "write -q 64k 128k", base)
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    run("qemu-img", "create", "-q", *secret, "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", options, top, "4M")
    node = f"driver=qcow2,encrypt.key-secret=key,file.filename={top}"
    run("qemu-io", *secret, "--image-opts", "-c", "write -q 0 128k", node)
    costs = walk([top, base])
    assert [(each.data, each.visible) for each in costs.layers] == [(131072, 131072), (131072, 65536)]
    assert costs.commits[0].live.copied == 131072
    assert costs.commits[0].live.growth == 65536


def test_clusters_shared_with_an_internal_snapshot_are_copied_before_they_are_written(
    daemon: Daemon, tmp_path: Path
) -> None:
    made = [
        Made(6 * MEBIBYTE, sessions=(("write -q 0 1M",),)),
        Made(6 * MEBIBYTE, sessions=(("write -q 0 2M",),)),
    ]
    paths = make_chain(tmp_path, made)
    run("qemu-img", "snapshot", "-c", "before", paths[1])
    run("qemu-io", "-c", "write -q 64k 64k", paths[1])
    costs = walk(paths)
    check_what_shows(paths, costs)
    assert costs.commits[0].live.growth == 15 * 65536  # one was copied, and the table
    check_commit(daemon, paths, made, costs.commits[0])


@pytest.mark.parametrize("job", ["live", "intermediate", "pull"])
def test_growth_over_many_tables(daemon: Daemon, tmp_path: Path, job: str) -> None:
    """Windows begin and end within tables, tables are made that no layer had, and the L1 table grows."""
    writes = tuple(f"write -q -P 7 {place}M 256k" for place in (0, 33, 34, 1000, 2047, 4096, 9000, 9999))
    small = tuple(f"write -q -P 9 {place}M 8k" for place in (0, 34, 35, 36, 700, 2048))
    made = [
        Made(10 * GIBIBYTE, 4096, sessions=(writes,)),
        Made(10 * GIBIBYTE, 64 * KIBIBYTE, sessions=(small,)),
        Made(10 * GIBIBYTE if job == "pull" else 3 * GIBIBYTE, 2048, sessions=(small[:2],)),
    ]
    paths = make_chain(tmp_path, made)
    costs = walk(paths)
    check_what_shows(paths, costs)
    if job == "pull":
        assert grown(paths[0], lambda: daemon.pull(paths, 0)) <= costs.pulls[0].growth + costs.pulls[0].zeroed
        return
    top = 0 if job == "live" else 1
    with opened(paths) as layers:
        check_commit(daemon, paths, made, measure_commit(layers, top, 2))


def test_five_hundred_layers(qemu_img: QemuImg, tmp_path: Path) -> None:
    """Deeper than QEMU opens: each stands on the one before, and hides half of it."""
    base = qemu_img.create("layer0.qcow2", "64M")
    run("qemu-io", "-c", "write -q 0 128k", base)
    with open_local(str(base)) as file:
        layers = [Layer.of_qcow2(file)] * 500
        costs = walk_chain(layers)
        assert [each.visible for each in costs.layers] == [131072] + [0] * 499
        assert costs.commits[498] == CommitCosts(498, 499, *[Merge(131072, 0, 0, 0, False)] * 2)
        with pytest.raises(BadImageError, match="more than 500 layers"):
            walk_chain([*layers, layers[0]])


def test_what_is_no_chain(tmp_path: Path) -> None:
    paths = make_chain(tmp_path, [Made(MEBIBYTE), Made(MEBIBYTE, is_raw=True)])
    with opened(paths) as layers:
        for wrong in ([], layers[::-1]):
            with pytest.raises(ValueError, match="only the bottom one"):
                walk_chain(wrong)
        for top, base in ((0, 0), (1, 0), (-1, 1), (0, 2)):
            with pytest.raises(ValueError, match="lies above"):
                measure_commit(layers, top, base)
            with pytest.raises(ValueError, match="lies above"):
                walk_chain(layers, commits=[(top, base)])


def test_a_walk_is_cancelled(tmp_path: Path) -> None:
    paths = make_chain(tmp_path, [Made(GIBIBYTE, preallocated=True)])
    asked = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > limit

    for limit in range(3):
        asked.clear()
        with pytest.raises(CancelledError):
            walk(paths, cancelled=cancelled)
        assert len(asked) == limit + 1


# ---- hostile images ----


class Buffer:
    """An image in memory, that may be longer than what is in it."""

    def __init__(self, content: bytes | bytearray, size: int = 0) -> None:
        self.content = content
        self.size = max(size, len(content))

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        return bytes(self.content[offset : offset + length]).ljust(length, b"\0")


def hostile(cluster_bits: int, l1_entries: int, place: Callable[[Any], Any], size: int) -> Buffer:
    """An image all of whose L1 entries lead somewhere."""
    cluster = 1 << cluster_bits
    entry_size = 8
    words = [2, 0, 0, cluster_bits, (l1_entries * (cluster // entry_size)) << cluster_bits, 0, l1_entries, cluster]
    header = b"QFI\xfb" + b"".join(
        number.to_bytes(length, "big") for number, length in zip(words, (4, 8, 4, 4, 8, 4, 4, 8), strict=True)
    )
    header = header.ljust(72, b"\0")
    table = place(np.arange(l1_entries, dtype=np.int64)).astype(">u8").tobytes()
    return Buffer(header.ljust(cluster, b"\0") + table, size)


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
def test_a_table_that_every_entry_leads_to(cluster_bits: int) -> None:
    entries = 1 << 22
    image = hostile(cluster_bits, entries, lambda index: 0 * index + (64 << 20), 1 << 40)
    with pytest.raises(BadImageError, match="same L2 table"):
        walk_chain([Layer.of_qcow2(image)] * 500)


@pytest.mark.parametrize("cluster_bits", [9, 16, 21])
def test_a_ring_of_tables(monkeypatch: pytest.MonkeyPatch, cluster_bits: int) -> None:
    """Each entry leads to another table than its neighbours: sooner or later it is too much."""
    monkeypatch.setattr(overlay, "_MOST_UNITS", 1 << 24)
    image = hostile(cluster_bits, 1 << 22, lambda index: (64 << 20) + (index % (1 << 15) << cluster_bits), 1 << 50)
    with pytest.raises(BadImageError, match="too large"):
        walk_chain([Layer.of_qcow2(image)] * 20)


def test_more_tables_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "Budget", lambda: Budget(16 << 20))
    image = hostile(16, 1 << 12, lambda index: (64 << 20) + (index << 16), 1 << 40)
    with pytest.raises(BadImageError, match="larger than those of any real image"):
        walk_chain([Layer.of_qcow2(image)])


def test_a_vast_empty_disk_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_MOST_UNITS", 1 << 26)
    image = Layer.of_qcow2(hostile(21, 1 << 22, lambda index: 0 * index, 1 << 40))
    fine = Layer.of_qcow2(hostile(9, 1 << 16, lambda index: 0 * index, 1 << 40))
    assert image.virtual_size == 1 << 61
    costs = walk_chain([image, image])
    assert [each.data for each in costs.layers] == [0, 0]
    with pytest.raises(BadImageError, match="too large"):  # what is beyond the end of a layer is zeros, all the way
        walk_chain([image, fine, fine])


@settings(max_examples=CASES, deadline=None, derandomize="SNAPTREE_CASES" not in os.environ, database=None)
@given(data=st.data())
def test_mutated_images_fail_in_words_if_at_all(mutable: tuple[list[bytes], list[int]], data: st.DataObject) -> None:
    contents, interesting = mutable
    index = data.draw(st.integers(0, len(contents) - 1))
    image = bytearray(contents[index])
    places = st.one_of(st.sampled_from(interesting), st.integers(0, len(image) - 8))
    values = st.one_of(
        st.sampled_from([0, 1, 1 << 62, 1 << 63, (1 << 64) - 1, 0x10000, 0x30001, 1 << 40, (1 << 63) + 0x10000]),
        st.integers(0, (1 << 64) - 1),
    )
    for _ in range(data.draw(st.integers(1, 8))):
        place = min(data.draw(places), len(image) - 8)
        image[place : place + 8] = data.draw(values).to_bytes(8, "big")
    image = image[: data.draw(st.integers(1024, len(image)))] if data.draw(st.booleans()) else image
    try:
        layers = [Layer.of_qcow2(Buffer(image if at == index else each)) for at, each in enumerate(contents)]
        costs = walk_chain(layers)
    except BadImageError as error:
        if not str(error):
            raise
        return
    for layer, cost in zip(layers, costs.layers, strict=True):
        assert 0 <= cost.visible <= cost.data <= layer.virtual_size
        assert cost.data + cost.zero <= layer.virtual_size


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[int]]:
    """Images of a chain, and places where their tables are."""
    written = (("write -q 0 256k", "write -q -z 1M 64k", "write -q -z 64k 64k"), ("write -q -c 2M 64k",))
    made = [
        Made(3 * MEBIBYTE, 16 * KIBIBYTE, subclusters=True, sessions=written),
        Made(3 * MEBIBYTE + 512, sessions=written),
    ]
    contents = [path.read_bytes() for path in make_chain(tmp_path_factory.mktemp("mutable"), made)]
    places = [*range(0, 112, 4)]
    for content in contents:
        with_l1 = int.from_bytes(content[40:48], "big")
        l2 = int.from_bytes(content[with_l1 : with_l1 + 8], "big") & 0xFFFFFFFFFFFE00
        places += [with_l1, *range(l2, l2 + 512, 8)]
    return contents, places
