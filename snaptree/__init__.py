"""SnapTree: the snapshots of libvirt virtual machines as trees, with their costs, changed safely."""

__version__ = "0.1.0"
