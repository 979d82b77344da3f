"""Local images: what they take, what they stand on, and what can be wrong with them."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snaptree.images import files
from snaptree.images.files import DEEPEST_CHAIN, ImageReader, read_chain
from snaptree.model.estate import Image
from snaptree.model.figures import Confidence, exact
from tests.images.conftest import QemuImg

MEBIBYTE = 1 << 20


@pytest.fixture
def reader() -> ImageReader:
    return ImageReader()


def write(path: Path, size: int) -> None:
    """Let a guest write random content, as it would to the start of its disk."""
    source = path.with_suffix(".content")
    source.write_bytes(os.urandom(size))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {source} 0 {size}", path], check=True)
    source.unlink()


# ---- one image ----


def test_an_image_takes_its_blocks_not_its_length(qemu_img: QemuImg, reader: ImageReader) -> None:
    path = qemu_img.create("disk.qcow2", "10G")
    write(path, MEBIBYTE)
    os.truncate(path, 5 << 30)
    image = reader.read_image(path, "qcow2")
    blocks = int(subprocess.run(["stat", "-c", "%b", path], check=True, capture_output=True, text=True).stdout)
    assert image.allocated.bytes == blocks * 512
    assert MEBIBYTE < blocks * 512 < 2 * MEBIBYTE
    assert image.allocated.confidence is Confidence.EXACT
    assert image.allocated.how == "blocks of the file system"
    assert image.virtual_size == 10 << 30
    assert image.problem == ""


def test_raw_is_what_it_is_recorded_as_whatever_it_looks_like(qemu_img: QemuImg, reader: ImageReader) -> None:
    qemu_img.create("base.qcow2")
    disguised = qemu_img.overlay("top.qcow2", "base.qcow2")
    image = reader.read_image(disguised, "raw")
    assert image.backing is None
    assert image.virtual_size == disguised.stat().st_size
    assert image.problem == ""


def test_a_format_is_never_guessed(qemu_img: QemuImg, reader: ImageReader) -> None:
    image = reader.read_image(qemu_img.create("disk.qcow2"), "")
    assert image.problem == "its format is not recorded"
    assert image.virtual_size is None
    assert image.allocated.is_known


def test_what_is_no_qcow2_is_told(tmp_path: Path, reader: ImageReader) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"hello")
    image = reader.read_image(path, "qcow2")
    assert "does not begin like a qcow2 image" in image.problem
    assert image.allocated.is_known


def test_other_formats(tmp_path: Path, reader: ImageReader) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 5000)
    assert reader.read_image(path, "iso").problem == ""
    assert reader.read_image(path, "vmdk").problem == "images of format vmdk cannot be read"
    assert reader.read_image(path, "vmdk").allocated.is_known


@pytest.mark.parametrize("name", ["gone.qcow2", "disk.qcow2/inside", "gone/disk.qcow2", "dangling", "nul\0name"])
def test_a_missing_file(qemu_img: QemuImg, reader: ImageReader, name: str) -> None:
    qemu_img.create("disk.qcow2")
    (qemu_img.directory / "dangling").symlink_to("nowhere")
    image = reader.read_image(f"{qemu_img.directory}/{name}", "qcow2")
    assert image.is_missing
    assert image.problem == f"no such file: {qemu_img.directory}/{name}"
    assert not image.allocated.is_known


def test_a_circle_of_symbolic_links(tmp_path: Path, reader: ImageReader) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    image = reader.read_image(tmp_path / "a", "qcow2")
    assert image.problem == os.strerror(40)
    assert not image.is_missing


@pytest.mark.parametrize("name", ["nbd://host/export", 'json:{"driver":"qcow2"}', "relative.qcow2", "ssh://h/p"])
def test_what_is_no_local_file_is_not_looked_for(reader: ImageReader, name: str) -> None:
    image = reader.read_image(name, "qcow2")
    assert image.problem == "it is not a local file"
    assert not image.is_missing


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "/dev/zero", "/dev/tty"])
@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
@pytest.mark.timeout(10)
def test_only_files_and_block_devices_are_opened(
    tmp_path: Path, reader: ImageReader, monkeypatch: pytest.MonkeyPatch, kind: str, image_format: str
) -> None:
    path = tmp_path / "disk"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            monkeypatch.chdir(tmp_path)  # the path of a socket must be short
            listener.bind("disk")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(kind)
    assert reader.read_image(path, image_format).problem == "it is neither a regular file nor a block device"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own ones nobody else may."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_file_that_may_not_be_read_still_has_a_size(
    open_directory: Path, reader: ImageReader, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    path = QemuImg(open_directory).create("disk.qcow2")
    path.chmod(0)
    with as_nobody():
        image = reader.read_image(path, "qcow2")
        raw = reader.read_image(path, "raw")
    assert image.problem.startswith("you may not read it. Run SnapTree as")
    assert image.allocated == exact(path.stat().st_blocks * 512, "blocks of the file system")
    assert not image.is_missing
    assert raw.problem == ""


def test_a_directory_that_may_not_be_entered(
    open_directory: Path, reader: ImageReader, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    path = QemuImg(open_directory).create("disk.qcow2")
    open_directory.chmod(0)
    with as_nobody():
        image = reader.read_image(path, "qcow2")
    open_directory.chmod(0o755)
    assert image.problem.startswith("you may not read it")
    assert not image.allocated.is_known
    assert not image.is_missing


def test_two_paths_to_one_image_are_one(qemu_img: QemuImg, reader: ImageReader) -> None:
    path = qemu_img.create("disk.qcow2")
    (qemu_img.directory / "link").symlink_to(path)
    (qemu_img.directory / "other").hardlink_to(path)
    found = [reader.read_image(qemu_img.directory / name, "qcow2") for name in ("disk.qcow2", "link", "other")]
    assert len({image.identity for image in found}) == 1
    assert [image.path for image in found] == [str(qemu_img.directory / n) for n in ("disk.qcow2", "link", "other")]


def test_a_data_file_is_counted(qemu_img: QemuImg, reader: ImageReader) -> None:
    data = qemu_img.directory / "data.raw"
    path = qemu_img.create("meta.qcow2", "4M", "-o", f"data_file={data},data_file_raw=on")
    write(path, MEBIBYTE)
    image = reader.read_image(path, "qcow2")
    assert image.allocated.bytes == (path.stat().st_blocks + data.stat().st_blocks) * 512
    assert image.allocated.bytes > MEBIBYTE
    assert str(data) in image.allocated.how
    data.unlink()
    image = reader.read_image(path, "qcow2")
    assert not image.allocated.is_known
    assert str(data) in image.allocated.how


def test_a_data_file_that_could_be_anywhere_is_not_guessed(qemu_img: QemuImg, reader: ImageReader) -> None:
    path = qemu_img.create("meta.qcow2", "4M", "-o", "data_file=data.raw,data_file_raw=on")
    image = reader.read_image(path, "qcow2")
    assert image.problem == ""
    assert image.allocated.how == "its data lies in data.raw, which is not a path on this computer"


@pytest.fixture
def loop_device(qemu_img: QemuImg) -> Iterator[Path]:
    path = qemu_img.create("disk.qcow2", "1M")
    os.truncate(path, 2 * MEBIBYTE)
    attached = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True)
    if attached.returncode:
        pytest.skip(f"needs a loop device: {attached.stderr.strip()}")
    yield Path(attached.stdout.strip())
    subprocess.run(["losetup", "--detach", attached.stdout.strip()], check=True)


def test_a_block_device_takes_all_of_itself(loop_device: Path, qemu_img: QemuImg, reader: ImageReader) -> None:
    image = reader.read_image(loop_device, "qcow2")
    assert image.problem == ""
    assert image.virtual_size == MEBIBYTE
    assert image.allocated == exact(2 * MEBIBYTE, "block device")
    assert reader.read_image(loop_device, "raw").virtual_size == 2 * MEBIBYTE
    overlay = qemu_img.overlay("top.qcow2", str(loop_device))
    assert [layer.path for layer in reader.read_chain(overlay, "qcow2").images] == [str(overlay), str(loop_device)]


# ---- chains ----


def test_a_chain_down_to_raw(qemu_img: QemuImg, reader: ImageReader) -> None:
    qemu_img("create", "-q", "-f", "raw", "base.raw", "1M")
    (qemu_img.directory / "web").mkdir()
    qemu_img.overlay("web/first.qcow2", "../base.raw", "raw")
    qemu_img.overlay("web/second.qcow2", "first.qcow2")
    top = qemu_img.overlay("top.qcow2", "web/second.qcow2")
    chain = reader.read_chain(top, "qcow2")
    assert chain.problem == ""
    assert [os.path.realpath(image.path) for image in chain.images] == [
        str(qemu_img.directory / name) for name in ("top.qcow2", "web/second.qcow2", "web/first.qcow2", "base.raw")
    ]
    assert [image.format for image in chain.images] == ["qcow2", "qcow2", "qcow2", "raw"]


def test_a_name_is_relative_to_the_path_used_not_to_where_a_link_leads(qemu_img: QemuImg, reader: ImageReader) -> None:
    """As QEMU has it: the same overlay through a link in another directory stands on another base."""
    (qemu_img.directory / "elsewhere").mkdir()
    base = qemu_img.create("elsewhere/base.qcow2", "3M")
    qemu_img.create("base.qcow2")
    qemu_img.overlay("top.qcow2", "base.qcow2")
    link = qemu_img.directory / "elsewhere/top.qcow2"
    link.symlink_to("../top.qcow2")
    chain = reader.read_chain(link, "qcow2")
    assert chain.images[1].path == str(base)
    assert str(base) in qemu_img("info", "--backing-chain", link)


def test_a_missing_layer_is_in_the_chain_and_ends_it(qemu_img: QemuImg, reader: ImageReader) -> None:
    base = qemu_img.create("base.qcow2")
    top = qemu_img.overlay("top.qcow2", "base.qcow2")
    base.unlink()
    chain = reader.read_chain(top, "qcow2")
    assert [image.is_missing for image in chain.images] == [False, True]
    assert chain.problem == f"no such file: {base}"


def test_a_missing_top(reader: ImageReader, tmp_path: Path) -> None:
    chain = reader.read_chain(tmp_path / "gone", "qcow2")
    assert [image.is_missing for image in chain.images] == [True]
    assert chain.problem


@pytest.mark.parametrize("name", ["nbd://127.0.0.1:1/x", 'json:{"driver":"raw","file":{"driver":"null-co"}}'])
def test_layers_on_other_hosts_stay_closed(qemu_img: QemuImg, reader: ImageReader, name: str) -> None:
    qemu_img.create("base.qcow2")
    top = qemu_img.overlay("top.qcow2", "base.qcow2")
    qemu_img("rebase", "-u", "-b", name, "-F", "raw", top)
    chain = reader.read_chain(top, "qcow2")
    assert chain.problem == f"{name}: it is not a local file"
    assert [image.path for image in chain.images] == [str(top), name]


def test_a_format_that_is_not_recorded_ends_the_chain(qemu_img: QemuImg, reader: ImageReader) -> None:
    base = qemu_img.create("base.qcow2")
    top = qemu_img.overlay("top.qcow2", "base.qcow2")
    content = bytearray(top.read_bytes())
    place = content.index(bytes.fromhex("e2792aca"))
    content[place] ^= 0xFF  # an extension of unknown type now
    top.write_bytes(content)
    chain = reader.read_chain(top, "qcow2")
    assert chain.problem == f"{base}: its format is not recorded"
    assert [image.path for image in chain.images] == [str(top), str(base)]


def test_a_chain_that_bites_its_tail(qemu_img: QemuImg, reader: ImageReader) -> None:
    qemu_img.create("a.qcow2")
    qemu_img.overlay("b.qcow2", "a.qcow2")
    (qemu_img.directory / "alias").symlink_to("b.qcow2")
    qemu_img("rebase", "-u", "-b", "alias", "-F", "qcow2", "a.qcow2")
    chain = reader.read_chain(qemu_img.directory / "b.qcow2", "qcow2")
    assert len(chain.images) == 2
    assert "circle" in chain.problem


def test_a_chain_without_end_is_left() -> None:
    def read_image(path: str, recorded_format: str) -> Image:
        return Image(path, recorded_format, exact(1), backing=path + "x", backing_format="qcow2")

    chain = read_chain("/x", "qcow2", read_image)
    assert len(chain.images) == DEEPEST_CHAIN
    assert f"more than {DEEPEST_CHAIN}" in chain.problem


# ---- what is remembered ----


def test_what_did_not_change_is_not_read_again(
    qemu_img: QemuImg, reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu_img.create("disk.qcow2")
    monkeypatch.setattr("snaptree.images.versions._SETTLED_AFTER", -1)
    first = reader.read_image(path, "qcow2")
    with monkeypatch.context() as patched:
        patched.delattr(files, "read_content")
        assert reader.read_image(path, "qcow2") == first
    qemu_img("snapshot", "-c", "new", path)
    assert [entry.name for entry in reader.read_image(path, "qcow2").internal_snapshots] == ["new"]


def test_two_changes_at_one_moment_are_both_seen(qemu_img: QemuImg, reader: ImageReader) -> None:
    """A clock that ticks every few milliseconds gives both the same time of change."""
    path = qemu_img.create("disk.qcow2")
    content = bytearray(path.read_bytes())
    for size in range(MEBIBYTE, MEBIBYTE + 512 * 50, 512):
        with path.open("r+b") as file:
            file.write(content[:24] + size.to_bytes(8, "big"))
        assert reader.read_image(path, "qcow2").virtual_size == size


def test_no_more_is_remembered_than_allowed(qemu_img: QemuImg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snaptree.images.versions._SETTLED_AFTER", -1)
    reader = ImageReader(most_remembered=2)
    paths = [qemu_img.create(f"{name}.qcow2") for name in "abc"]
    for path in paths:
        assert reader.read_image(path, "qcow2").problem == ""
    monkeypatch.delattr(files, "read_content")
    assert reader.read_image(paths[2], "qcow2").problem == ""
    with pytest.raises(NameError):
        reader.read_image(paths[0], "qcow2")
