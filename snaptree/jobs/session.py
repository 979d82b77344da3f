"""A connection that is read from by several threads, and closed when the last of them is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from snaptree.hosts.connection import Connection
from snaptree.hosts.errors import explained
from snaptree.hosts.watching import Changes, Watcher
from snaptree.model.errors import AccessDeniedError, ConnectionLostError
from snaptree.model.estate import Host

_WATCHER_ENDS_WITHIN_SECONDS = 10.0


class Session:
    """From one connecting to the next losing it. libvirt must not close a connection while a call is under way."""

    def __init__(
        self,
        connection: Connection,
        why_read_only: AccessDeniedError | None,
        on_change: Callable[[Changes], None],
        on_lost: Callable[[Session, str], None],
    ) -> None:
        """Take over an open connection and watch it (a few blocking calls).

        Both callbacks come from other threads, and may still come shortly after `close`.
        """
        self._connection = connection
        self._on_lost = partial(on_lost, self)
        connection.on_lost = self._on_lost
        self._lock = threading.Lock()
        self._users = 1  # the session itself
        self._is_closed = False
        self.host: Host = connection.host
        self.why_read_only = why_read_only
        self.watcher = Watcher(connection, on_change)
        self.watcher.start()

    @contextmanager
    def using(self) -> Iterator[Connection]:
        """Use the connection; libvirt's errors leave it explained. ConnectionLostError if the session is over."""
        with self._lock:
            if self._is_closed:
                raise ConnectionLostError(f"Not connected to {self.host.uri}.", hint="It is tried again by itself.")
            self._users += 1
        try:
            with explained("asking the host"):
                yield self._connection
        except ConnectionLostError:
            # Not every broken link is announced: a call may be the first to notice.
            if not self._connection.is_alive():
                self._on_lost("it does not answer any more")
            raise
        finally:
            self._leave()

    def close(self) -> None:
        """End the session; blocks until the watcher is done with it. The connection closes after its last user."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self.watcher.close(_WATCHER_ENDS_WITHIN_SECONDS):
            self._leave()
        # Else a call hangs in there: rather keep the connection than pull it away from under libvirt.

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._users == 0
        if is_last:
            self._connection.close()
