"""The layers that a machine's disks and snapshots stand on, read from where their images are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, read_definition
from snaptree.hosts.errors import explained
from snaptree.hosts.far_images import FarImages
from snaptree.hosts.look_xml import read_mark
from snaptree.hosts.reading import never
from snaptree.hosts.volumes import VolumeImages, side_by_side
from snaptree.images.analyses import Analyses
from snaptree.images.files import ImageReader, LocalPlace, read_chain
from snaptree.images.read_at import BadImageError
from snaptree.images.saved_memory import read_compression, read_memory_file
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.model.estate import DiskChain, DomainLayers, Image, MemorySnapshot
from snaptree.model.figures import Confidence, Figure, unknown
from snaptree.model.tree import SnapshotTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from snaptree.images.analyses import Place
    from snaptree.images.copy_map import CopyMap
    from snaptree.images.overlaps import Overlaps
    from snaptree.images.sharing import Sharing
    from snaptree.model.estate import ImageKey, LayerOverlaps

_IMAGES_AT_ONCE = 8
_QCOW2_MAGIC = b"QFI\xfb"
_TEST_DRIVER = "TEST"
_NO_IMAGES = "libvirt's test driver has machines, but no images"
_GOES_ON = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_UNPAUSED)
"""How a machine runs after a snapshot with memory was taken of it; after a revert the reason is another."""

_reader = ImageReader()
_analyses = Analyses()
_here = LocalPlace()

_Found = TypeVar("_Found")


class Images:
    """One picture of a host's images: each is read once, as a file where we may, as a storage volume elsewhere."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._read: dict[tuple[str, str], Image] = {}
        self._volumes: VolumeImages | None = None

    def read_image(self, path: str, recorded_format: str) -> Image:
        """What the image says. Never raises for a bad or missing image: its `problem` tells."""
        image = self._read.get((path, recorded_format))
        if image is None:
            image = self._read[path, recorded_format] = self._look_at(path, recorded_format)
        return image

    def read_ahead(self, formats: Mapping[str, str]) -> None:
        """Read images of another host side by side, so that asking for each later takes no time."""
        if not self.connection.host.is_local:
            for _ in side_by_side(lambda each: self.read_image(*each), formats.items(), _IMAGES_AT_ONCE):
                pass

    def _look_at(self, path: str, recorded_format: str) -> Image:
        if self.connection.host.driver == _TEST_DRIVER:
            return Image(path, recorded_format, unknown(_NO_IMAGES), problem=_NO_IMAGES)
        if not self.connection.host.is_local:
            return self._volume_images().read_image(path, recorded_format)
        image = _reader.read_image(path, recorded_format)
        if not image.problem or image.is_missing:
            return image
        # The user may not read the file, but the daemon may, and lets us have a volume's content.
        through_libvirt = self._volume_images().read_image(path, recorded_format)
        return image if through_libvirt.problem else replace(through_libvirt, identity=image.identity)

    def sharing(self, image: Image, cancelled: Callable[[], bool]) -> Sharing | None:
        """Who holds the clusters of an image; None where that can't be read, or not while it is written to."""
        if image.format != "qcow2":
            return None
        found = self._first_found(lambda place: _analyses.sharing(place, image.path, cancelled))
        # Holders are numbers: of another table than the one that the caller knows they would be wrong ones.
        return found if found is not None and found.snapshots == image.internal_snapshots else None

    def overlaps(
        self, below: Mapping[str, str | None], formats: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Overlaps | None:
        """What the layers of one disk hold; None where that can't be read, or not while they are written to."""
        return self._first_found(lambda place: _analyses.overlaps(place, below, formats, cancelled))

    def copy_map(
        self, formats: Mapping[str, str], into: str | None, cancelled: Callable[[], bool] = never
    ) -> CopyMap | None:
        """Where lies what merging layers copies, given from the top down; None where that can't be read.

        `into` is the one that is pulled into; None for a commit, of which only those are looked at that go. It is for
        a figure, so nothing fails for want of it. Raises CancelledError soon after `cancelled` turns true.
        """
        try:
            return self._first_found(lambda place: _analyses.copy_map(place, formats, into, cancelled))
        except CancelledError:
            raise
        except (SnapTreeError, libvirt.libvirtError):
            return None

    def _first_found(self, look: Callable[[Place], _Found]) -> _Found | None:
        """Look at files where we may, at what libvirt lets us have elsewhere."""
        if self.connection.host.is_local:
            try:
                return look(_here)
            except PermissionError:
                pass  # the daemon may read it
            except (OSError, BadImageError):
                return None
        try:
            return look(FarImages(self.connection, self._volume_images()))
        except (OSError, BadImageError):
            return None

    def _volume_images(self) -> VolumeImages:
        if self._volumes is None:
            self._volumes = VolumeImages(self.connection)
        return self._volumes

    def memory_file(self, path: str) -> Figure:
        """Bytes that a saved-memory file takes on the host's disk."""
        if self.connection.host.is_local:
            return read_memory_file(path)
        image = self._volume_images().read_image(path, "raw")
        return unknown(image.problem) if image.problem else image.allocated

    def memory_compression(self, path: str) -> str:
        """How a saved-memory file is written; empty where nobody can look into it from here."""
        return read_compression(path) if self.connection.host.is_local else ""

    def is_missing(self, path: str) -> bool:
        """Whether a file certainly does not exist; of one that can't be looked for, nobody says so."""
        if not self.connection.host.is_local:
            return self._volume_images().read_image(path, "raw").is_missing
        try:
            Path(path).stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def apparent_format(self, path: str) -> str:
        """`qcow2` if the file begins like one, else `raw`: for finding dependants, never to open for a guest."""
        if not self.connection.host.is_local:
            return self._volume_images().format_of(path)
        try:
            if not Path(path).is_file():
                return "raw"
            with Path(path).open("rb") as file:
                return "qcow2" if file.read(4) == _QCOW2_MAGIC else "raw"
        except OSError:
            return self._volume_images().format_of(path)


def live_chains(
    connection: Connection, domain: Any, images: Images | None = None, *, top_only: bool = False
) -> tuple[DiskChain, ...]:
    """What each disk with a file stands on now.

    A running machine's XML is QEMU's own account. That of one that is off may be partial (LIBVIRT.md, 7), so
    there the images' headers are followed. `top_only` is for callers that need no more than the active layers.
    """
    with explained("reading the machine's disks"):
        is_active = bool(domain.isActive())
        definition = read_definition(parse(domain.XMLDesc()))
    chains = []
    for target, listed in definition.chains:
        if not listed:
            chains.append(DiskChain(target, (), "it is not a file or block device of the host"))
        elif top_only or is_active:
            paths = tuple(path for path, _ in listed[: 1 if top_only else None])
            chains.append(DiskChain(target, paths, discards=target in definition.discards))
        else:
            images = images or Images(connection)
            chain = read_chain(*listed[0], images.read_image)
            paths = tuple(image.path for image in chain.images)
            chains.append(DiskChain(target, paths, chain.problem, discards=target in definition.discards))
    return tuple(chains)


def read_layers(connection: Connection, uuid: str, tree: SnapshotTree) -> DomainLayers:
    """The chains of a machine and every image and memory file that it or a snapshot of it names."""
    return layers_of(connection, connection.domain(uuid), tree, Images(connection))


def analysed(connection: Connection, layers: DomainLayers, cancelled: Callable[[], bool] = never) -> DomainLayers:
    """Add what the clusters of the images tell: who holds which, and what covers what.

    Takes as long as there are tables to read. Raises CancelledError soon after `cancelled` turns true.
    """
    images = Images(connection)
    actives = {chain.active for chain in layers.chains}
    sharing: dict[str, Sharing] = {}
    for path, image in layers.images.items():
        if image.internal_snapshots and (found := images.sharing(image, cancelled)) is not None:
            is_dropped = layers.drops_memory and path in actives
            sharing[path] = found.with_memory_dropped(found.present - 1) if is_dropped else found
    overlaps: dict[str, Overlaps] = {}
    for below in _piles(layers):
        formats = {path: layers.images[path].format for path in below}
        if (pile := images.overlaps(below, formats, cancelled)) is not None:
            overlaps |= dict.fromkeys(below, pile)
    return replace(layers, sharing=MappingProxyType(sharing), overlaps=MappingProxyType(overlaps))


def with_earlier_analysis(layers: DomainLayers, earlier: DomainLayers) -> DomainLayers:
    """Take over what was found in the same images before. Of those written to since, it was true a moment ago."""
    sharing = {
        path: found
        for path, found in earlier.sharing.items()
        if path in layers.images and layers.images[path].internal_snapshots == earlier.images[path].internal_snapshots
    }
    overlaps: dict[str, LayerOverlaps] = {}
    before = list(_piles(earlier))
    for below in _piles(layers):
        pile = earlier.overlaps.get(next(iter(below)))
        if pile is not None and below in before:
            overlaps |= dict.fromkeys(below, pile)
    return replace(layers, sharing=MappingProxyType(sharing), overlaps=MappingProxyType(overlaps))


def is_analysed(layers: DomainLayers) -> bool:
    """Whether there is nothing left that `analysed` might add, but for images that it can't read."""
    return all(path in layers.sharing for path, image in layers.images.items() if image.internal_snapshots) and all(
        path in layers.overlaps for below in _piles(layers) for path in below
    )


def _piles(layers: DomainLayers) -> Iterator[dict[str, str | None]]:
    """Images that stand on each other, each with what it stands on. Where that can't be read, it stands on nothing."""
    paths: dict[ImageKey, str] = {}
    for path, image in sorted(layers.images.items()):
        if not image.problem and not image.is_missing and image.format in ("qcow2", "raw"):
            paths.setdefault(layers.key(path), path)
    piles: dict[str, dict[str, str | None]] = {}
    for path in paths.values():
        standing = [path]
        while (backing := layers.images[standing[-1]].backing) is not None:
            base = paths.get(layers.key(backing))
            if base is None or base in standing:
                break
            standing.append(base)
        pile = piles.setdefault(standing[-1], {})
        for upper, lower in zip(standing, [*standing[1:], None], strict=True):
            pile[upper] = lower
    for pile in piles.values():
        if any(layers.images[path].format == "qcow2" for path in pile):
            yield pile


def layers_of(connection: Connection, domain: Any, tree: SnapshotTree, images: Images) -> DomainLayers:
    """As `read_layers`, for a caller that goes on looking at the same picture of the images."""
    with explained("reading the machine's disks"):
        is_active = bool(domain.isActive())
        root = parse(domain.XMLDesc())
        definition = read_definition(root)
        saves_inside = any(snapshot.memory is MemorySnapshot.INTERNAL for snapshot in tree)
        drops_memory = is_active and saves_inside and tuple(domain.state()) == _GOES_ON
    formats = {path: layer_format for _, listed in definition.chains for path, layer_format in listed}
    formats |= {
        disk.frozen: disk.frozen_format for snapshot in tree for disk in snapshot.disks if disk.frozen is not None
    }
    chains = live_chains(connection, domain, images)
    found: dict[str, Image] = {}
    tops = [chain.active for chain in chains if chain.active is not None]
    overlays = [path for snapshot in tree for _, path in snapshot.revert_overlays]
    overlays += [disk.overlay for snapshot in tree for disk in snapshot.disks if disk.overlay is not None]
    # An overlay that libvirt made is qcow2; one that is named nowhere else is a leaf's, or gone.
    recorded = {path: formats.get(path, "qcow2") for path in [*tops, *formats, *overlays]}
    images.read_ahead(recorded)
    for path, recorded_format in recorded.items():
        chain = read_chain(path, recorded_format, images.read_image)
        # The first reading of an image is by the format that the machine or snapshot recorded for it.
        found = {image.path: image for image in chain.images} | found
    if is_active:
        found |= {path: _being_written(found[path]) for path in tops if path in found}
    memory_files = [snapshot.memory_file for snapshot in tree if snapshot.memory_file is not None]
    return DomainLayers(
        chains=chains,
        images=MappingProxyType(found),
        drops_memory=drops_memory,
        memory_files=MappingProxyType({path: images.memory_file(path) for path in memory_files}),
        memory_compressions=MappingProxyType({path: images.memory_compression(path) for path in memory_files}),
        is_running=is_active,
        looks_at=read_mark(root),
    )


def _being_written(image: Image) -> Image:
    """An active layer grows while we look: its bytes were true a moment ago."""
    if image.allocated.bytes is None:
        return image
    live = Figure(image.allocated.bytes, Confidence.LIVE, f"{image.allocated.how}; being written to")
    return replace(image, allocated=live)
