"""Lists the images in folders and in untrusted tar and zip files, whatever their headers claim, without unpacking anything."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from maskdit.config.base import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# RAW: offset and length of plain bytes. TABLE: row group and row of a parquet file. Others: header offset of a zip member.
RAW, DEFLATED, TABLE, STORED = range(4)
HEADER = 2**20  # maximum bytes of one tar header: of a long name, or of extended attributes
LARGEST = 2**28  # maximum bytes of one encoded image


def header_length(header: bytes) -> int:
    """Number of bytes from the start of a zip member to its data, from the first 30 bytes of the member."""
    return 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def inflated(data: bytes) -> bytes:
    """Decompress a deflated member. Raises zlib.error if it is truncated or inflates to more than LARGEST bytes."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(data, LARGEST)
    if not stream.eof:
        raise zlib.error(f"truncated, or larger than {LARGEST >> 20} MiB")
    return plain


class _Guarded:
    """A stream for tarfile, which trusts every size that a header claims: limits how much it reads at once."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.tell, self.seek = stream, stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        """Read `size` bytes. Raises TarError if no header has that size."""
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return cast(bytes, self.stream.read(size))


def tar_members(stream: Any) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file. Each must be used before the next is requested.

    Raises tarfile.TarError for damage, including where tarfile itself would see the end of the file or loop forever.
    """
    try:
        with tarfile.open(fileobj=cast(Any, _Guarded(stream)), mode="r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # otherwise all members of a large archive stay in memory
                if member.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"a member claims {member.size} bytes")
                end = tar.offset
                yield member
            stream.seek(tar.offset)
            if any(stream.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no member at byte {tar.offset}")
    except (ValueError, LookupError, OverflowError, RecursionError) as error:  # RecursionError: headers nested in headers
        raise tarfile.ReadError(str(error)) from None
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: seek to an impossible offset
            raise
        raise tarfile.ReadError("a member ends beyond the end of the file") from None


Entry = tuple[str, int, int, int]  # name, kind, offset, length


def tar_entries(stream: Any, stem: str, base: int = 0) -> Iterator[Entry]:
    """Images of a tar file and of the tar files inside it, whose names become classes. Skips special files and unsafe names."""
    for member in tar_members(stream):
        if not member.isreg() or member.issparse() or not harmless(member.name):
            continue
        if member.name.lower().endswith(".tar") and not base:
            inner = tarfile.ExFileObject(cast(Any, SimpleNamespace(fileobj=stream)), member)
            yield from tar_entries(inner, Path(member.name).stem, member.offset_data)
        elif member.name.lower().endswith(IMAGES):
            yield placed(member.name, stem), RAW, base + member.offset_data, member.size


def zip_entries(stream: Any, stem: str) -> Iterator[Entry]:
    """Images of a zip file, stored or deflated. Skips special files and unsafe names."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            regular = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            if not regular or not harmless(member.filename) or not member.filename.lower().endswith(IMAGES):
                continue
            if not 0 <= member.header_offset < 2**62:
                raise zipfile.BadZipFile(f"{member.filename} at byte {member.header_offset}")
            kind = {zipfile.ZIP_STORED: STORED, zipfile.ZIP_DEFLATED: DEFLATED}.get(member.compress_type)
            if kind is None or member.flag_bits & 1:
                name = f"{stream.name}: {member.filename}"
                raise UserError(f"{name} is encrypted, or compressed with a method other than deflate; create the archive again")
            yield placed(member.filename, stem), kind, member.header_offset, member.compress_size


def harmless(name: str) -> bool:
    """Whether a member's name is a relative path without `..`, and not hidden or private as .DS_Store and __MACOSX are."""
    parts = name.removeprefix("./").split("/")
    return "\0" not in name and not any(part in ("", "__MACOSX") or part.startswith(".") for part in parts)


def placed(name: str, stem: str) -> str:
    """The path of a member. If it has no folder, the archive's name takes the folder's place and becomes the class."""
    return name.removeprefix("./") if "/" in name.removeprefix("./") else f"{stem}/{name}"


def entries_of(path: Path, relative: str) -> Iterator[Entry]:
    """The images of one file: the file itself or the members of an archive. Raises UserError if an archive is damaged."""
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        yield relative, RAW, 0, path.stat().st_size
        return
    try:
        with path.open("rb") as stream:
            yield from zip_entries(stream, path.stem) if suffix == ".zip" else tar_entries(stream, path.stem)
    except (tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from None
