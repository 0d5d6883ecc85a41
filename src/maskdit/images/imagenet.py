"""ImageNet-1k (ILSVRC 2012) in every form that it comes in, read where it lies."""

import csv
import gzip
import io
import re
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from maskdit.config.base import UserError
from maskdit.config.images import ImageNet, PublishedLatents
from maskdit.images import tar_members
from maskdit.images.archives import TABLE
from maskdit.images.index import RECORD, Found, classified, gathered, listed, records_of

REVISION = "49e2ee26f3810fb5a7536bbf732a7b07389a47b5"  # of ILSVRC/imagenet-1k on the hub
COMPETITION = "imagenet-object-localization-challenge"
WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"
CLASSES = 2**16  # at most
LARGEST = 2**24  # bytes of a list of labels


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
        for member in tar_members.members(kit):
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
