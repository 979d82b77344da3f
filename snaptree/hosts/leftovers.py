"""Removing files that a plan leaves behind, after proving once more that nothing on the host refers to them."""

from __future__ import annotations

import html
import stat
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse
from snaptree.hosts.errors import explained
from snaptree.hosts.helper_machine import is_helper
from snaptree.hosts.image_locks import is_open_in_qemu
from snaptree.hosts.layers import Images, live_chains
from snaptree.hosts.situation import files_in, named_images, reach
from snaptree.hosts.snapshot_xml import stands_on
from snaptree.hosts.volumes import VolumeImages
from snaptree.model.errors import ChangedMeanwhileError, SnapTreeError
from snaptree.plans.plan import RemoveLeftover


def remove_leftover(
    connection: Connection, domain: Any, step: RemoveLeftover, *, deleted_later: Collection[str] = ()
) -> None:
    """Remove a file, if it is one and nobody needs it; no harm if it is gone already.

    Snapshots in `deleted_later` may still name it. Raises ChangedMeanwhileError if anything else does, SnapTreeError
    if that can't be found out, or the file not be removed.
    """
    if connection.host.is_local and not _is_file_here(step.path):
        return
    prove_unneeded(connection, domain, step.path, except_for=deleted_later)
    _remove_file(connection, step)


def remove_with_machine(connection: Connection, domain: Any, paths: Collection[str], why: str) -> None:
    """Remove files that go with their machine, which may still name them; no harm where they are gone already.

    Raises as `remove_leftover`: ChangedMeanwhileError, before anything is removed, if any other machine or file
    needs one.
    """
    images = Images(connection)
    there = [path for path in paths if not connection.host.is_local or _is_file_here(path)]
    for path in there:
        _prove_unnamed_by_all(images, domain, path, go_too=there, machine_goes=True)
    for path in there:
        _remove_file(connection, RemoveLeftover(path, why))


def _remove_file(connection: Connection, step: RemoveLeftover) -> None:
    if connection.host.is_local:
        try:
            if is_open_in_qemu(step.path):
                raise ChangedMeanwhileError(f"a QEMU has {step.path} open")
            Path(step.path).unlink()
        except FileNotFoundError:
            return
        except PermissionError:
            pass  # the daemon may
        except OSError as error:
            raise _not_removed(step, f"cannot be removed: {error.strerror}", "by hand") from error
        else:
            return
    _remove_volume(connection, step)


def _is_file_here(path: str) -> bool:
    """Whether there is a regular file. Raises SnapTreeError for anything else: that is never a layer left behind."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not ours to look at: libvirt may know it as a volume
    if not stat.S_ISREG(mode):
        raise SnapTreeError(
            f"{path} was not removed: it is no regular file.", hint="Look at what it is, and remove it by hand."
        )
    return True


def _not_removed(step: RemoveLeftover, problem: str, how: str, details: str = "") -> SnapTreeError:
    return SnapTreeError(
        f"{step.path} was left behind and {problem}.",
        hint=f"Nothing refers to it any more ({step.why}): it can be removed {how}.",
        details=details,
    )


def _remove_volume(connection: Connection, step: RemoveLeftover) -> None:
    try:
        volume = VolumeImages(connection).find(step.path).volume
        if volume.info()[0] != libvirt.VIR_STORAGE_VOL_FILE:
            raise _not_removed(step, "is no regular file", "on the host, if it has to be")
        volume.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL and not _in_a_pool(connection, step.path):
            raise _not_removed(
                step, "cannot be removed from here", "on the host", str(error.get_error_message())
            ) from error
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise _not_removed(
                step, "cannot be removed from here", "on the host", str(error.get_error_message())
            ) from error


def _in_a_pool(connection: Connection, path: str) -> bool:
    """Whether a directory is a storage pool's: then a file that libvirt does not find there is gone."""
    try:
        connection.handle.storagePoolLookupByTargetPath(str(Path(path).parent))
    except libvirt.libvirtError:
        return False
    return True


def prove_unneeded(connection: Connection, domain: Any, path: str, *, except_for: Collection[str] = ()) -> None:
    """Look whether anything on the host needs a file, but for these snapshots of the machine.

    Raises ChangedMeanwhileError if something does, SnapTreeError if that can't be found out.
    """
    images = Images(connection)
    removed = _Names(images, [path])
    for chain in live_chains(connection, domain, images):
        if removed.are_among(chain.layers):
            raise ChangedMeanwhileError(f"disk {chain.target} stands on {path}")
    _prove_unnamed_by_all(images, domain, path, except_for=except_for)


def _prove_unnamed_by_all(
    images: Images,
    domain: Any,
    path: str,
    *,
    except_for: Collection[str] = (),
    go_too: Collection[str] = (),
    machine_goes: bool = False,
) -> None:
    """Nobody names the file or stands on it, but for what goes with it. Raises ChangedMeanwhileError."""
    connection = images.connection
    removed, gone = _Names(images, [path]), _Names(images, [path, *go_too])
    with explained("looking who else needs a file"):
        for other in connection.handle.listAllDomains():
            if is_helper(other):
                continue
            is_own = other.UUIDString() == domain.UUIDString()
            if is_own and machine_goes:
                continue
            _prove_unnamed(images, other, removed, path, except_for if is_own else (), is_other=not is_own)
    for neighbour in files_in(connection, str(Path(path).parent)):
        if images.apparent_format(neighbour) != "qcow2" or gone.are_among([neighbour]):
            continue
        backing = images.read_image(neighbour, "qcow2").backing
        if backing and removed.are_among([backing]):
            raise ChangedMeanwhileError(f"{neighbour} stands on {path}")


def _prove_unnamed(
    images: Images, domain: Any, removed: _Names, path: str, except_for: Collection[str], *, is_other: bool
) -> None:
    """Neither a machine nor a snapshot of it names the file, nor stands on it. Raises libvirtError."""
    try:
        name = str(domain.name())
        texts = {f"the machine {name}": domain.XMLDesc()}
        if domain.isPersistent():
            texts[f"the definition of {name}"] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        for snapshot in domain.listAllSnapshots():
            if snapshot.getName() not in except_for:
                text = snapshot.getXMLDesc()
                texts[f"the snapshot {snapshot.getName()} of {name}"] = text if is_other else stands_on(text)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT):
            return  # gone since it was listed
        raise
    for what, text in texts.items():
        # Reading a text takes far longer than searching it, and there may be thousands.
        if path in html.unescape(text) and path in _words(parse(text)):
            raise ChangedMeanwhileError(f"{what} refers to {path}")
    reached, _ = reach(images, set(named_images(texts.values())))
    if removed.are_among(reached):
        raise ChangedMeanwhileError(f"the machine {name} stands on {path}")


def _words(element: ET.Element) -> set[str]:
    """All that a document says in attributes and texts."""
    words = {(each.text or "").strip() for each in element.iter()}
    return words.union(*(each.attrib.values() for each in element.iter()))


class _Names:
    """Paths that lead to the same files."""

    def __init__(self, images: Images, paths: Iterable[str]) -> None:
        self._images = images
        self._keys = {self._key(path) for path in paths}

    def are_among(self, paths: Iterable[str]) -> bool:
        """Whether one of the paths leads to one of these files."""
        return any(self._key(path) in self._keys for path in paths)

    def _key(self, path: str) -> object:
        return self._images.read_image(path, "raw").identity or path
