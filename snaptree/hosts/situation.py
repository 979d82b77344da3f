"""Reading all that a planner may know about one machine, with everything else on the host that touches its images."""

from __future__ import annotations

import html
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, read_definition
from snaptree.hosts.errors import explained
from snaptree.hosts.helper_machine import is_helper
from snaptree.hosts.journal import this_user
from snaptree.hosts.layers import Images, layers_of
from snaptree.hosts.look_xml import shared_devices
from snaptree.hosts.new_layers import can_make_layers, pool_at, why_not_written
from snaptree.hosts.reading import read_domain, read_tree, texts_of
from snaptree.hosts.settings import LazyMapping, changes, recorded_in, recorded_now
from snaptree.hosts.snapshot_xml import recorded_disks
from snaptree.images.files import read_chain
from snaptree.model.estate import DomainLayers, Image
from snaptree.model.merging import Elsewhere
from snaptree.model.settings import layers_of_one_disk
from snaptree.plans.situation import Disk, Situation, elsewhere

# Every attribute by which libvirt's XML can name an image, in machines, snapshots and save files alike.
_PATHS = re.compile(r"""<(?:source|mirror)\b[^>]*?\s(?:file|dev)=(?:'([^']*)'|"([^"]*)")""")

MAXIMUM_FILES_LOOKED_AT = 5_000
"""In each directory, when looking for overlays that no machine mentions."""


def read_situation(connection: Connection, uuid: str, places: Iterable[str] = ()) -> Situation:
    """Read a consistent picture for planning: blocking, and as long as the host has snapshots to look through.

    `places` are directories to look at beside those of the machine's images.
    Raises VanishedError if the machine is gone, SnapTreeError if the host can't be read.
    """
    handle = connection.domain(uuid)
    with explained("reading the virtual machine"):
        text = handle.XMLDesc()
    definition = read_definition(parse(text))
    domain = read_domain(connection, uuid)
    texts: dict[str, str] = {}
    tree = read_tree(connection, uuid, texts=texts)
    images = Images(connection)
    layers = layers_of(connection, handle, tree, images)
    ours = _own_images(layers, definition.disks)
    dependants, unreadable = _dependants(connection, uuid, images, ours)
    directories = sorted({str(Path(path).parent) for path in ours})
    now, same_disk = recorded_now(handle, text), layers_of_one_disk(tree, layers)
    existing = {directory: files_in(connection, directory) for directory in directories}
    there = {place: is_there for place in places if (is_there := _is_there(connection, place)) is not None}
    others = {str(Path(path).parent) for path in layers.memory_files} | {place for place in there if there[place]}
    others -= existing.keys()
    return Situation(
        host=connection.host,
        domain=domain,
        tree=tree,
        layers=layers,
        disks=definition.disks,
        dependants=dependants,
        unreadable_domains=unreadable,
        overlays_on=_overlays(images, layers, existing.values()),
        block_jobs=_block_jobs(handle, definition.disks) if domain.state.is_active else (),
        checkpoints=_checkpoints(handle),
        has_pflash=definition.has_pflash,
        nvram_format=definition.nvram_format,
        has_agent=definition.has_agent,
        recorded_disks=MappingProxyType({name: recorded_disks(xml) for name, xml in texts.items()}),
        settings=LazyMapping(texts, lambda xml: changes(now, recorded_in(xml), same_disk)),
        existing_files=frozenset(
            itertools.chain(*existing.values(), *(files_in(connection, directory) for directory in others))
        ),
        missing_files=frozenset(path for path in layers.memory_files if images.is_missing(path)),
        takes_new_layers=frozenset(each for each in directories if can_make_layers(connection, each)),
        why_not_copied=_why_not_copied(connection, layers),
        shared_devices=MappingProxyType({name: found for name, xml in texts.items() if (found := shared_devices(xml))}),
        nvram=definition.nvram,
        copies_nvram=definition.nvram is not None and not _why_not_read(connection, definition.nvram),
        machine_names=_machine_names(connection),
        free_bytes=MappingProxyType(
            {
                directory: free
                for directory in (*directories, *others)
                if (free := free_in(connection, directory)) is not None
            }
        ),
        places=MappingProxyType(there),
        memory_bytes=definition.memory,
        user=this_user(),
        now=int(time.time()),
    )


def read_to_describe(connection: Connection, uuid: str) -> Situation:
    """As `read_situation`, but no more than it takes to change what is said of snapshots: no other machine, no image.

    So it is quick on a large host, and when storage hangs.
    """
    handle = connection.domain(uuid)
    with explained("reading the virtual machine"):
        definition = read_definition(parse(handle.XMLDesc()))
    domain = read_domain(connection, uuid)
    return Situation(
        host=connection.host,
        domain=domain,
        tree=read_tree(connection, uuid),
        layers=DomainLayers(),
        disks=definition.disks,
        block_jobs=_block_jobs(handle, definition.disks) if domain.state.is_active else (),
        memory_bytes=definition.memory,
        user=this_user(),
        now=int(time.time()),
    )


def read_elsewhere(connection: Connection, uuid: str, layers: DomainLayers) -> Elsewhere:
    """Which images of a machine others read. Looks through all machines of the host, if there is an image to look for.

    Raises SnapTreeError if the host can't be read.
    """
    if not layers.images:
        return Elsewhere()
    dependants, unreadable = _dependants(connection, uuid, Images(connection), _own_images(layers, ()))
    return elsewhere(layers, dependants, unreadable)


def _own_images(layers: DomainLayers, disks: Iterable[Disk]) -> frozenset[str]:
    live = {path for chain in layers.chains for path in chain.layers}
    return frozenset(live | set(layers.images) | {disk.path for disk in disks if disk.path})


def _dependants(
    connection: Connection, uuid: str, images: Images, ours: frozenset[str]
) -> tuple[Mapping[str, frozenset[str]], tuple[str, ...]]:
    """Which other machines read which of our images: named in them or their snapshots, or below what is named there.

    A machine whose chain can't be followed may depend on anything, so it is listed as unreadable.
    """
    users: dict[str, set[str]] = {}
    unreadable: list[str] = []
    with explained("looking for other machines that use these images"):
        others = [handle for handle in connection.handle.listAllDomains() if handle.UUIDString() != uuid]
    for other in others:
        try:
            name = str(other.name())
            if is_helper(other):
                continue  # it has open what the machine that it works for names
            named = set(named_images(texts_of(other)))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                continue  # gone since it was listed
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
                unreadable.append(name)  # busy for long, as while its memory is being saved
                continue
            raise
        reached, problem = reach(images, named)
        if problem:
            unreadable.append(name)
        for path in reached & ours:
            users.setdefault(path, set()).add(name)
    return MappingProxyType({path: frozenset(names) for path, names in users.items()}), tuple(unreadable)


def named_images(texts: Iterable[str]) -> Iterator[str]:
    """Every image that libvirt's XML names."""
    for text in texts:
        for single, double in _PATHS.findall(text):
            yield html.unescape(single or double)


def reach(images: Images, named: set[str]) -> tuple[set[str], bool]:
    """All images that these stand on, and whether any chain could not be followed to its end."""
    reached: set[str] = set()
    problem = False
    for path in named:
        if path in reached:
            continue
        # An image in another machine is looked at as qcow2 if it says so: a wrong guess can only find a
        # dependence that is not there, and nothing is opened for the guest on the strength of it.
        chain = read_chain(path, images.apparent_format(path), images.read_image)
        reached.update(image.path for image in chain.images)
        problem = problem or (bool(chain.problem) and not _is_deleted(chain.images[-1]))
    return reached, problem


def _is_deleted(image: Image) -> bool:
    """Whether an image is gone for good, so that nothing stands on anything through it.

    Where its directory is missing or empty as well, it may be on storage that is not mounted, and come back.
    """
    try:
        return image.is_missing and any(Path(image.path).parent.iterdir())
    except OSError:
        return False


def _overlays(images: Images, layers: DomainLayers, files: Iterable[Iterable[str]]) -> Mapping[str, frozenset[str]]:
    """Who stands directly on whom, among the images of this machine and every qcow2 file beside them."""
    on: dict[str, set[str]] = {}
    for image in layers.images.values():
        if image.backing:
            on.setdefault(image.backing, set()).add(image.path)
    for paths in files:
        for path in list(paths)[:MAXIMUM_FILES_LOOKED_AT]:
            if path in layers.images or images.apparent_format(path) != "qcow2":
                continue
            backing = images.read_image(path, "qcow2").backing
            if backing:
                on.setdefault(backing, set()).add(path)
    return MappingProxyType({path: frozenset(overlays) for path, overlays in on.items()})


def _block_jobs(handle: Any, disks: Iterable[Disk]) -> tuple[str, ...]:
    running = []
    for disk in disks:
        if disk.path is None:
            continue
        try:
            if handle.blockJobInfo(disk.target):
                running.append(disk.target)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT):
                raise
    return tuple(running)


def _checkpoints(handle: Any) -> tuple[str, ...]:
    try:
        return tuple(sorted(checkpoint.getName() for checkpoint in handle.listAllCheckpoints()))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return ()
        raise


def files_in(connection: Connection, directory: str) -> tuple[str, ...]:
    """Files in a directory of the host, as far as we may look: this computer's, or a storage pool's volumes."""
    if connection.host.is_local:
        try:
            return tuple(sorted(str(path) for path in Path(directory).iterdir()))
        except OSError:
            pass  # not ours to read: libvirt may know it as a pool
    pool = pool_at(connection, directory)
    try:
        return () if pool is None else tuple(sorted(volume.path() for volume in pool.listAllVolumes()))
    except libvirt.libvirtError:
        return ()  # it can't be listed


def _is_there(connection: Connection, directory: str) -> bool | None:
    """Whether the host has a directory; None if nobody can say from here."""
    if connection.host.is_local:
        try:
            return stat.S_ISDIR(Path(directory).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass  # in a directory that is not ours to look into
    return True if pool_at(connection, directory) is not None else None


def _why_not_copied(connection: Connection, layers: DomainLayers) -> Mapping[str, str]:
    inside = [path for path, image in layers.images.items() if image.internal_snapshots]
    return MappingProxyType({path: why for path in inside if (why := _why_not_read(connection, path))})


def _why_not_read(connection: Connection, path: str) -> str:
    """Why this program can't read a file and write beside it, as a clause; empty if it can."""
    return why_not_written(connection, str(Path(path).parent)) or (
        "" if os.access(path, os.R_OK) else "SnapTree may not read it"
    )


def _machine_names(connection: Connection) -> frozenset[str]:
    with explained("listing the virtual machines"):
        return frozenset(str(handle.name()) for handle in connection.handle.listAllDomains())


def free_in(connection: Connection, directory: str) -> int | None:
    """Bytes free for a directory of the host; None where nobody can say."""
    if connection.host.is_local:
        try:
            return shutil.disk_usage(directory).free
        except OSError:
            pass  # not ours to look at
    pool = pool_at(connection, directory)
    try:
        return None if pool is None else int(pool.info()[3])
    except libvirt.libvirtError:
        return None
