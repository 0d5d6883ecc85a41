"""A download survives cuts and takes nothing for a file that is not the whole one."""

import contextlib
import hashlib
import io
import re
import threading
from collections.abc import Iterator
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import EAI_NONAME, gaierror
from urllib.error import URLError

import numpy as np
import pytest

from maskdit.config.base import UserError
from maskdit.images import download as module
from maskdit.images.download import Address, download

DATA = np.random.default_rng(0).bytes(5_000_000)
OTHER = np.random.default_rng(1).bytes(4_000_000)
SHA, OTHER_SHA = (hashlib.sha256(data).hexdigest() for data in (DATA, OTHER))


class Server(ThreadingHTTPServer):
    """What it serves, how it misbehaves, and the ranges that it was asked for."""

    data, etag, kind = DATA, '"one"', "application/octet-stream"
    ranges, sized, status, location = True, True, 0, ""
    cuts: list[int] = []  # noqa: RUF012, set anew by each test: bytes after which each answer ends
    asked: list[str | None] = []  # noqa: RUF012
    tokens: list[str | None] = []  # noqa: RUF012
    sent = 0  # bytes of the file, in all answers
    wrong_span = False
    coding = ""

    def handle_error(self, *words: object) -> None:
        """Nothing: a client that refuses what it gets hangs up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, span = self.server, self.headers.get("Range")
        server.asked.append(span)
        server.tokens.append(self.headers.get("Authorization"))
        if server.status or (server.location and self.path != "/end"):
            self.send_response(server.status or 302)
            self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole, start = server.data, 0
        if span and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.coding:
            self.send_header("Content-Encoding", server.coding)
        if server.sized:
            self.send_header("Content-Length", str(len(whole) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start + server.wrong_span}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        rest = whole[start:]
        rest = rest[: server.cuts.pop(0)] if server.cuts else rest
        server.sent += len(rest)
        self.wfile.write(rest)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.cuts, running.asked, running.tokens = [], [], []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "place" / "weights.pt"


def refused(server: Server, path: Path, wanted: str | None = None) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as refusal:
        download(server.url, path, wanted)
    assert str(refusal.value).startswith(f"{server.url}: ")
    assert "\n" not in str(refusal.value)
    assert not path.exists()
    return str(refusal.value)


def left(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_comes_whole_under_its_name_and_once(server, path):
    assert download(server.url, path, SHA) == SHA
    assert path.read_bytes() == DATA
    assert left(path) == ["weights.pt"]
    assert download(server.url, path, None) == download(server.url, path, SHA) == SHA
    assert server.asked == [None], "what is there is not asked for again"


def test_a_cut_is_gone_on_from(server, path):
    server.cuts = [2_000_000, 1_500_000]
    assert download(server.url, path, SHA) == SHA
    assert server.asked == [None, "bytes=2000000-", "bytes=3500000-"]
    assert path.read_bytes() == DATA


def test_a_later_run_goes_on_from_what_an_earlier_one_left(server, path):
    server.cuts = [3_000_000] + [0] * (module.ATTEMPTS + 1)
    assert "stopped after 3000000 of 5000000 bytes; run the step again to resume" in refused(server, path, SHA)
    assert left(path) == ["weights.pt.part", "weights.pt.part.json"]
    server.cuts, server.asked = [], []
    assert download(server.url, path, SHA) == SHA
    assert server.asked == ["bytes=3000000-"]
    assert left(path) == ["weights.pt"]


def test_without_internet_a_download_is_tried_twice_but_one_that_has_begun_as_often_as_ever(server, path, monkeypatch):
    def nameless(*_):
        asked.append(1)
        raise URLError(gaierror(EAI_NONAME, "Name or service not known"))

    for begun, wanted in ((False, 2), (True, module.ATTEMPTS + 1)):
        asked = []
        if begun:
            server.cuts = [3_000_000] + [0] * (module.ATTEMPTS + 1)
            refused(server, path, SHA)
        with monkeypatch.context() as patch:
            patch.setattr(module, "fetch_rest", nameless)
            assert "Name or service not known; run the step again" in refused(server, path, SHA)
        assert len(asked) == wanted


@pytest.mark.parametrize("why", ["no ranges", "no version", "weak version"])
def test_a_server_that_answers_with_the_whole_file_starts_it_again(server, path, why):
    server.ranges, server.cuts = why != "no ranges", [2_000_000]
    server.etag = {"no version": "", "weak version": 'W/"one"'}.get(why, server.etag)
    assert download(server.url, path, None) == SHA
    assert path.read_bytes() == DATA
    assert server.asked[1] == ("bytes=2000000-" if why == "no ranges" else None)


def test_a_file_that_changed_between_two_cuts_is_not_a_mixture(server, path):
    server.cuts = [2_000_000] + [0] * (module.ATTEMPTS + 1)
    refused(server, path)
    server.data, server.etag, server.cuts, server.asked = OTHER, '"two"', [], []
    assert download(server.url, path, None) == OTHER_SHA
    assert server.asked == ["bytes=2000000-"]


def test_bytes_from_the_wrong_place_are_not_appended(server, path):
    server.cuts, server.wrong_span = [2_000_000], True
    assert download(server.url, path, SHA) == SHA
    assert server.asked == [None, "bytes=2000000-", None]


def test_a_part_of_another_address_is_not_gone_on_from(server, path):
    server.cuts = [2_000_000] + [0] * (module.ATTEMPTS + 1)
    refused(server, path)
    server.cuts, server.asked = [], []
    assert download(f"{server.url}?again", path, SHA) == SHA
    assert server.asked == [None]


def test_a_part_longer_than_the_file_is_thrown_away(server, path):
    server.cuts = [2_000_000] + [0] * (module.ATTEMPTS + 1)
    refused(server, path)
    with path.with_name("weights.pt.part").open("ab") as stream:
        stream.write(b"x" * 4_000_000)
    server.cuts = []
    assert download(server.url, path, SHA) == SHA


@pytest.mark.parametrize("what", ["hash", "html by its type", "html by its text", "no size and no hash"])
def test_what_is_not_the_file_is_refused_and_not_kept(server, path, what):
    match what:
        case "hash":
            assert f"has sha256 {SHA}, not {'0' * 64}" in refused(server, path, "0" * 64)
        case "html by its type":
            server.kind = "text/html; charset=utf-8"
            assert "is an HTML page, not a file" in refused(server, path)
        case "html by its text":
            server.data = b"\n <!DOCTYPE html><html>log in</html>"
            assert "is an HTML page, not a file" in refused(server, path)
        case _:
            server.sized = False
            assert "does not report its size" in refused(server, path)
            assert download(server.url, path, SHA) == SHA, "with a hash a size is not needed"
            path.unlink()
    assert left(path) == []


def test_a_file_that_is_there_with_another_hash_is_fetched_again(server, path):
    path.parent.mkdir()
    path.write_bytes(b"old")
    assert download(server.url, path, SHA) == SHA
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_of_the_server_is_one_line_at_once(server, path, status):
    server.status = status
    assert f"answers {status}" in refused(server, path)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server, path):
    server.status = 503
    assert "answers 503" in refused(server, path)
    assert len(server.asked) == module.ATTEMPTS + 1


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "x.pt", "http://127.0.0.1.example.org/x"])
def test_only_https_is_read(url, path):
    with pytest.raises(UserError, match="only https:// and file:// addresses are supported"):
        download(url, path, None)


@pytest.mark.parametrize("place", ["http://example.org/x", "file:///etc/hostname"])
def test_a_redirection_away_from_https_is_refused(server, path, place):
    server.location = place
    assert re.search(rf"redirects to {place}, which is not https|'{place}' is not allowed", refused(server, path))


@pytest.mark.parametrize(
    "place", ["127.0.0.1", "10.1.2.3", "192.168.0.7", "169.254.169.254", "localhost", "[::1]", "[fd00::1]", "0.0.0.0"]
)
def test_a_public_host_redirects_nobody_into_a_private_network(place):
    ours, theirs = Address("https://93.184.215.14/x"), f"https://{place}:8080/y"
    with pytest.raises(
        UserError, match=r"redirects to https://.* in a private network; if you trust it, put that address into params.yaml"
    ):
        module.Redirects(ours).redirect_request(ours.request(), io.BytesIO(), 302, "", HTTPMessage(), theirs)
    inside = Address("https://10.9.9.9/x")
    assert module.Redirects(inside).redirect_request(inside.request(), io.BytesIO(), 302, "", HTTPMessage(), theirs)


def test_a_name_that_means_a_private_address_here_is_one(monkeypatch):
    monkeypatch.setattr(module, "getaddrinfo", lambda host, port: [(0, 0, 0, "", ("10.0.0.1" if "in" in host else "8.8.8.8", 0))])
    assert module.internal("https://inside.example/x")
    assert not module.internal("https://out.example/x")


def test_an_encoded_answer_is_refused_not_kept(server, path):
    server.coding = "gzip"
    assert "the server encoded the file (gzip), which was not requested" in refused(server, path)
    assert left(path) == []


def test_a_file_of_this_machine_is_copied_and_a_missing_one_is_named(tmp_path, path):
    (tmp_path / "x.pt").write_bytes(DATA)
    assert download((tmp_path / "x.pt").as_uri(), path, SHA) == SHA
    assert path.read_bytes() == DATA
    with pytest.raises(UserError, match=r"y\.pt: .*No such file") as refusal:
        download((tmp_path / "y.pt").as_uri(), tmp_path / "y2.pt", None)
    assert "\n" not in str(refusal.value)


def test_a_token_goes_to_its_own_host_and_on_there_but_to_no_other(server, tmp_path):
    with Server(("127.0.0.1", 0), Handler) as other:
        other.tokens = []
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        for number, host in enumerate((server, other)):
            server.location = f"http://127.0.0.1:{host.server_port}/end"
            assert download(Address(server.url, "s3cret"), tmp_path / str(number), None) == SHA
        other.shutdown()
        thread.join()
    assert server.tokens == ["Bearer s3cret"] * 3
    assert other.tokens == [None]


@pytest.mark.parametrize("way", ["ranges", "no ranges", "changes", "wrong hash", "page"])
def test_after_any_cuts_it_is_the_right_file_or_a_clear_refusal_and_hardly_a_byte_comes_twice(server, tmp_path, way):
    for seed in range(20):  # 100 in all
        chance = np.random.default_rng([seed, len(way)])
        whole, other = chance.bytes(int(chance.integers(1, 400_000))), chance.bytes(200_000)
        server.data, server.etag, server.kind, server.ranges = whole, f'"{seed}"', "application/octet-stream", way != "no ranges"
        server.cuts, server.sent, server.asked = chance.integers(0, len(whole) // 2 + 1, 4).tolist(), 0, []
        right, path = hashlib.sha256(whole).hexdigest(), tmp_path / f"{seed}"
        match way:
            case "changes":
                server.cuts += [0] * (module.ATTEMPTS + 1)
                with contextlib.suppress(UserError):
                    download(server.url, path, right)
                server.data, server.etag, server.cuts = other, '"other"', [1000]
                right = hashlib.sha256(other).hexdigest()
                path.unlink(missing_ok=True)  # where the first one came whole
            case "wrong hash":
                right = "0" * 64
            case "page":
                server.data = b"<!DOCTYPE html>" + whole
        if way in ("wrong hash", "page"):
            with pytest.raises(UserError, match=r"has sha256|is an HTML page"):
                download(server.url, path, right)
            assert not list(tmp_path.glob(f"{seed}*"))
        else:
            assert download(server.url, path, right) == right
            assert path.read_bytes() == server.data
        if way in ("ranges", "wrong hash", "page"):
            assert server.sent <= 1.05 * len(server.data)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "no-such-host.invalid"])
def test_a_host_that_cannot_be_found_is_no_private_one(host):
    assert not module.internal(f"https://{host}/x")
