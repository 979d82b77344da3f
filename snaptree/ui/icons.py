"""The program's own icons: plain SVG files, coloured like the text of the theme in use."""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from snaptree import resources

SIZE = 16
"""Side of an icon in toolbars, menus and lists, in device-independent pixels."""

_RENDERED_SIZES = (16, 20, 24, 32, 48)
"""Real pixels: 100, 125, 150, 200 and 300 %."""


def icon(name: str, colour: QColor) -> QIcon:
    """One icon in one colour; kept, as drawing it takes longer than finding it."""
    return _icon(name, colour.rgba())


def pixmap(name: str, colour: QColor, side: int, ratio: float) -> QPixmap:
    """One icon as a picture of `side` device-independent pixels for a screen with that pixel ratio."""
    drawn = _draw(name, colour.rgba(), round(side * ratio))
    drawn.setDevicePixelRatio(ratio)
    return drawn


def application_icon() -> QIcon:
    """SnapTree's own sign, in its own colours."""
    return QIcon(str(resources.path("icons/snaptree.svg")))


def forget_all() -> None:
    """Drop every drawn icon: the theme has changed."""
    _icon.cache_clear()


@cache
def _icon(name: str, rgba: int) -> QIcon:
    made = QIcon()
    for side in _RENDERED_SIZES:
        made.addPixmap(_draw(name, rgba, side))
    return made


@cache
def _drawing(name: str) -> bytes:
    return resources.path(f"icons/{name}.svg").read_bytes()


def _draw(name: str, rgba: int, side: int) -> QPixmap:
    """Draw the file with its `currentColor` replaced, in real pixels."""
    colour = QColor.fromRgba(rgba).name().encode()
    renderer = QSvgRenderer(QByteArray(_drawing(name).replace(b"currentColor", colour)))
    drawn = QPixmap(side, side)
    drawn.fill(Qt.GlobalColor.transparent)
    painter = QPainter(drawn)
    renderer.render(painter, QRectF(0, 0, side, side))
    painter.end()
    return drawn
