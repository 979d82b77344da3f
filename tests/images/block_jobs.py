"""Chains of images made by QEMU, what QEMU says of them, and its block jobs run on them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snaptree.images.files import open_local
from snaptree.images.qcow2 import read_content
from tests.images.conftest import run

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20


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


def driver_of(path: Path) -> str:
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def bytes_by_depth(image: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for extent in json.loads(run("qemu-img", "map", "--output=json", image)):
        if extent["present"] and extent["data"]:
            found[extent["depth"]] += extent["length"]
    return found


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
