"""Pictures of guests' screens in the window, whatever the guest let QEMU draw."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QImage
from pytestqt.qtbot import QtBot

from snaptree.hosts.thumbnails import Thumbnails
from snaptree.plans.intention import Take
from snaptree.ui.actions import Actions
from snaptree.ui.availability import Selection
from snaptree.ui.inspector import Inspector
from snaptree.ui.snapshot_model import Column
from snaptree.ui.theme import Theme
from snaptree.ui.thumbnails import LARGEST, Picture, ThumbnailLibrary, decode, png, with_picture
from tests.hosts.test_thumbnails import VGA
from tests.kit.machines import EmbeddedHost
from tests.ui.conftest import Driver
from tests.ui.values import machine, snapshot

QUIET = pytest.mark.qt_log_ignore("libpng", "allocation limit", "Unable to read")
"""What Qt says of pictures that it refuses."""


def picture(width: int = 64, height: int = 40, colour: str = "navy") -> QImage:
    image = QImage(QSize(width, height), QImage.Format.Format_RGB32)
    image.fill(QColor(colour))
    return image


def ppm(width: int, height: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height) + bytes(3 * width * height)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(size: int) -> bytes:
    """Says that it is so wide and high, in few bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# Decoding


def test_both_of_qemus_formats_are_understood() -> None:
    assert decode(png(picture(64, 40))).size() == QSize(64, 40)
    assert decode(ppm(640, 480)).size() == QSize(640, 480)
    assert decode(ppm(3840, 2160)).size() == QSize(3840, 2160), "a large screen"


@QUIET
@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"P6\n60000 60000\n255\n",
        b"P6\n-1 99999999999999999999\n255\n",
        b"P6\n2 2\n70000\n",
        b"P3\n2 2\n255\n1 2 3",
        huge_png(60_000),
        huge_png(2**31 - 1),
    ],
    ids=lambda hostile: str(hostile[:16]),
)
def test_a_hostile_picture_is_none(hostile: bytes) -> None:
    assert decode(hostile).isNull()


@QUIET
@given(st.binary(max_size=300), st.integers(0, 200))
def test_damaged_pictures_do_no_harm(damage: bytes, at: int) -> None:
    for whole in (png(picture(8, 8)), ppm(8, 8)):
        decode(whole[:at] + damage + whole[at + len(damage) :])
        decode(whole[:at] + damage)


# Showing


@pytest.fixture
def library(qtbot: QtBot) -> ThumbnailLibrary:
    return ThumbnailLibrary()


def test_without_a_picture_there_is_no_room_for_one(qtbot: QtBot, light: Theme) -> None:
    shown = Picture()
    qtbot.addWidget(shown)
    assert shown.isHidden()
    assert shown.sizeHint() == QSize(0, 0)
    shown.show_image(picture(1600, 900), "a screen")
    assert not shown.isHidden()
    assert shown.heightForWidth(320) == 180
    assert shown.heightForWidth(10_000) <= 240, "it leaves room for everything else"
    shown.show_image(picture(40, 30), "a small one")
    assert shown.heightForWidth(320) == 30, "it is not blown up"
    shown.show_image(None)
    assert shown.isHidden()


def test_a_picture_is_read_once_and_only_its_own_is_shown(qtbot: QtBot, light: Theme, tmp_path: Path) -> None:
    shown = machine([snapshot("one", days=2), snapshot("two", "one"), snapshot("none", "two")])
    assert shown.tree is not None
    kept = Thumbnails.of(*shown.id)
    kept.keep("one", shown.tree["one"].created, ppm(1920, 1080))
    kept.keep("two", shown.tree["two"].created, png(picture(64, 40)))
    library = ThumbnailLibrary()
    inspector = Inspector(Actions(Picture()), None, library)
    qtbot.addWidget(inspector)
    try:
        with qtbot.waitSignal(library.arrived):
            inspector.show_selection(Selection(shown, ("one",)))
            assert inspector.picture.isHidden(), "nothing waits for it"
        assert inspector.picture.image is not None
        assert inspector.picture.image.size() == QSize(640, 360)
        assert kept.read("one", shown.tree["one"].created) == png(inspector.picture.image), "it is kept small"
        with qtbot.waitSignal(library.arrived):
            inspector.show_selection(Selection(shown, ("two",)))
            assert inspector.picture.isHidden(), "never another one's"
        assert inspector.picture.image.size() == QSize(64, 40)
        assert "“two”" in inspector.picture.toolTip()
        for other in (("none",), ("one", "two"), ()):
            inspector.show_selection(Selection(shown, other))
            assert inspector.picture.isHidden()
        inspector.show_selection(Selection(shown, ("one",)))
        assert inspector.picture.image.width() == LARGEST.width()
    finally:
        library.close()


def test_a_tooltip_has_its_picture_below_the_text(qtbot: QtBot) -> None:
    assert with_picture("<div>text</div>", None) == "<div>text</div>"
    text = with_picture("<div>text</div>", picture(1280, 800))
    assert text.startswith('<div>text</div><p><img src="data:image/png;base64,')


# On real machines


@pytest.mark.qemu
def test_the_screen_of_a_real_guest_stays_with_its_snapshot(
    open_window: Callable[..., Driver], host: EmbeddedHost
) -> None:
    made = host.make_machine(extra_devices=VGA)
    made.change(Take("one"))
    made.change(Take("two"))
    kept = Thumbnails.of(host.uri, made.uuid)
    tree = made.tree()
    for _ in range(2):  # the second window knows nothing of the first
        driver = open_window(host.uri)
        driver.show_machine(host.uri, made.uuid)
        assert driver.window.inspector.picture.isHidden()
        driver.view.select(["one"])
        driver.until(driver.window.inspector.picture.isVisible)
        image = driver.window.inspector.picture.image
        assert image is not None
        assert len({image.pixel(x, y) for x in range(0, image.width(), 4) for y in range(image.height())}) > 1
    row = driver.view.snapshot_model.row_of(("snapshot", "one"))
    assert row is not None
    index = driver.view.snapshot_model.index(row, Column.TREE)
    assert "data:image/png" in str(index.data(Qt.ItemDataRole.ToolTipRole))
    assert kept.read("two", tree["two"].created)
    made.handle.snapshotLookupByName("two").delete()  # as another administrator does
    driver.until(lambda: not kept.read("two", tree["two"].created))
    assert kept.read("one", tree["one"].created)
