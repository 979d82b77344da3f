"""Making it happen: the only rooms that talk to libvirt. No Qt."""
