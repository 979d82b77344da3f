"""Pictures of guests' screens beside their snapshots: read and decoded on a thread of their own."""

from __future__ import annotations

import base64
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QObject, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import QImage, QImageReader, QImageWriter, QPainter, QPalette
from PySide6.QtWidgets import QSizePolicy, QWidget

from snaptree.ui.text import tooltip

if TYPE_CHECKING:
    from PySide6.QtGui import QPaintEvent

    from snaptree.jobs.worker import ShouldStop
    from snaptree.model.errors import SnapTreeError
    from snaptree.model.estate import Snapshot
    from snaptree.ui.machine import MachineId

LARGEST = QSize(640, 480)
"""Pixels: what is kept of a picture, so that it is sharp in the inspector at twice the usual size."""
IN_TOOLTIP = QSize(320, 200)
_DECODED_MIB: Final = 64
"""A picture with more pixels than that holds, four bytes each, is not decoded: it is the guest who says how many."""
_REMEMBERED: Final = 64
_CLOSES_WITHIN_SECONDS: Final = 5.0
_HIGHEST: Final = 210
"""Pixels of the inspector's height for a picture."""


class _Key(NamedTuple):
    machine: MachineId
    name: str
    created: int


class ThumbnailLibrary(QObject):
    """The pictures of snapshots. Asking never waits: what is not known yet is read, and `arrived` tells of it."""

    arrived = Signal(object, str)
    """MachineId and name of a snapshot whose picture is known now."""

    def __init__(self, parent: QObject | None = None) -> None:
        from snaptree.jobs.postman import Postman  # the first paint does not wait for what works in the background
        from snaptree.jobs.worker import Worker

        super().__init__(parent)
        self._known: OrderedDict[_Key, QImage] = OrderedDict()
        self._asked: set[_Key] = set()
        self._is_closed = False
        self._postman = Postman()
        self._postman.posted.connect(self._run_posted, Qt.ConnectionType.QueuedConnection)
        self._worker = Worker("thumbnails", self._postman.post)

    def picture(self, machine: MachineId, snapshot: Snapshot) -> QImage | None:
        """The picture of a snapshot, if it has one and that was read already."""
        key = _Key(machine, snapshot.name, snapshot.created)
        if (image := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return None if image.isNull() else image
        if key not in self._asked and not self._is_closed:
            from snaptree.jobs.worker import Priority

            self._asked.add(key)
            self._worker.submit(
                partial(_load, key),
                on_done=partial(self._read, key),
                on_failed=partial(self._not_read, key),
                priority=Priority.ON_SCREEN,
            )
        return None

    def close(self) -> None:
        """Read no more, and wait for the thread to end, which takes no longer than decoding one picture."""
        self._is_closed = True
        self._worker.close()
        self._worker.join(_CLOSES_WITHIN_SECONDS)

    def _run_posted(self, call: object) -> None:
        assert callable(call)
        if not self._is_closed:
            call()

    def _read(self, key: _Key, image: QImage) -> None:
        self._asked.discard(key)
        self._known[key] = image
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if not image.isNull():
            self.arrived.emit(key.machine, key.name)

    def _not_read(self, key: _Key, _error: SnapTreeError) -> None:
        self._read(key, QImage())


def _load(key: _Key, _should_stop: ShouldStop) -> QImage:
    """On the thumbnails' thread. What is kept in full is replaced by what is shown of it."""
    from snaptree.hosts.thumbnails import Thumbnails

    thumbnails = Thumbnails.of(*key.machine)
    image = decode(thumbnails.read(key.name, key.created))
    if image.width() > LARGEST.width() or image.height() > LARGEST.height():
        image = image.scaled(LARGEST, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
        thumbnails.replace(key.name, key.created, png(image))
    return image


def decode(picture: bytes) -> QImage:
    """What begins like a PNG or PPM; a null image if there is nothing, or it is damaged or too large."""
    QImageReader.setAllocationLimit(_DECODED_MIB)
    return QImage.fromData(picture) if picture else QImage()


def png(image: QImage) -> bytes:
    """An image as the content of a file."""
    content = QByteArray()
    buffer = QBuffer(content)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    QImageWriter(buffer, QByteArray(b"PNG")).write(image)
    buffer.close()
    return bytes(content.data())


def with_picture(text: str, image: QImage | None) -> str:
    """A tooltip as `ui.text` makes it, with a picture below its text."""
    if image is None:
        return text
    small = image
    if image.width() > IN_TOOLTIP.width() or image.height() > IN_TOOLTIP.height():
        small = image.scaled(IN_TOOLTIP, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
    return f'{text}<p><img src="data:image/png;base64,{base64.b64encode(png(small)).decode()}"></p>'


class Picture(QWidget):
    """A picture as wide as there is room for, at most as large as it is; without one it takes no room."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._image: QImage | None = None
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.hide()

    @property
    def image(self) -> QImage | None:
        """What is shown."""
        return self._image

    def show_image(self, image: QImage | None, says: str = "") -> None:
        """Show a picture, with what it is of for tooltip and screen reader; or nothing."""
        if image is not self._image:
            self._image = image
            self.updateGeometry()
            self.update()
        self.setAccessibleName(says)
        self.setToolTip(tooltip(says))
        self.setVisible(image is not None)

    def sizeHint(self) -> QSize:
        """What the picture needs, within reason."""
        return self._size_within(10_000)

    def minimumSizeHint(self) -> QSize:
        """It can be made as small as one likes."""
        return QSize(1, 1)

    def heightForWidth(self, width: int) -> int:
        """So that nothing of the picture is distorted or cut."""
        return self._size_within(width).height()

    def _size_within(self, width: int) -> QSize:
        if self._image is None:
            return QSize(0, 0)
        size = self._image.size()
        return size.scaled(min(width, size.width()), min(_HIGHEST, size.height()), Qt.AspectRatioMode.KeepAspectRatio)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it at the left, with a line around it: a dark screen has no edge of its own in a dark window."""
        if self._image is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        place = QRect(QPoint(0, 0), self._size_within(self.width()))
        painter.drawImage(place, self._image)
        painter.setPen(self.palette().color(QPalette.ColorRole.Mid))
        painter.drawRect(place.adjusted(0, 0, -1, -1))
        painter.end()
