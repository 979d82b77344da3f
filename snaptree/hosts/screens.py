"""What a guest's screen shows: a picture of it for the snapshot that is taken."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.snapshot_xml import read_snapshot
from snaptree.hosts.thumbnails import LARGEST_PICTURE, Thumbnails

_PIECE: Final = 256 * 1024
_PATIENCE_SECONDS: Final = 3.0
"""A snapshot does not wait for longer than that until its picture has come over a slow link."""


def picture_of(connection: Connection, domain: Any) -> bytes:
    """The screen of a running guest, in the format that QEMU chose; empty if there is none to be had.

    That is so for a machine without a video device, and one that is paused or off. Never raises: whatever is wrong
    with the host, the snapshot itself will find out.
    """
    stream = None
    try:
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return b""
        stream = connection.handle.newStream(0)
        domain.screenshot(stream, 0, 0)
        picture = _received(stream)
        stream.finish()
    except (libvirt.libvirtError, _TooMuchError):
        _abort(stream)
        return b""
    return picture


def keep_picture(connection: Connection, domain: Any, name: str, picture: bytes) -> None:
    """Keep the picture of a snapshot that was taken; the same holds if there is none. Never raises."""
    if not picture:
        return
    try:
        snapshot = read_snapshot(name, domain.snapshotLookupByName(name).getXMLDesc())
    except libvirt.libvirtError:
        return
    Thumbnails.of(connection.uri, domain.UUIDString()).keep(name, snapshot.created, picture)


class _TooMuchError(Exception):
    """A picture is too large, or takes too long."""


def _received(stream: Any) -> bytes:
    began = time.monotonic()
    picture = bytearray()
    while piece := stream.recv(_PIECE):
        picture += piece
        if len(picture) > LARGEST_PICTURE or time.monotonic() - began > _PATIENCE_SECONDS:
            raise _TooMuchError
    return bytes(picture)


def _abort(stream: Any) -> None:
    if stream is not None:
        with suppress(libvirt.libvirtError):  # it may be broken already
            stream.abort()
