"""The images inside of folders, tar and zip files: where each one lies. Nothing is unpacked."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from maskdit.config.base import UserError
from maskdit.images import tar_members

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Bytes of a container as they are; a row group and row of a parquet table; a zip file's member, stored or deflated, at its header.
RAW, DEFLATED, TABLE, STORED = range(4)
LARGEST = 2**28  # bytes of one encoded image


def header_length(header: bytes) -> int:
    """Bytes from the begin of a zip member to its data, by the 30 bytes that it begins with."""
    return 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def inflated(data: bytes) -> bytes:
    """What a deflated member holds, if it is no more than LARGEST; raises zlib.error otherwise."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(data, LARGEST)
    if not stream.eof:
        raise zlib.error(f"it is cut, or larger than {LARGEST >> 20} MiB")
    return plain


Entry = tuple[str, int, int, int]  # name, kind, offset, length


def tar_entries(stream: Any, stem: str, base: int = 0) -> Iterator[Entry]:
    """Images of a tar file, and of tar files inside it, whose name is then their class: regular files with harmless names only."""
    for member in tar_members.members(stream):
        if not member.isreg() or member.issparse() or not harmless(member.name):
            continue
        if member.name.lower().endswith(".tar") and not base:
            inner = tarfile.ExFileObject(cast(Any, SimpleNamespace(fileobj=stream)), member)
            yield from tar_entries(inner, Path(member.name).stem, member.offset_data)
        elif member.name.lower().endswith(IMAGES):
            yield placed(member.name, stem), RAW, base + member.offset_data, member.size


def zip_entries(stream: Any, stem: str) -> Iterator[Entry]:
    """Images of a zip file, stored or deflated: regular files with harmless names only."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG) or not harmless(member.filename):
                continue
            if not member.filename.lower().endswith(IMAGES):
                continue
            if not 0 <= member.header_offset < 2**62:
                raise zipfile.BadZipFile(f"{member.filename} at byte {member.header_offset}")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise UserError(f"{stream.name}: {member.filename} is encrypted or packed otherwise than by deflate; pack it again")
            kind = STORED if member.compress_type == zipfile.ZIP_STORED else DEFLATED
            yield placed(member.filename, stem), kind, member.header_offset, member.compress_size


def harmless(name: str) -> bool:
    """Whether a member's name stays below where it is, and is not a program's private matter, as .DS_Store and __MACOSX are."""
    parts = name.removeprefix("./").split("/")
    return "\0" not in name and not any(part in ("", "__MACOSX") or part.startswith(".") for part in parts)


def placed(name: str, stem: str) -> str:
    """A member's path; that of one without a folder begins with the archive's name, which is its class."""
    return name.removeprefix("./") if "/" in name.removeprefix("./") else f"{stem}/{name}"


def entries_of(path: Path, relative: str) -> Iterator[Entry]:
    """The images of one file: itself, or the members of an archive; raises UserError for a damaged archive."""
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        yield relative, RAW, 0, path.stat().st_size
        return
    try:
        with path.open("rb") as stream:
            yield from zip_entries(stream, path.stem) if suffix == ".zip" else tar_entries(stream, path.stem)
    except (tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from None
