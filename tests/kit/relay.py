"""A link to a daemon that is as long as wanted: it makes the daemon a host far away, which is reached by TCP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST_AT_ONCE = 256 << 10


class Relay:
    """Passes on what comes to a TCP port to a Unix socket and back, each piece so many seconds later."""

    def __init__(self, socket: Path, delay: float) -> None:
        self._socket = socket
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.received = 0
        """Bytes that came from the daemon."""

    @property
    def uri(self) -> str:
        """Where a session daemon behind it is found."""
        return f"qemu+tcp://127.0.0.1:{self.port}/session"

    def start(self) -> None:
        """Listen, at a free port."""
        self._thread.start()
        self._ready.wait()

    def cut(self) -> None:
        """Break all links that there are."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def stop(self) -> None:
        """Cut all links, and listen no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        links = asyncio.all_tasks(self._loop)
        for link in links:
            link.cancel()
        self._loop.run_until_complete(asyncio.gather(*links, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(str(self._socket))
        self._writers += writer, far_writer
        with contextlib.suppress(asyncio.CancelledError):  # the relay stops
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer, counts=True))

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool = False
    ) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                when, part = await due.get()
                await asyncio.sleep(when - self._loop.time())
                if not part:
                    break
                writer.write(part)
                await writer.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            while part := await reader.read(_MOST_AT_ONCE):
                if counts:
                    self.received += len(part)
                due.put_nowait((self._loop.time() + self._delay, part))
            due.put_nowait((self._loop.time() + self._delay, b""))
            await delivering
        except ConnectionError:
            delivering.cancel()
        finally:
            delivering.cancel()
            writer.close()


@contextmanager
def far_away(socket: Path, delay: float = 0.0) -> Iterator[Relay]:
    """A daemon's socket, at the other end of a link on which every piece takes `delay` seconds."""
    relay = Relay(socket, delay)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
