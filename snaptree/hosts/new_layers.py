"""New layers on what exists: by qemu-img where the directory is ours to write, else as a storage pool's volume."""

from __future__ import annotations

import os
import posixpath
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.errors import explained
from snaptree.hosts.volumes import refresh_pool
from snaptree.model.errors import SnapTreeError
from snaptree.plans.plan import Layer


def can_make_layers(connection: Connection, directory: str) -> bool:
    """Whether `make_layer` can work in a directory of the host."""
    return not why_not_written(connection, directory) or pool_at(connection, directory) is not None


def why_not_written(connection: Connection, directory: str) -> str:
    """Why this program itself can't make images in a directory, as a clause; empty if it can."""
    if not connection.host.is_local:
        return "it is on another host"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"SnapTree may not write in {directory}"
    return "" if shutil.which("qemu-img") is not None else "qemu-img is not installed"


def reserve_file(path: str) -> None:
    """Make an empty file, which only its owner can read. Raises SnapTreeError if there is one, or none can be made."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise SnapTreeError(f"The file {path} cannot be made: {error.strerror}.") from error


def make_layer(connection: Connection, path: str, base: Layer) -> None:
    """Make an empty layer on `base`. Readable by its owner only, as it shows all of what is below (CVE-2025-13193).

    Raises SnapTreeError if there is such a file already, or none can be made; nothing is left behind then.
    """
    directory = posixpath.dirname(path)
    if not why_not_written(connection, directory):
        _make_file(path, base)
        return
    pool = pool_at(connection, directory)
    if pool is None:
        raise SnapTreeError(
            f"No new layer can be made in {directory}.",
            hint="Make that directory a storage pool of the host (virsh pool-create-as NAME dir --target DIRECTORY).",
        )
    with explained(f"making the layer {path}"):
        refresh_pool(pool)
        below = connection.handle.storageVolLookupByPath(base.path)
        pool.createXML(_volume_xml(posixpath.basename(path), below.info()[1], base), 0)


def remove_layer(connection: Connection, path: str) -> None:
    """Take back what `make_layer` just made. Never raises: what can't be removed is an empty layer that stays."""
    try:
        if not why_not_written(connection, posixpath.dirname(path)):
            Path(path).unlink(missing_ok=True)
        else:
            connection.handle.storageVolLookupByPath(path).delete(0)
    except (OSError, libvirt.libvirtError):
        return


def pool_at(connection: Connection, directory: str) -> Any:
    """The running storage pool of a directory; None if there is none."""
    try:
        pool = connection.handle.storagePoolLookupByTargetPath(directory)
        return pool if pool.isActive() else None
    except libvirt.libvirtError:
        return None  # none there, or a connection without storage


def _make_file(path: str, base: Layer) -> None:
    reserve_file(path)
    done = subprocess.run(  # noqa: S603  arguments, without a shell
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", base.format, "--", path],  # noqa: S607  as above
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        Path(path).unlink(missing_ok=True)
        raise SnapTreeError(f"The layer {path} cannot be made.", details=done.stderr.strip())


def _volume_xml(name: str, capacity: int, base: Layer) -> str:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(capacity)
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": "qcow2"})
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0600"
    backing = ET.SubElement(volume, "backingStore")
    ET.SubElement(backing, "path").text = base.path
    ET.SubElement(backing, "format", {"type": base.format})
    return ET.tostring(volume, encoding="unicode")
