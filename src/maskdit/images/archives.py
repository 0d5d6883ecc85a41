"""Lists the members of untrusted tar and zip files, whatever their headers claim, without unpacking anything."""

import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from maskdit.config.base import UserError

IMAGES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGES += (".ppm", ".pgm", ".pbm", ".pnm")
# RAW: offset and length of plain bytes. TABLE: row group and row of a parquet file. DEFLATED, STORED: header offset in a zip.
# FOLDER, LINK and ODD have no bytes to read.
RAW, DEFLATED, TABLE, STORED, FOLDER, LINK, ODD = range(7)
METHODS = {zipfile.ZIP_STORED: STORED, zipfile.ZIP_DEFLATED: DEFLATED}
HEADER = 2**20  # maximum bytes of one tar header: of a long name, or of extended attributes
LARGEST = 2**28  # maximum bytes of one encoded image
LONGEST = 4096  # maximum bytes of a link's target
SYSTEM = {  # files and folders of operating systems and disks, in lower case
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"),
    *("lost+found", "lost.dir", "found.000", "#recycle", "#snapshot", "@recycle", "@eadir", "@recently-snapshot"),
}
PRIVATE = "files and folders of the system"
OUTSIDE = "names that lead out of the archive"
SPARSE = "sparse members of an archive"
SPECIAL = "devices and pipes"
OTHER = "files that are no images"
NOWHERE = "links that lead to no image"


class Member(NamedTuple):
    """A member of an archive: its path there, and where its bytes lie."""

    name: str
    kind: int
    offset: int = 0
    length: int = 0
    stem: str = ""  # of the archive, whose name becomes the class of a member without a folder
    told: str = ""  # LINK: the path of its target. ODD: why it is left out

    @property
    def placed(self) -> str:
        """Its path; if it has no folder, the archive's name takes the folder's place and becomes the class."""
        return self.name if "/" in self.name else f"{self.stem}/{self.name}"


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


def first_bytes(number: int, member: Member, count: int) -> bytes:
    """The first bytes of a member of an open file; fewer if it is shorter or damaged."""
    start, length = member.offset, member.length
    if member.kind != RAW:
        start += header_length(os.pread(number, 30, start).ljust(30, b"\0"))
    data = os.pread(number, min(length, 16 * count), start)
    if member.kind == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count)
        except zlib.error:
            data = b""
    return data[:count]


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


def in_tar(stream: Any, stem: str, base: int = 0) -> Iterator[Member]:
    """Members of a tar file and of the tar files inside it, whose names become classes."""
    for member in tar_members(stream):
        name, inner = cleaned(member.name), member.name.lower().endswith(".tar") and not base
        if problem := unfit(member.name):
            yield Member(name, ODD, stem=stem, told=problem)
        elif member.isdir():
            yield Member(name, FOLDER, stem=stem)
        elif member.issym() or member.islnk():
            yield Member(name, LINK, stem=stem, told=target(name, member.linkname, member.issym()))
        elif not member.isreg() or member.issparse():
            yield Member(name, ODD, stem=stem, told=SPARSE if member.isreg() else SPECIAL)
        elif inner:
            part = tarfile.ExFileObject(cast(Any, SimpleNamespace(fileobj=stream)), member)
            yield from in_tar(part, Path(name).stem, member.offset_data)
        else:
            yield Member(name, RAW, base + member.offset_data, member.size, stem)


def in_zip(stream: Any, stem: str) -> Iterator[Member]:
    """Members of a zip file, stored or deflated."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            name, form = cleaned(member.filename), stat.S_IFMT(member.external_attr >> 16)
            if problem := unfit(member.filename):
                yield Member(name, ODD, stem=stem, told=problem)
            elif member.filename.endswith(("/", "\\")) or form == stat.S_IFDIR:
                yield Member(name, FOLDER, stem=stem)
            elif form not in (0, stat.S_IFREG, stat.S_IFLNK):
                yield Member(name, ODD, stem=stem, told=SPECIAL)
            elif not 0 <= member.header_offset < 2**62:
                raise zipfile.BadZipFile(f"{member.filename} at byte {member.header_offset}")
            elif (method := METHODS.get(member.compress_type)) is None or member.flag_bits & 1:
                told = f"{stream.name}: {member.filename} is encrypted, or compressed with a method other than deflate"
                if name.lower().endswith(IMAGES):
                    raise UserError(f"{told}; create the archive again")
                yield Member(name, ODD, stem=stem, told=OTHER)
            else:
                found = Member(name, method, member.header_offset, member.compress_size, stem)
                if form == stat.S_IFLNK:
                    link = first_bytes(stream.fileno(), found, LONGEST).decode(errors="replace")
                    found = Member(name, LINK, stem=stem, told=target(name, link, True))
                yield found


def cleaned(name: str) -> str:
    """A member's path with single slashes, as tar and unzip would write it below a folder."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def unfit(name: str) -> str:
    """Why a member is left out by its name, which is unsafe, hidden or private (.DS_Store, __MACOSX); '' if it is not."""
    parts = cleaned(name).split("/")
    if ".." in parts or "\0" in name:
        return OUTSIDE
    return PRIVATE if any(map(private, parts)) else ""


def private(name: str) -> bool:
    """Whether the name of a file or folder is hidden, or that of an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def target(name: str, link: str, symbolic: bool) -> str:
    """The member that a link leads to: a symbolic one from its folder, a hard one from the top; '' if out of the archive."""
    if symbolic and not link.startswith("/"):
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return "" if unfit(link) or (symbolic and link.startswith("/")) else cleaned(link)


def members_of(path: Path) -> Iterator[Member]:
    """The members of a tar or zip file. Raises UserError if it is damaged."""
    try:
        with path.open("rb") as stream:
            yield from in_zip(stream, path.stem) if path.suffix.lower() == ".zip" else in_tar(stream, path.stem)
    except (tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from None
