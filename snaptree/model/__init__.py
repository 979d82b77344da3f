"""What an estate is: frozen values and pure functions over them. No Qt, no libvirt, no files."""
