"""A large file from the net: resumed where it was cut, checked, and only then given its name."""

import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from maskdit.artifacts.atomic import read_json, sha256, write_json, writing
from maskdit.config.base import UserError
from maskdit.runtime.progress import LOG_SECONDS, say

ATTEMPTS = 5  # in a row without a byte more
WAIT = 2.0  # seconds before the first of them, twice as many before each next
TIMEOUT = 60.0  # seconds without an answer
CHUNK = 2**20


def allowed(url: str) -> bool:
    """Whether a file may come from there: https, a file, or this machine's own loopback."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    try:
        loopback = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    return parts.scheme in ("https", "file") or (parts.scheme == "http" and loopback)


def name_of(url: str) -> str:
    """The name of a file by its address; 'weights' where that is none that is harmless."""
    name = Path(unquote(urlsplit(url).path)).name
    return name if re.fullmatch(r"\w[\w.+-]*", name) else "weights"


@dataclass(frozen=True)
class Address:
    """Where a file is; `token` is told to that host alone, and `shown` stands in its place where the address is a secret.

    advice: what to do if the server refuses.
    """

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    shown: str = ""
    advice: str = "correct the url"

    def __str__(self) -> str:
        return self.shown or self.url

    def demand(self) -> None:
        """Raise UserError unless the address is allowed, and the token one that can be sent."""
        if not allowed(self.url):
            raise UserError(f"{self}: only https:// and file:// are read")
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise UserError(f"{self}: the token is empty, or holds blanks or other characters that no token has; set it again")

    def request(self, **headers: str) -> Request:
        """A request whose token urllib itself does not send on when the host sends on."""
        request = Request(self.url, headers={"Accept-Encoding": "identity", "User-Agent": "maskdit", **headers})
        self.sign(request)
        return request

    def sign(self, request: Request) -> None:
        """Add the token if the request is to this address's own host."""
        ours, theirs = urlsplit(self.url), urlsplit(request.full_url)
        if self.token and (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")

    def reason(self, error: BaseException) -> str:
        """What an error says, without what it may tell of a secret address."""
        if self.shown:
            return getattr(error, "strerror", None) or type(error).__name__
        return " ".join(str(error).split()) or type(error).__name__


class Redirects(HTTPRedirectHandler):
    """Redirections, but only to where a file may come from; urllib itself follows none to a file of this machine."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Any:
        """The request to follow; raises UserError for one that leaves https."""
        if not allowed(newurl):
            fp.close()
            place = "an address" if self.address.shown else newurl
            raise UserError(f"{self.address}: sends on to {place}, which is not https")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.address.sign(request)
        return request


class Stay(HTTPRedirectHandler):
    """No redirection at all."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        """None: the answer itself is wanted."""


def headers_of(address: Address) -> Any:
    """What the host itself tells of a file before it sends on; empty if it refuses to tell."""
    address.demand()
    request = address.request()
    request.method = "HEAD"
    try:
        with build_opener(Stay).open(request, timeout=TIMEOUT) as answer:
            return answer.headers
    except HTTPError as error:
        error.close()
        return error.headers if error.code in (301, 302, 303, 307, 308) else HTTPMessage()
    except (HTTPException, OSError):
        return HTTPMessage()


@dataclass(frozen=True)
class Partial:
    """A download under way: the bytes so far, and beside them what they are part of."""

    part: Path
    note: Path

    def known(self, url: str) -> tuple[int, str | None, int | None]:
        """Bytes so far, the version that they are of, and its size; nothing if they cannot be gone on from."""
        if not self.part.exists() or not self.note.exists():
            return 0, None, None
        note = read_json(self.note)
        if note["url"] != url or note["version"] is None:
            return 0, None, None
        return self.part.stat().st_size, note["version"], note["size"]

    def forget(self) -> None:
        """Remove both."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def version_of(headers: Any) -> str | None:
    """What If-Range may compare: a strong ETag, else the date; None: a cut download starts again."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def demand_room(address: Address, partial: Partial, size: int) -> None:
    """Raise UserError unless a file of this size, which takes the place of what is there of it, fits on its disk."""
    old = partial.part.stat().st_size if partial.part.exists() else 0
    free = shutil.disk_usage(partial.part.parent).free + old
    if free < size:
        place = partial.part.parent
        raise UserError(
            f"{address}: has {size / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; make room, or link it elsewhere"
        )


def fetch_rest(url: Address, partial: Partial) -> int | None:
    """Ask for what is missing and append it; the size of the whole, None if the server does not tell.

    A server that answers with the whole file, since it knows no ranges or the file has changed, makes it start again.
    Raises UserError for a page in place of a file, OSError or HTTPException for what another attempt may mend.
    """
    name = hashlib.sha256(url.url.encode()).hexdigest()  # an address may be a secret
    have, version, size = partial.known(name)
    if size is not None and have == size:
        return size
    span = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    with build_opener(Redirects(url)).open(url.request(**span), timeout=TIMEOUT) as answer:
        came = (answer.headers.get("Content-Range") or "").removeprefix("bytes ")
        resumed = answer.status == 206 and came.startswith(f"{have}-")
        if answer.status == 206 and not resumed:
            partial.forget()
            raise ConnectionError(f"answers with bytes {came}, asked for those from {have}")
        if answer.headers.get_content_type() == "text/html":
            partial.forget()
            raise UserError(f"{url}: answers with a page, not a file; open it in a browser to see what it says")
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
    """Go on until all is there; the size of the whole. Raises UserError if that comes to nothing; what came is kept."""
    failures, best = 0, -1
    while True:
        try:
            size = fetch_rest(url, partial)
            have = partial.part.stat().st_size
            if size is None or have == size:
                return size
            problem = f"ends after {have} of {size} bytes"
            if have > size:
                partial.forget()
        except HTTPError as error:
            error.close()
            problem = f"answers {error.code}" if url.shown else f"answers {error.code} {error.reason}"
            if error.code == 416:  # what we have is no beginning of what they have
                partial.forget()
            elif error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url}: {problem}; {url.advice}") from None
        except (HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, FileNotFoundError) or url.url.startswith("file:"):
                raise UserError(f"{url}: {getattr(reason, 'strerror', None) or reason}") from None
            problem = url.reason(reason) if isinstance(reason, BaseException) else str(reason)
        have = partial.part.stat().st_size if partial.part.exists() else 0
        failures, best = (0, have) if have > best else (failures + 1, best)
        if failures >= ATTEMPTS:
            raise UserError(f"{url}: {problem}; run it again to go on")
        say(f"download: {problem}; going on from {have / 1e6:.0f} MB")
        time.sleep(WAIT * 2**failures)


def download(url: str | Address, path: Path, wanted: str | None) -> str:
    """Get a file and return its sha256; `wanted` is what it must be, None to take what comes.

    What is half there lies beside it as .part and is gone on from. Raises UserError, in one line, for an address that is not https,
    a refusal, a page of HTML, a wrong size or a wrong hash; of the last three nothing is kept.
    """
    address = Address(url) if isinstance(url, str) else url
    address.demand()
    if path.exists() and (found := sha256(path)) and wanted in (None, found):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json"))
    size = fetch_all(address, partial)
    with partial.part.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    found = sha256(partial.part)
    refusal = None
    if start.startswith((b"<!doctype html", b"<html")):
        refusal = "is a page, not a file; open it in a browser to see what it says"
    elif wanted is not None and found != wanted:
        refusal = f"has sha256 {found}, not {wanted}; nothing is kept"
    elif wanted is None and size is None:
        refusal = "does not tell its size, so a cut would go unseen; name its sha256"
    if refusal:
        partial.forget()
        raise UserError(f"{address}: {refusal}")
    partial.part.replace(path)
    partial.forget()
    return found
