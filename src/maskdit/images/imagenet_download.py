"""ImageNet-1k from where its terms allow: the Hugging Face hub, image-net.org, Kaggle."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.config.images import ImageNet
from maskdit.images.download import Address, download, headers_of
from maskdit.images.imagenet import COMPETITION, DEVKIT, REVISION, form, home
from maskdit.runtime.progress import say

SHARDS = {"train": 294, "validation": 14}
TARS = {  # name: bytes, sha256
    "ILSVRC2012_img_train.tar": (147_897_477_120, "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb"),
    "ILSVRC2012_img_val.tar": (6_744_924_160, "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"),
}
DEVKIT_SHA256 = "b59243268c0d266621fd587d2018f69e906fb22875aca0e295b48cafaa927953"
PAGE = "huggingface.co/datasets/ILSVRC/imagenet-1k"
FORMS = "train/<wnid>/ and val/, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, Kaggle's zip, or the hub's parquet files"


def acquire(config: ImageNet, plan: str) -> None:
    """Get ImageNet into the root, if no form of it is there and the entry says where from; files that are whole stay.

    Raises UserError, in one line, for what is missing: the files, the terms, a token, an address, a client, room on the disk.
    """
    root = Path(config.root)
    say(f"fetch: {plan}")
    if home(root, "train") or (root / f"{COMPETITION}.zip").exists():
        return
    match config.origin:
        case "local":
            if form(root) is None:
                raise UserError(
                    f"{root}: holds no ImageNet; lay or link there {FORMS}, or set origin: huggingface, official or kaggle"
                )
        case "huggingface":
            from_hub(root)
        case "official":
            from_official(root)
        case "kaggle":
            from_kaggle(root)


def room(root: Path, needed: int) -> None:
    """Raise UserError unless so many bytes fit where the root is."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(f"{root}: {needed / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free; link it to a larger disk")


def from_hub(root: Path) -> None:
    """The parquet files of the pinned revision, by the token in HF_TOKEN; each is checked by the hash that the hub tells."""
    token = os.environ.get("HF_TOKEN", "").strip()
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    names = [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for split, count in SHARDS.items() for number in range(count)]
    missing = [name for name in names if not (root / name).exists()]
    if missing and not token:
        raise UserError(
            f"fetch: origin: huggingface needs HF_TOKEN in the environment; accept the terms on {PAGE}, make a token there"
        )
    room(root, 500_000_000 * len(missing))
    for place, name in enumerate(missing):
        say(f"fetch: {name}, {place + 1} of {len(missing)}")
        url = f"{base}/datasets/ILSVRC/imagenet-1k/resolve/{REVISION}/{name}"
        address = Address(url, token, advice=f"accept the terms on {PAGE}, and set HF_TOKEN to a token of that account")
        download(address, root / name, lfs_hash(address))


def lfs_hash(address: Address) -> str | None:
    """The sha256 of a large file as the hub tells it before it redirects, None if it does not."""
    tag = (headers_of(address).get("X-Linked-Etag") or "").strip('"')
    return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None


def from_official(root: Path) -> None:
    """The two tars, and the labels of the second, from the personal address in IMAGENET_URL; it is shown nowhere."""
    base = os.environ.get("IMAGENET_URL", "").rstrip("/")
    missing = {name: known for name, known in TARS.items() if not whole(root / name, known[0])}
    if missing and not base:
        names = " and ".join(missing)
        raise UserError(
            f"fetch: {root} lacks {names}; lay them there, or set IMAGENET_URL to the folder that image-net.org gives you"
        )
    room(root, sum(size for size, _ in missing.values()))
    wanted = {name: known for name, (_, known) in missing.items()}
    if base and not (root / DEVKIT).exists():
        wanted[DEVKIT] = DEVKIT_SHA256
    for name, known in wanted.items():
        shown, advice = f"IMAGENET_URL/{name}", "correct IMAGENET_URL, which must end before the file's name"
        download(Address(f"{base}/{name}", shown=shown, advice=advice), root / name, known)


def whole(path: Path, size: int) -> bool:
    """Whether a file is there with this size."""
    return path.exists() and path.stat().st_size == size


def from_kaggle(root: Path) -> None:
    """Kaggle's zip, by its own client, which asks for its own credentials."""
    client = shutil.which("kaggle")
    if client is None:
        raise UserError(
            "fetch: origin: kaggle needs its client (pip install kaggle), a token of it, and the competition's rules accepted"
        )
    room(root, 170_000_000_000)
    half = root / ".kaggle"  # what is cut there is not taken for the whole
    done = subprocess.run([client, "competitions", "download", "--competition", COMPETITION, "--path", str(half)])
    if done.returncode == 0 and (half / f"{COMPETITION}.zip").exists():
        (half / f"{COMPETITION}.zip").rename(root / f"{COMPETITION}.zip")
        half.rmdir()
    else:
        raise UserError(
            f"fetch: Kaggle's client did not bring {COMPETITION}.zip; accept the rules on the competition's page, run it again"
        )
