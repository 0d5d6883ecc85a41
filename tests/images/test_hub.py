"""What lies on the Hugging Face Hub comes through the user's cache, from his mirror or without a network, and is the right file."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from maskdit.config.base import UserError
from maskdit.images.download import download
from maskdit.images.hub import HubFile

REPO, COMMIT, NAME = "some-body/sd.vae", "f04b2c4b98319346dad8c65879f680b1997b204a", "diffusion_pytorch_model.safetensors"
URL = f"https://huggingface.co/{REPO}/resolve/{COMMIT}/{NAME}"
DATA = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Hub(ThreadingHTTPServer):
    """As much of the hub as its client asks of it: one file of one commit, by HEAD and by GET with ranges."""

    status = 0
    cuts: list[int] = []  # noqa: RUF012, set anew by each test: bytes after which an answer ends
    asked: list[str] = []  # noqa: RUF012
    tokens: set[str | None] = set()  # noqa: RUF012

    def handle_error(self, *words: object) -> None:
        """Nothing."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, span = self.server, self.headers.get("Range")
        hub.tokens.add(self.headers.get("Authorization"))
        known = self.path == f"/{REPO}/resolve/{COMMIT}/{NAME}"
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(hub.status or (404 if not known else 206 if span else 200))
        self.send_header("X-Repo-Commit", COMMIT)
        if not known:
            self.send_header("X-Error-Code", "EntryNotFound")
        whole = DATA if known and not hub.status else b""
        self.send_header("ETag", f'"{SHA}"')
        self.send_header("Content-Length", str(len(whole) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if self.command == "GET":
            hub.asked += [self.path] * known  # the client also asks the mirror about itself
            rest = whole[start:]
            self.wfile.write(rest[: hub.cuts.pop(0)] if known and hub.cuts else rest)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), Handler) as running:
        running.cuts, running.asked, running.tokens = [], [], set()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


PROGRAM = """
import sys
from pathlib import Path
from maskdit.config.base import UserError
from maskdit.images.download import download
try:
    print(download(sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None))
except UserError as error:
    print(error)
"""


def taken(hub: Hub, home: Path, name: str, url: str = URL, wanted: str = SHA, **variables: str) -> str:
    """What a process says that downloads a file to `home / name`: its sha256, or the line of a refusal."""
    mine = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home / "hf"), "no_proxy": "*"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    words = [sys.executable, "-c", PROGRAM, url, str(home / name), wanted]
    done = subprocess.run(words, env={**kept, **mine, **variables}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def blob(home: Path) -> Path:
    [found] = (home / "hf").rglob(f"blobs/{SHA}")
    return found


def test_a_file_comes_from_the_mirror_once_and_then_from_the_cache_without_a_network(hub, tmp_path):
    assert taken(hub, tmp_path, "one", HF_TOKEN="hf_mine") == SHA
    assert "Bearer hf_mine" in hub.tokens
    assert taken(hub, tmp_path, "two", HF_HUB_OFFLINE="1") == SHA
    assert len(hub.asked) == 1
    for name in ("one", "two"):
        assert (tmp_path / name).read_bytes() == DATA
        assert not (tmp_path / name).samefile(blob(tmp_path)), "a file of its own, whatever happens to the cache"


def test_without_a_network_what_the_cache_lacks_is_named_with_the_command_that_gets_it(hub, tmp_path):
    line = taken(hub, tmp_path, "one", HF_HUB_OFFLINE="1")
    assert line == (
        f"{NAME} of {REPO}: HF_HUB_OFFLINE is set, and the cache has no intact copy; "
        f"where there is a network, run hf download {REPO} {NAME} --revision {COMMIT}"
    )
    assert not hub.asked


def test_a_file_that_was_damaged_in_the_cache_is_downloaded_again(hub, tmp_path):
    assert taken(hub, tmp_path, "one") == SHA
    blob(tmp_path).write_bytes(DATA[::-1])
    assert "HF_HUB_OFFLINE is set, and the cache has no intact copy" in taken(hub, tmp_path, "two", HF_HUB_OFFLINE="1")
    assert taken(hub, tmp_path, "two", wanted="") == SHA
    assert (tmp_path / "two").read_bytes() == DATA


def test_an_answer_that_was_cut_is_asked_for_again(hub, tmp_path):
    hub.cuts = [100_000]
    assert taken(hub, tmp_path, "one") == SHA
    assert len(hub.asked) == 2


def test_another_hash_than_the_declared_one_is_refused(hub, tmp_path):
    line = taken(hub, tmp_path, "one", wanted="0" * 64)
    assert line == f"{NAME} of {REPO}: has sha256 {SHA}, not {'0' * 64}; correct the sha256 or the url"
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("why", ["no such file", "no such mirror", "gated"])
def test_a_refusal_of_the_hub_is_one_line(why, hub, tmp_path):
    hub.status = 403 if why == "gated" else 0
    line = taken(
        hub,
        tmp_path,
        "one",
        URL.replace("diffusion", "confusion") if why == "no such file" else URL,
        **{"HF_ENDPOINT": "http://example.org"} if why == "no such mirror" else {},
    )
    if why == "no such mirror":
        assert line == "HF_ENDPOINT: http://example.org: only https:// addresses are supported"
    else:
        assert {"no such file": "404", "gated": "403"}[why] in line
        assert line.endswith("check the network, HF_ENDPOINT and, for a gated repository, HF_TOKEN, then run it again")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("url", "file"),
    [
        (URL, HubFile("model", REPO, COMMIT, NAME)),
        ("https://huggingface.co/datasets/a/b/resolve/main/data/x.parquet", HubFile("dataset", "a/b", "main", "data/x.parquet")),
        ("https://huggingface.co/a/b/blob/main/x", None),
        ("https://huggingface.co.example.org/a/b/resolve/main/x", None),
        ("https://huggingface.co/a/b/resolve/main/x?download=true", None),
        ("https://example.org/a/b/resolve/main/x", None),
    ],
)
def test_an_address_of_the_hub_is_known(url, file):
    assert HubFile.at(url) == file


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a/../../b"])
def test_a_name_that_leads_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot contain"):
        download(f"https://huggingface.co/a/b/resolve/main/{name}", tmp_path / "x", None)
