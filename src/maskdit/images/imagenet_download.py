"""Downloads ImageNet-1k from the places that its terms allow: the Hugging Face Hub, image-net.org and Kaggle."""

import re
import shutil
import subprocess
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.config.images import ImageNet
from maskdit.images.download import Address, download, headers_of
from maskdit.images.hub import HubFile
from maskdit.images.imagenet import COMPETITION, DEVKIT, REVISION, form, home
from maskdit.runtime.progress import say
from maskdit.runtime.variables import variable

SHARDS = {"train": 294, "validation": 14}
TARS = {  # name: bytes, sha256
    "ILSVRC2012_img_train.tar": (147_897_477_120, "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb"),
    "ILSVRC2012_img_val.tar": (6_744_924_160, "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"),
}
DEVKIT_SHA256 = "b59243268c0d266621fd587d2018f69e906fb22875aca0e295b48cafaa927953"
PAGE = "huggingface.co/datasets/ILSVRC/imagenet-1k"
FORMS = "train/<wnid>/ and val/, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, Kaggle's zip, or the hub's parquet files"


def acquire(config: ImageNet) -> None:
    """Download ImageNet from the entry's origin, unless the root already contains a form of it. Complete files are kept.

    Raises UserError if files, accepted terms, a token, an address, a client or disk space are missing.
    """
    root = Path(config.root)
    if home(root, "train") or (root / f"{COMPETITION}.zip").exists():
        return
    if config.origin != "local":
        {"huggingface": from_hub, "official": from_official, "kaggle": from_kaggle}[config.origin](root)
    elif form(root) is None:
        raise UserError(f"{root}: contains no ImageNet; copy or link there {FORMS}, or set another origin")


def room(root: Path, needed: int) -> None:
    """Raise UserError unless the disk of the root has this many bytes free."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(f"{root}: the download needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; link it to a larger disk")


def from_hub(root: Path) -> None:
    """Link the parquet files of the pinned revision from the hub's cache, and download others with the token in HF_TOKEN.

    A download is checked against the hub's hash.
    """
    token = variable("HF_TOKEN") or ""
    base = (variable("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    names = [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for split, count in SHARDS.items() for number in range(count)]
    files = {name: HubFile("dataset", "ILSVRC/imagenet-1k", REVISION, name) for name in names if not (root / name).exists()}
    for name, file in files.items():
        if kept := file.kept():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).unlink(missing_ok=True)  # a link that leads nowhere
            (root / name).symlink_to(kept)
    missing = [name for name in files if not (root / name).exists()]
    if missing and not token:
        raise UserError(f"fetch: origin: huggingface needs HF_TOKEN; accept the terms on {PAGE} and create a token")
    room(root, 500_000_000 * len(missing))
    for place, name in enumerate(missing):
        say(f"fetch: {name}, {place + 1} of {len(missing)}")
        url = f"{base}/datasets/ILSVRC/imagenet-1k/resolve/{REVISION}/{name}"
        address = Address(url, token, advice=f"accept the terms on {PAGE}, and set HF_TOKEN to a token of that account")
        tag = (headers_of(address).get("X-Linked-Etag") or "").strip('"')  # sha256 of a large file
        download(address, root / name, tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None)


def from_official(root: Path) -> None:
    """Download both tars and the development kit from the personal address in IMAGENET_URL, which is never printed or stored."""
    base = (variable("IMAGENET_URL") or "").rstrip("/")
    missing = [name for name, (size, _) in TARS.items() if not (root / name).exists() or (root / name).stat().st_size != size]
    if missing and not base:
        lacking = f"{root} lacks {' and '.join(missing)}"
        raise UserError(f"fetch: {lacking}; copy them there, or set IMAGENET_URL to the folder that image-net.org gives you")
    room(root, sum(TARS[name][0] for name in missing))
    wanted = {name: TARS[name][1] for name in missing}
    if base and not (root / DEVKIT).exists():
        wanted[DEVKIT] = DEVKIT_SHA256
    for name, known in wanted.items():
        shown, advice = f"IMAGENET_URL/{name}", "correct IMAGENET_URL, which must not include the file name"
        download(Address(f"{base}/{name}", shown=shown, advice=advice), root / name, known)


def from_kaggle(root: Path) -> None:
    """Download Kaggle's zip with Kaggle's own client, which finds its own credentials."""
    client = shutil.which("kaggle")
    if client is None:
        raise UserError(
            "fetch: origin: kaggle needs its client: pip install kaggle, create a token, accept the competition's rules"
        )
    room(root, 170_000_000_000)
    half = root / ".kaggle"  # so that a partial download is not mistaken for the zip
    done = subprocess.run([client, "competitions", "download", "--competition", COMPETITION, "--path", str(half)])
    if done.returncode or not (half / f"{COMPETITION}.zip").exists():
        raise UserError(
            f"fetch: Kaggle's client did not download {COMPETITION}.zip; accept the competition's rules, then try again"
        )
    (half / f"{COMPETITION}.zip").rename(root / f"{COMPETITION}.zip")
    half.rmdir()
