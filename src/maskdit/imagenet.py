"""ImageNet-1k (ILSVRC 2012) in every form that it comes in, got from where its terms allow, and read where it lies."""

import csv
import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from maskdit import tars
from maskdit.config import UserError
from maskdit.download import Address, download, headers_of
from maskdit.runtime import say
from maskdit.sources import ImageNet, PublishedLatents
from maskdit.store import RECORD, TABLE, Found, classified, gathered, listed, records_of

REVISION = "49e2ee26f3810fb5a7536bbf732a7b07389a47b5"  # of ILSVRC/imagenet-1k on the hub
SHARDS = {"train": 294, "validation": 14}
TARS = {  # name: bytes, sha256
    "ILSVRC2012_img_train.tar": (147_897_477_120, "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb"),
    "ILSVRC2012_img_val.tar": (6_744_924_160, "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"),
}
COMPETITION = "imagenet-object-localization-challenge"
WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_SHA256 = "b59243268c0d266621fd587d2018f69e906fb22875aca0e295b48cafaa927953"
SOLUTION = "LOC_val_solution.csv"
CLASSES = 2**16  # at most
LARGEST = 2**24  # bytes of a list of labels
PAGE = "huggingface.co/datasets/ILSVRC/imagenet-1k"
FORMS = "train/<wnid>/ and val/, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, Kaggle's zip, or the hub's parquet files"


def form(root: Path) -> str | None:
    """Which form of ImageNet lies in a folder."""
    if home(root, "train") is not None:
        return "folders"
    if (root / "ILSVRC2012_img_train.tar").exists():
        return "tars"
    if (root / f"{COMPETITION}.zip").exists():
        return "kaggle"
    if tables(root, "train"):
        return "tables"
    return None


def home(root: Path, split: str) -> Path | None:
    """The folder of a split, as the tars or Kaggle's archive unpack to; None if there is none with something in it."""
    names = (split, f"ILSVRC/Data/CLS-LOC/{split}", *(["validation"] if split == "val" else []))
    return next((root / name for name in names if any((root / name).glob("*"))), None)


def tables(root: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order; raises UserError if their names tell that one is missing."""
    files = sorted([*root.glob(f"{split}-*.parquet"), *root.glob(f"data/{split}-*.parquet")])
    for number, path in enumerate(files):
        told = re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", path.name)
        if told and (int(told[1]) != number or int(told[2]) != len(files)):
            raise UserError(f"{path.parent}: {len(files)} of {int(told[2])} files {split}-*.parquet; get the others, or all again")
    return files


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


def scanned(config: ImageNet) -> tuple[Found, Found]:
    """The training images, sorted by wnid and name, and the validation images; labels of the latter are -1 where none are told."""
    root = Path(config.root)
    match form(root):
        case "folders":
            train, validation = below(root, home(root, "train")), below(root, home(root, "val"))
        case "tars":
            train, validation = (
                in_files(root, [root / "ILSVRC2012_img_train.tar"]),
                in_files(root, [root / "ILSVRC2012_img_val.tar"]),
            )
        case "kaggle":
            path = root / f"{COMPETITION}.zip"
            every = in_files(root, [path])
            base = "ILSVRC/Data/CLS-LOC"
            train, validation = (part(every, f"{base}/{split}/") for split in ("train", "val"))
        case _:
            train, validation = (in_tables(root, split) for split in ("train", "validation"))
    if len(validation) and not validation.classes and (answers := solution(root)):
        validation = told(validation, answers)
    if not config.validation:
        validation = validation.only(np.arange(0))
    if len(train) and not train.classes:
        raise UserError(f"{root}: {train.names[0]} lies in no wnid (n and eight digits), which the folder of an image is")
    return train, validation


def below(root: Path, folder: Path | None) -> Found:
    """The images below a folder of the root, and in archives there; none without a folder."""
    if folder is None:
        return in_files(root, [])
    loose = in_files(root, listed(folder))
    prefix = f"{folder.relative_to(root)}/"
    return named(replace(loose, names=tuple(name.removeprefix(prefix) for name in loose.names)))


def in_files(root: Path, files: list[Path]) -> Found:
    """The images of some files, by name."""
    containers, sizes, found = gathered(root, [path for path in files if path.exists()])
    found = sorted(found, key=lambda each: each[1][0])
    names = tuple(entry[0] for _, entry in found)
    labels = np.full(len(names), -1)
    return named(Found(root, tuple(containers), tuple(sizes), records_of(found), names, labels, ()))


def part(found: Found, prefix: str) -> Found:
    """The images whose names begin so, without it."""
    rows = np.array([row for row, name in enumerate(found.names) if name.startswith(prefix)], int)
    kept = found.only(rows)
    return named(replace(kept, names=tuple(name.removeprefix(prefix) for name in kept.names)))


def named(found: Found) -> Found:
    """With labels and classes by the folders in the names, if those are wnids; else neither is known."""
    labels, classes = classified(found.names)
    if all(WNID.fullmatch(name) for name in classes):
        return replace(found, labels=labels, classes=classes)
    return replace(found, labels=np.full(len(found), -1), classes=())


def told(found: Found, wnids: dict[str, str]) -> Found:
    """With the class of each image by the stem of its file."""
    classes = tuple(sorted(set(wnids.values())))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number.get(wnids.get(Path(name).stem, ""), -1) for name in found.names]
    return replace(found, labels=np.array(labels, np.int64), classes=classes)


def solution(root: Path) -> dict[str, str]:
    """The wnid of each validation image, by its stem: from Kaggle's table, beside or in its zip, or the development kit.

    Raises UserError if what tells them is damaged; empty if nothing tells them.
    """
    table, archive, kit = root / SOLUTION, root / f"{COMPETITION}.zip", root / DEVKIT
    try:
        if table.exists():
            with table.open("rb") as stream:
                return from_csv(stream)
        if archive.exists():
            with zipfile.ZipFile(archive) as members:
                if SOLUTION in members.namelist():
                    with members.open(SOLUTION) as stream:
                        return from_csv(stream)
        return from_kit(kit) if kit.exists() else {}
    except (ValueError, LookupError, zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"{root}: the labels of the validation images cannot be read ({error}); get their file again") from None


def from_csv(stream: IO[bytes]) -> dict[str, str]:
    """Kaggle's table: an image's name, and its wnid before the boxes."""
    rows = csv.DictReader(io.StringIO(stream.read(LARGEST).decode()))
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def from_kit(path: Path) -> dict[str, str]:
    """The development kit: numbers of the classes of the images in order, and Matlab's table of the numbers' wnids."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    with gzip.open(path) as kit:
        for member in tars.members(kit):
            name = PurePosixPath(member.name).name
            if member.isreg() and name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt") and member.size <= LARGEST:
                kit.seek(member.offset_data)
                found[name] = kit.read(member.size)
    synsets = loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = found["ILSVRC2012_validation_ground_truth.txt"].split()
    return {f"ILSVRC2012_val_{place:08d}": wnids[int(number)] for place, number in enumerate(numbers, 1)}


def in_tables(root: Path, split: str) -> Found:
    """The images of parquet tables; labels are the tables' own, which must follow the wnids in the names."""
    from pyarrow import ArrowException, parquet

    records, names, labels = [], [], []
    files = tables(root, split)
    for container, path in enumerate(files):
        try:
            table = parquet.ParquetFile(path)
            for group in range(table.num_row_groups):
                columns = table.read_row_group(group, columns=["image.path", "label"])
                known = columns.column("label").to_pylist()
                told_names = columns.column("image").combine_chunks().field("path").to_pylist()
                records += [(container, TABLE, group, row, 0) for row in range(len(known))]
                names += [name or f"{path.name}/{group}/{row}" for row, name in enumerate(told_names)]
                labels += [-1 if label is None else label for label in known]
        except (ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not one of the hub's tables ({next(iter(str(error).splitlines()), '')}); get it again"
            ) from None
    if odd := [label for label in labels if not isinstance(label, int) or not -1 <= label < CLASSES]:
        raise UserError(f"{root}: {split} has the label {str(odd[0])[:20]}, which is no class; get the tables again")
    wnids = [WNID.search(name) for name in names]
    pairs = sorted({(label, found[0]) for label, found in zip(labels, wnids, strict=True) if found})
    told_by_name = dict(pairs)
    if len(told_by_name) < len(pairs) or [wnid for _, wnid in pairs] != sorted(set(told_by_name.values())):
        raise UserError(f"{root}: labels of {split} do not follow the order of the wnids; get the tables of revision {REVISION}")
    classes = tuple(told_by_name.get(label, f"n{label:08d}") for label in range(max(labels, default=-1) + 1))
    relative = tuple(str(path.relative_to(root)) for path in files)
    sizes = tuple(path.stat().st_size for path in files)
    return Found(root, relative, sizes, np.array(records, RECORD), tuple(names), np.array(labels, np.int64), classes)


def joined(train: Found, validation: Found) -> Found:
    """Training images, then validation images; classes are those of the former.

    Raises UserError if the latter are of other classes.
    """
    if validation.labels.max(initial=-1) >= 0 and not set(validation.classes) <= set(train.classes):
        other = sorted(set(validation.classes) - set(train.classes))[0]
        raise UserError(f"{validation.root}: the validation images have the class {other}, the training images do not")
    number = {name: label for label, name in enumerate(train.classes)}
    moved = np.array([number.get(name, -1) for name in validation.classes] or [-1])
    labels = np.where(validation.labels >= 0, moved[validation.labels.clip(min=0)], -1)
    records = validation.records.copy()
    records["container"] += len(train.containers)
    return Found(
        train.root,
        train.containers + validation.containers,
        train.sizes + validation.sizes,
        np.concatenate([train.records, records]),
        train.names + validation.names,
        np.concatenate([train.labels, labels]),
        train.classes,
    )


def demand_latents(config: PublishedLatents) -> None:
    """Raise UserError unless the root holds latents of the format."""
    root = Path(config.root)
    wanted = "data.mdb" if config.format == "lmdb" else "*.tar"
    if not any(root.glob(wanted)):
        raise UserError(f"{root}: holds no {wanted}; lay or link the published latents there")
