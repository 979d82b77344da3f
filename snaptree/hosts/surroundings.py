"""What is around the layers of a host's machines: space that is left, layers that nobody refers to, and schedules."""

from __future__ import annotations

import html
import time
from collections.abc import Collection, Hashable, Iterable, Iterator
from pathlib import Path

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.layers import Images
from snaptree.hosts.reading import texts_of
from snaptree.hosts.schedules import read_schedules
from snaptree.hosts.situation import MAXIMUM_FILES_LOOKED_AT, files_in, free_in
from snaptree.model.estate import DomainLayers, Image
from snaptree.plans.check import Space, Stray, Surroundings
from snaptree.plans.policy_file import PolicyFile

_SETTLED_AFTER = 3_600
"""Seconds: a younger file may be in the making."""


def read_surroundings(
    connection: Connection, machines: Collection[DomainLayers], policies: PolicyFile, *, with_strays: bool = True
) -> Surroundings:
    """Look at the directories that these machines write to, and at the host's schedules in the user's file.

    Blocking; `machines` are all of the host.
    """
    written = {str(Path(chain.active).parent) for each in machines for chain in each.chains if chain.active is not None}
    strays = tuple(_strays(connection, machines)) if with_strays and connection.host.is_local else ()
    return Surroundings(tuple(_spaces(connection, sorted(written))), strays, read_schedules(connection, policies))


def _spaces(connection: Connection, directories: Iterable[str]) -> Iterator[Space]:
    """File systems of which the free space is known, each once."""
    together: dict[Hashable, list[str]] = {}
    for directory in directories:
        together.setdefault(_file_system(connection, directory), []).append(directory)
    for same in together.values():
        if (free := free_in(connection, same[0])) is not None:
            yield Space(tuple(same), free)


def _file_system(connection: Connection, directory: str) -> Hashable:
    """What is the same for directories of one file system, as far as we can see."""
    if connection.host.is_local:
        try:
            return Path(directory).stat().st_dev
        except OSError:
            pass  # not ours to look at
    return directory


def _strays(connection: Connection, machines: Collection[DomainLayers]) -> Iterator[Stray]:
    """Layers beside those of machines that no machine's definition and no snapshot so much as mentions.

    Images that stand on nothing are left out: somebody may keep them to make machines of.
    """
    images = [image for each in machines for image in each.images.values()]
    known = {image.path for image in images}
    identities = {image.identity for image in images if image.identity is not None}
    candidates = [
        image
        for directory in sorted({str(Path(path).parent) for path in known})
        for path in files_in(connection, directory)[:MAXIMUM_FILES_LOOKED_AT]
        if path not in known
        and (image := _settled_layer(connection, path)) is not None
        and image.identity not in identities
    ]
    if not candidates:
        return
    try:
        texts = [html.unescape(text) for domain in connection.handle.listAllDomains() for text in texts_of(domain)]
    except libvirt.libvirtError:
        return  # a machine vanished, or can't be asked: nobody knows what it refers to
    for image in candidates:
        # Its name alone: a pool and a volume may name it, too.
        if not any(Path(image.path).name in text for text in texts):
            yield Stray(image.path, image.allocated.bytes or 0)


def _settled_layer(connection: Connection, path: str) -> Image | None:
    """An image that stands on another one, and was not written to of late; None for anything else."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    images = Images(connection)
    if status.st_mtime > time.time() - _SETTLED_AFTER or images.apparent_format(path) != "qcow2":
        return None
    image = images.read_image(path, "qcow2")
    return None if image.problem or image.backing is None else image
