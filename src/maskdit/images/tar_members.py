"""Tar files of strangers: their members one after another, whatever their headers claim."""

import tarfile
from collections.abc import Iterator
from errno import EINVAL
from typing import Any, cast

HEADER = 2**20  # bytes of the longest header: of a name, or of extended attributes


class _Guarded:
    """A stream for tarfile, which believes every number: not read to its end at once, and not in a circle."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.tell, self.seek = stream, stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        """So many bytes; raises TarError for a size that no header has."""
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return cast(bytes, self.stream.read(size))


def members(stream: Any) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, each to be looked at before the next one.

    Raises tarfile.TarError if it is damaged, also where tarfile itself takes damage for the end, or would go round for ever.
    """
    try:
        with tarfile.open(fileobj=cast(Any, _Guarded(stream)), mode="r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # or all members of a large archive stay in memory
                if member.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                end = tar.offset
                yield member
            stream.seek(tar.offset)
            if any(stream.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no member at byte {tar.offset}")
    except (ValueError, LookupError, OverflowError, RecursionError) as error:  # RecursionError: a header of a header of a header
        raise tarfile.ReadError(str(error)) from None
    except OSError as error:
        if error.errno != EINVAL:  # of a place that no file has
            raise
        raise tarfile.ReadError("a member that ends beyond any file") from None
