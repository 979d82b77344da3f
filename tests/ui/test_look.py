"""Light and dark, readable in both; icons in the theme's colours; what the window remembers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from PySide6.QtCore import QByteArray, QSettings
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from snaptree import resources
from snaptree.ui import icons
from snaptree.ui.settings import HostRequest, SafetySnapshot, Settings, ThemeChoice
from snaptree.ui.theme import DARK, LIGHT, Colours, Theme, colours_of


def luminance(colour: QColor) -> float:
    """Relative luminance, as WCAG defines it."""

    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(colour.redF()) + 0.7152 * linear(colour.greenF()) + 0.0722 * linear(colour.blueF())


def contrast(one: QColor, other: QColor) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read(colours: Colours) -> None:
    grounds = ("base", "window", "selected", "selected_elsewhere", "bar", "layer")
    for ground in grounds:
        assert contrast(colours.text, getattr(colours, ground)) >= 4.5, ground
        assert contrast(colours.dim, getattr(colours, ground)) >= 3.9, ground
    for text, ground in (
        ("text", "warning_ground"),
        ("text", "error_ground"),
        ("text", "info_ground"),
        ("text", "bar_selected"),
        ("error", "error_ground"),
        ("warning", "warning_ground"),
        ("on_accent", "accent"),
        ("error", "base"),
        ("good", "base"),
    ):
        assert contrast(getattr(colours, text), getattr(colours, ground)) >= 4.5, (text, ground)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_lanes_stand_out(colours: Colours) -> None:
    assert len({lane.name() for lane in colours.lanes}) == len(colours.lanes)
    assert all(contrast(lane, colours.base) >= 3 for lane in colours.lanes)
    assert colours.lane(len(colours.lanes)) == colours.lane(0)


def test_the_theme_is_worn_by_the_whole_application(qtbot: QtBot, qapp: QApplication) -> None:
    widget = QWidget()
    qtbot.addWidget(widget)
    widget.show()
    theme = Theme(qapp, ThemeChoice.LIGHT)
    assert colours_of(widget.palette()) is LIGHT
    with qtbot.waitSignal(theme.changed):
        theme.choose(ThemeChoice.DARK)
    assert colours_of(widget.palette()) is DARK
    assert qapp.palette().color(QPalette.ColorRole.Base) == DARK.base
    assert DARK.border.name() in qapp.styleSheet()
    assert "$" not in qapp.styleSheet().split("*/", 1)[1], "every colour was filled in"
    theme.choose(ThemeChoice.SYSTEM)
    theme.deleteLater()


def test_icons_wear_the_colour_asked_for(qtbot: QtBot) -> None:
    for colour in (QColor("#ff0000"), QColor("#00ff00")):
        picture = icons.icon("take", colour).pixmap(32, 32).toImage()
        seen = {
            picture.pixelColor(x, y).name()
            for x in range(picture.width())
            for y in range(picture.height())
            if picture.pixelColor(x, y).alpha() == 255
        }
        assert seen == {colour.name()}


def test_every_icon_that_the_code_names_is_there(qtbot: QtBot) -> None:
    drawn = {path.stem for path in (resources.directory() / "icons").glob("*.svg")}
    source = "\n".join(path.read_text() for path in (Path(resources.__file__).parent / "ui").glob("*.py"))
    for name in drawn - {"snaptree", "layers", "cancel", "lock"}:
        assert f'"{name}"' in source or f"icons/{name}.svg" in source, f"{name}.svg is drawn, but nobody shows it"
    assert not icons.application_icon().isNull()


def test_icons_are_sharp_on_every_screen(qtbot: QtBot) -> None:
    for ratio in (1.0, 1.25, 1.5, 2.0, 3.0):
        picture = icons.pixmap("take", QColor("black"), 16, ratio)
        assert picture.width() == round(16 * ratio)
        assert picture.deviceIndependentSize().width() == pytest.approx(16)


# What is remembered


def test_settings_are_kept(qapp: QApplication) -> None:
    settings = Settings()
    assert settings.theme is ThemeChoice.SYSTEM
    assert settings.safety_snapshot is SafetySnapshot.ALWAYS
    assert settings.hosts == []
    settings.theme = ThemeChoice.DARK
    settings.safety_snapshot = SafetySnapshot.ASK
    settings.hosts = [HostRequest("qemu:///system"), HostRequest("qemu+ssh://ö/system", read_only=True)]
    settings.set_shape("window", QByteArray(b"shape"))
    again = Settings()
    assert again.theme is ThemeChoice.DARK
    assert again.safety_snapshot is SafetySnapshot.ASK
    assert again.hosts == [HostRequest("qemu:///system"), HostRequest("qemu+ssh://ö/system", read_only=True)]
    assert again.shape("window") == QByteArray(b"shape")


def test_damaged_settings_count_as_none(qapp: QApplication) -> None:
    store = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "snaptree", "snaptree")
    store.setValue("theme", "mauve")
    store.setValue("safety_snapshot", [1, 2])
    store.setValue("hosts", '[{"uri": 1}, 7')
    store.setValue("shape/window", "nonsense")
    settings = Settings()
    assert settings.theme is ThemeChoice.SYSTEM
    assert settings.safety_snapshot is SafetySnapshot.ALWAYS
    assert settings.hosts == []
    assert settings.shape("window").isEmpty()


def test_every_colour_has_a_use() -> None:
    ui = Path(resources.__file__).parent / "ui"
    source = "\n".join(path.read_text() for path in ui.glob("*.py"))
    style = resources.path("style.qss").read_text()
    for name in {each.name for each in fields(Colours)} - {"lanes"}:
        assert f"colours.{name}" in source or f"${name}" in style, name
