"""Making it happen: the only rooms that talk to libvirt. No Qt."""

import os

# libvirt reads this once, when it is first imported. Unset, a driver inside this process (the demo estate)
# writes its log to our stderr; what concerns the user reaches them as an exception anyway.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "3:file:/dev/null")
