"""Backend threads per host, and the bridge from them to Qt signals (QtCore only)."""
