"""Where the bytes of an image come from: a local file, a storage volume of a far host, or a test's buffer."""

from __future__ import annotations

from typing import Protocol


class ReadAt(Protocol):
    """Something to read pieces from. Every read may be a round trip to a far host: few and large ones are best."""

    @property
    def size(self) -> int:
        """How many bytes there are now; a growing image may have more the next time."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end. Raises OSError if they cannot be had."""


class BadImageError(Exception):
    """What was read is not what its recorded format promises; the text says why, in words for a person."""


def in_words(error: BadImageError | OSError) -> str:
    """Say why reading failed, without an error number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
