"""Downloads of large files, which resume after interruptions and get their name only after a check."""

import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from ipaddress import ip_address
from pathlib import Path
from socket import EAI_NONAME, gaierror, getaddrinfo
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from maskdit.artifacts.atomic import read_json, sha256, write_json, writing
from maskdit.config.base import UserError
from maskdit.images.hub import HubFile
from maskdit.runtime.progress import LOG_SECONDS, say
from maskdit.runtime.variables import variable

ATTEMPTS = 5  # maximum number of consecutive retries without progress
WAIT = 2.0  # seconds before the first retry; doubles with each further one
TIMEOUT = 60.0  # seconds without an answer
CHUNK = 2**20  # bytes
PAGE = "is an HTML page, not a file; open it in a browser to see what it says"


def allowed(url: str) -> bool:
    """Whether a file may be read from an address: https, a local file, or the loopback interface."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("https", "file") or (parts.scheme == "http" and internal(url, loopback=True))


def internal(url: str, loopback: bool = False) -> bool:
    """Whether the host of an address is this machine or in a private network, by its number or, for names, by what they mean here.

    loopback: this machine only, and no name is looked up.
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        numbers = {host} if loopback else {host} | {str(found[4][0]) for found in getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # no such name, or one that cannot be
        numbers = {host}
    for number in numbers:
        with suppress(ValueError):
            found = ip_address(number.partition("%")[0])
            if found.is_loopback or (not loopback and not found.is_global):
                return True
    return False


def name_of(url: str) -> str:
    """The file name in an address; 'weights' if it is missing or unsafe."""
    name = Path(unquote(urlsplit(url).path)).name
    return name if re.fullmatch(r"\w[\w.+-]*", name) else "weights"


@dataclass(frozen=True)
class Address:
    """Address of a file.

    token: sent to this host only. shown: printed in place of a secret address. advice: what to do if the server refuses.
    """

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    shown: str = ""
    advice: str = "correct the url"

    def __str__(self) -> str:
        return self.shown or self.url

    def demand(self) -> None:
        """Raise UserError unless the address is allowed and the token can be sent in a header."""
        if not allowed(self.url):
            raise UserError(f"{self}: only https:// and file:// addresses are supported")
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise UserError(f"{self}: the token is empty, or contains blanks or non-ASCII characters; set it again")

    def request(self, **headers: str) -> Request:
        """A request for the file, whose token urllib does not forward when the host redirects."""
        request = Request(self.url, headers={"Accept-Encoding": "identity", "User-Agent": "maskdit", **headers})
        self.sign(request)
        return request

    def sign(self, request: Request) -> None:
        """Add the token if the request goes to the host of this address."""
        ours, theirs = urlsplit(self.url), urlsplit(request.full_url)
        if self.token and (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")

    def reason(self, error: BaseException) -> str:
        """The message of an error, without details that could reveal a secret address."""
        if self.shown:
            return getattr(error, "strerror", None) or type(error).__name__
        return " ".join(str(error).split()) or type(error).__name__


class Redirects(HTTPRedirectHandler):
    """Follows redirects to allowed addresses, or none: from a public host to none in a private network.

    urllib itself refuses redirects to local files.
    """

    def __init__(self, address: Address, follow: bool = True) -> None:
        self.address, self.follow = address, follow

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Any:
        """The redirected request; None makes the redirect itself the answer. Raises UserError if the request leaves https."""
        if not self.follow:
            return None
        if not allowed(newurl):
            fp.close()
            place = "an address" if self.address.shown else newurl
            raise UserError(f"{self.address}: redirects to {place}, which is not https; correct the url")
        if internal(newurl) and not internal(self.address.url):
            fp.close()
            place = "an address" if self.address.shown else newurl
            raise UserError(
                f"{self.address}: redirects to {place} in a private network; if you trust it, put that address into params.yaml"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.address.sign(request)
        return request


def headers_of(address: Address) -> Any:
    """Headers of a file from its host, before any redirect; empty if the host refuses."""
    address.demand()
    request = address.request()
    request.method = "HEAD"
    try:
        with build_opener(Redirects(address, follow=False)).open(request, timeout=TIMEOUT) as answer:
            return answer.headers
    except HTTPError as error:
        error.close()
        return error.headers if error.code in (301, 302, 303, 307, 308) else HTTPMessage()
    except (HTTPException, OSError):
        return HTTPMessage()


@dataclass(frozen=True)
class Partial:
    """An unfinished download: the bytes so far, and a JSON file with their source, version and full size."""

    part: Path
    note: Path

    def known(self, url: str) -> tuple[int, str | None, int | None]:
        """Number of bytes so far, their version, and the full size; (0, None, None) if the download cannot be resumed."""
        if self.part.exists() and self.note.exists():
            note = read_json(self.note)
            if note["url"] == url and note["version"] is not None:
                return self.part.stat().st_size, note["version"], note["size"]
        return 0, None, None

    def forget(self) -> None:
        """Delete both files."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def version_of(headers: Any) -> str | None:
    """The value for If-Range: a strong ETag, else the date; None if an interrupted download must restart."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def demand_room(address: Address, partial: Partial, size: int) -> None:
    """Raise UserError unless a file of this size fits on the disk if it replaces the partial one."""
    old, place = partial.part.stat().st_size if partial.part.exists() else 0, partial.part.parent
    free = shutil.disk_usage(place).free + old
    if free < size:
        raise UserError(f"{address}: has {size / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; make room or link it elsewhere")


def fetch_rest(url: Address, partial: Partial) -> int | None:
    """Download the missing bytes and append them. Returns the full size; None if the server does not report it.

    Restarts if the server answers with the whole file, because it does not support ranges or the file has changed.
    Raises UserError for an HTML page, OSError or HTTPException if a retry may help.
    """
    name = hashlib.sha256(url.url.encode()).hexdigest()  # not the address itself, which may be secret
    have, version, size = partial.known(name)
    if size is not None and have == size:
        return size
    span = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    with build_opener(Redirects(url)).open(url.request(**span), timeout=TIMEOUT) as answer:
        came = (answer.headers.get("Content-Range") or "").removeprefix("bytes ")
        resumed = answer.status == 206 and came.startswith(f"{have}-")
        if answer.status == 206 and not resumed:
            partial.forget()
            raise ConnectionError(f"answered with bytes {came}, not with those from {have}")
        if answer.headers.get_content_type() == "text/html":
            partial.forget()
            raise UserError(f"{url}: {PAGE}")
        if (coding := answer.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
            partial.forget()
            raise UserError(f"{url}: the server encoded the file ({coding[:20]}), which was not requested; use another address")
        total = came.partition("/")[2] if resumed else answer.headers.get("Content-Length")
        size = int(total) if total and total.isdigit() else None
        if not resumed:
            have = 0
            demand_room(url, partial, size or 0)
            write_json(partial.note, {"url": name, "version": version_of(answer.headers), "size": size})
        said = time.monotonic()
        with writing(partial.part, size), partial.part.open("ab" if resumed else "wb") as stream:
            while block := answer.read(CHUNK):
                stream.write(block)
                have += len(block)
                if time.monotonic() - said > LOG_SECONDS:
                    said = time.monotonic()
                    say(f"download: {have / 1e6:.0f}{f' of {size / 1e6:.0f}' if size else ''} MB")
            stream.flush()
            os.fsync(stream.fileno())
    return size


def fetch_all(url: Address, partial: Partial) -> int | None:
    """Download with retries until the file is complete. Returns its size, if known. Raises UserError and keeps the bytes so far."""
    failures, best = 0, -1
    while True:
        nameless = False
        try:
            size = fetch_rest(url, partial)
            have = partial.part.stat().st_size
            if size is None or have == size:
                return size
            problem = f"stopped after {have} of {size} bytes"
            if have > size:
                partial.forget()
        except HTTPError as error:
            error.close()
            problem = f"answers {error.code}" if url.shown else f"answers {error.code} {error.reason}"
            if error.code == 416:  # the bytes so far are not a beginning of the file
                partial.forget()
            elif error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url}: {problem}; {url.advice}") from None
        except (HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, FileNotFoundError) or url.url.startswith("file:"):
                raise UserError(f"{url}: {getattr(reason, 'strerror', None) or reason}") from None
            nameless = isinstance(reason, gaierror) and reason.errno == EAI_NONAME  # as without internet
            problem = url.reason(reason) if isinstance(reason, BaseException) else str(reason)
        have = partial.part.stat().st_size if partial.part.exists() else 0
        failures, best = (0, have) if have > best else (failures + 1, best)
        if failures >= (ATTEMPTS if have or not nameless else 1):
            raise UserError(f"{url}: {problem}; run the step again to resume")
        wait = WAIT * 2**failures
        say(f"download: {problem}; resuming at {have / 1e6:.0f} MB in {wait:.0f} s")
        time.sleep(wait)


def download(url: str | Address, path: Path, wanted: str | None) -> str:
    """Download a file and return its sha256, which must be `wanted` unless that is None.

    A file of the Hugging Face Hub is taken from the user's cache, into which the hub's client downloads it. Of others, an
    unfinished download is kept as .part and resumed. Raises UserError for an address that is not allowed, a refusal, and for an
    HTML page, an unknown size or a wrong hash; in these three cases the bytes are deleted.
    """
    address = Address(url) if isinstance(url, str) else url
    address.demand()
    if path.exists() and (found := sha256(path)) and wanted in (None, found):
        return found
    if address.token is None and (file := HubFile.at(address.url)):
        if not allowed(endpoint := variable("HF_ENDPOINT") or address.url):
            raise UserError(f"HF_ENDPOINT: {endpoint}: only https:// addresses are supported")
        return file.take(path, wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json"))
    size = fetch_all(address, partial)
    with partial.part.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    found = sha256(partial.part)
    refusal = None
    if start.startswith((b"<!doctype html", b"<html")):
        refusal = PAGE
    elif wanted is not None and found != wanted:
        refusal = f"has sha256 {found}, not {wanted}, and was deleted; correct the sha256 or the url"
    elif wanted is None and size is None:
        refusal = "the server does not report its size, so a truncated file would go unnoticed; set its sha256"
    if refusal:
        partial.forget()
        raise UserError(f"{address}: {refusal}")
    partial.part.replace(path)
    partial.forget()
    return found
