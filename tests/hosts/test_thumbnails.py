"""Pictures of guests' screens: taken with snapshots, kept in the cache, gone with what they show."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snaptree.hosts import screens, thumbnails
from snaptree.hosts.journal import embedded_root
from snaptree.hosts.thumbnails import LARGEST_PICTURE, Thumbnails
from snaptree.plans.intention import Capture, Delete, DropMemory, Rename, Take
from tests.kit.machines import EmbeddedHost, Machine
from tests.ui.values import snapshot

VGA = "<video><model type='vga'/></video>"
PNG = b"\x89PNG\r\n\x1a\n"
PPM = b"P6\n2 1\n255\nabcdef"


@pytest.fixture
def kept(tmp_path: Path) -> Thumbnails:
    return Thumbnails(tmp_path / "thumbnails" / "machine")


def pictures(machine: Machine) -> dict[str, bytes]:
    """The pictures that there are, by snapshot."""
    library = Thumbnails.of(machine.connection.uri, machine.uuid)
    found = {each.name: library.read(each.name, each.created) for each in machine.tree()}
    return {name: picture for name, picture in found.items() if picture}


# On real machines


@pytest.mark.qemu
def test_a_snapshot_has_a_picture_as_long_as_it_is_there(host: EmbeddedHost) -> None:
    machine = host.make_machine(extra_devices=VGA)
    for name, capture in (("one", Capture.DISKS), ("two", Capture.DISKS_AND_MEMORY), ("three", Capture.INTERNAL)):
        machine.change(Take(name, capture=capture))
        assert pictures(machine)[name].startswith(PNG)
        width, height = struct.unpack(">II", pictures(machine)[name][16:24])
        assert (width, height) >= (640, 400)
    one = machine.tree()["one"]
    directory = Thumbnails.of(machine.connection.uri, machine.uuid).path(one.name, one.created).parent
    assert directory.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in directory.iterdir()), "nobody else looks on"
    before = pictures(machine)
    machine.change(DropMemory("two"))
    assert pictures(machine) == before
    machine.change(Rename("two", "second"))
    assert pictures(machine)["second"] == before["two"]
    machine.handle.destroy()
    machine.change(Delete(("three",)))
    assert pictures(machine).keys() == {"one", "second"}
    assert len(list(directory.iterdir())) == 2


@pytest.mark.qemu
def test_without_a_picture_it_is_taken_all_the_same(host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = host.make_machine(extra_devices=VGA)
    broken: tuple[tuple[object, str, object], ...] = (
        (thumbnails, "_write_whole", _no_space),
        (screens, "LARGEST_PICTURE", 100),
        (screens, "_PATIENCE_SECONDS", -1),
        (libvirt.virStream, "recv", _link_lost),
    )
    for number, (where, what, instead) in enumerate(broken):
        with monkeypatch.context() as context:
            context.setattr(where, what, instead)
            machine.change(Take(f"broken-{number}"))
    machine.handle.suspend()
    machine.change(Take("paused"))
    machine.handle.destroy()
    machine.change(Take("off"))
    assert len(machine.tree()) == len(broken) + 2
    assert pictures(machine) == {}
    blind = host.make_machine()
    blind.change(Take("no-video-device"))
    assert pictures(blind) == {}


def _no_space(*_given: Any) -> None:
    raise OSError(28, "No space left on device")


def _link_lost(*_given: Any) -> None:
    raise libvirt.libvirtError("Cannot recv data")


# Without a host


def test_what_came_is_given_back(kept: Thumbnails) -> None:
    large = b"P6\n1000 1000\n255\n" + bytes(3_000_000)
    for picture in (PPM, PNG + b"content", large):
        kept.keep("one", 5, picture)
        assert kept.read("one", 5) == picture
    assert kept.path("one", 5).stat().st_size < 20_000, "what QEMU did not compress is compressed here"
    assert kept.read("one", 6) == b""
    assert kept.read("two", 5) == b""


def test_what_is_no_picture_or_too_large_is_not_kept(kept: Thumbnails) -> None:
    for picture in (b"", b"<html>", b"GIF89a", PPM + bytes(LARGEST_PICTURE)):
        kept.keep("one", 5, picture)
    assert not kept.directory.exists()


def test_a_hostile_file_is_read_in_bounds(kept: Thumbnails, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep("one", 5, PPM)
    path = kept.path("one", 5)
    monkeypatch.setattr(thumbnails, "LARGEST_PICTURE", 1 << 20)
    path.write_bytes(zlib.compress(PPM + bytes(1 << 24), 9))
    assert len(kept.read("one", 5)) == 1 << 20
    for content in (b"", b"x" * 1000, zlib.compress(b"<svg/>"), zlib.compress(PPM)[:10]):
        path.write_bytes(content)
        assert kept.read("one", 5) in (b"", PPM[: len(kept.read("one", 5))])


def test_any_name_has_a_file_of_its_own(kept: Thumbnails) -> None:
    names = ["a", "a/../../b", "..", "x" * 300, "\n", "\udcff", ""]
    for number, name in enumerate(names):
        kept.keep(name, number, PPM + bytes([number]))
    assert [kept.read(name, number)[-1] for number, name in enumerate(names)] == list(range(len(names)))
    assert {path.parent for path in kept.directory.rglob("*")} == {kept.directory}


def test_a_new_one_of_the_same_name_takes_the_place(kept: Thumbnails) -> None:
    kept.keep("one", 5, PPM)
    kept.keep("one", 9, PNG)
    assert (kept.read("one", 5), kept.read("one", 9)) == (b"", PNG)


def test_a_renamed_snapshot_keeps_its_picture(kept: Thumbnails) -> None:
    kept.keep("one", 5, PPM)
    kept.rename("one", "other")
    kept.rename("unknown", "one")
    assert (kept.read("one", 5), kept.read("other", 5)) == (b"", PPM)


def test_pictures_go_with_their_snapshots(kept: Thumbnails) -> None:
    kept.keep_only([])
    every = [replace(snapshot(f"s{number}"), created=number // 2) for number in range(6)]
    for each in every:
        kept.keep(each.name, each.created, PPM)
    foreign = kept.directory / "notes.txt"
    foreign.touch()
    kept.forget(["s0", "unknown"])
    retaken = replace(every[1], created=99)
    kept.keep_only([retaken, *every[2:5]])
    assert [each.name for each in every if kept.read(each.name, each.created)] == ["s2", "s3", "s4"]
    assert foreign.exists()


def test_the_oldest_go_when_there_are_too_many(kept: Thumbnails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "LARGEST_CACHE", 2500)
    other = Thumbnails(kept.directory.parent / "other")
    for number, library in enumerate((kept, other, kept)):
        library.keep(f"s{number}", number, PNG + bytes(992))
        path = library.path(f"s{number}", number)
        os.utime(path, (number, number))
    assert [bool(library.read(f"s{number}", number)) for number, library in enumerate((kept, other, kept))] == [
        False,
        True,
        True,
    ]


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    library = Thumbnails(tmp_path / "file" / "machine")
    library.keep("one", 5, PPM)
    library.forget(["one"])
    library.keep_only([])
    assert library.read("one", 5) == b""


def test_each_host_and_machine_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = {Thumbnails.of(uri, uuid).directory for uri in ("qemu:///system", "qemu:///session") for uuid in "ab"}
    assert len(places) == 4
    assert all(place.is_relative_to(tmp_path / "cache" / "snaptree" / "thumbnails") for place in places)
    uri = "qemu:///embed?root=/demo%20estate"
    assert embedded_root(uri) == Path("/demo estate")
    assert Thumbnails.of(uri, "a").directory.is_relative_to("/demo estate/cache"), "it goes with the estate"
