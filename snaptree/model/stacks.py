"""What the layers of a stack are to those who read it: what shows of each, what is covered, who else needs it."""

from __future__ import annotations

from dataclasses import dataclass

from snaptree.model.estate import Image
from snaptree.model.figures import Confidence, Figure, unknown
from snaptree.model.merging import LayerTree

_NOT_ANALYSED = "its clusters were not analysed"


@dataclass(frozen=True, slots=True)
class LayerUse:
    """One layer as a part of a stack. `visible` and `covered` are bytes of the guest's data."""

    path: str
    allocated: Figure
    visible: Figure
    """Of its data: what a reader of the stack sees."""
    covered: Figure
    """Of its data: what layers above it in the stack hide."""
    branches: int
    """How many layers of this machine stand on it."""
    read_by: frozenset[str]
    """Other machines that read it."""

    @property
    def is_shared(self) -> bool:
        """Whether more than this stack needs it."""
        return self.branches > 1 or bool(self.read_by)


def layer_use(tree: LayerTree, path: str, top: str) -> LayerUse:
    """Work out what a layer is to whoever reads `top`, which is that layer or stands on it."""
    layers = tree.layers
    image = layers.images.get(path)
    key = layers.key(path)
    visible, covered = _shown(tree, path, top, image)
    return LayerUse(
        path=path,
        allocated=unknown("this image was not looked at") if image is None else image.allocated,
        visible=visible,
        covered=covered,
        branches=tree.branches_on(key),
        read_by=tree.elsewhere.users.get(key, frozenset()),
    )


def _shown(tree: LayerTree, path: str, top: str, image: Image | None) -> tuple[Figure, Figure]:
    layers = tree.layers
    own, upper = tree.known_as(path), tree.known_as(top)
    overlaps = layers.overlaps.get(own)
    if image is None or overlaps is None or layers.overlaps.get(upper) is not overlaps or not tree.stands_on(top, path):
        return unknown(_NOT_ANALYSED), unknown(_NOT_ANALYSED)
    visible = overlaps.visible(own, upper)
    is_live = Confidence.LIVE in (image.allocated.confidence, layers.images[top].allocated.confidence)
    # Of a raw image nobody but its file system knows what is data: all that takes room counts.
    sure = Confidence.UPPER_BOUND if image.format == "raw" else Confidence.LIVE if is_live else Confidence.EXACT
    return (
        Figure(visible, sure, "clusters of data that no layer above covers"),
        Figure(overlaps.data(own) - visible, sure, "clusters of data that layers above cover"),
    )
