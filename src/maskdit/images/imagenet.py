"""Finds the images and labels of ImageNet-1k (ILSVRC 2012) in each form that it is distributed in."""

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
from maskdit.config.errors import nearest
from maskdit.config.images import ImageNet
from maskdit.images.archives import TABLE, tar_members
from maskdit.images.folders import listed
from maskdit.images.index import RECORD, Found, classified, gathered

REVISION = "49e2ee26f3810fb5a7536bbf732a7b07389a47b5"  # of ILSVRC/imagenet-1k on the hub
COMPETITION = "imagenet-object-localization-challenge"
WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"
CLASSES = 2**16  # maximum number of classes
CATEGORIES = 1000  # of ImageNet-1k
LARGEST = 2**24  # maximum bytes of a list of labels


def form(root: Path) -> str | None:
    """The form of ImageNet that a folder contains; None if there is none."""
    if home(root, "train") is not None:
        return "folders"
    if (root / "ILSVRC2012_img_train.tar").exists():
        return "tars"
    if (root / f"{COMPETITION}.zip").exists():
        return "kaggle"
    return "tables" if tables(root, "train") else None


def home(root: Path, split: str) -> Path | None:
    """The non-empty folder of a split, in the layout of unpacked tars or of Kaggle's archive; None if there is none."""
    names = (split, f"ILSVRC/Data/CLS-LOC/{split}", *(["validation"] if split == "val" else []))
    return next((root / name for name in names if any((root / name).glob("*"))), None)


def tables(root: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order. Raises UserError if their names show that one is missing."""
    files = sorted([*root.glob(f"{split}-*.parquet"), *root.glob(f"data/{split}-*.parquet")])
    for number, path in enumerate(files):
        name = re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", path.name)
        if name and (int(name[1]) != number or int(name[2]) != len(files)):
            raise UserError(f"{path.parent}: {len(files)} of {int(name[2])} files {split}-*.parquet; download the missing ones")
    return files


def scanned(config: ImageNet) -> tuple[Found, Found]:
    """The training images, sorted by wnid and name, and the validation images, whose labels are -1 if nothing tells them."""
    root = Path(config.root)
    match form(root):
        case "folders":
            train, validation = below(root, home(root, "train")), below(root, home(root, "val"))
        case "tars":
            train, validation = (in_files(root, [root / f"ILSVRC2012_img_{split}.tar"]) for split in ("train", "val"))
        case "kaggle":
            every = in_files(root, [root / f"{COMPETITION}.zip"])
            train, validation = (part(every, f"ILSVRC/Data/CLS-LOC/{split}/") for split in ("train", "val"))
        case _:
            train, validation = (in_tables(root, split) for split in ("train", "validation"))
    if len(validation) and not validation.classes and (answers := solution(root)):
        validation = told(validation, answers)
    if not config.validation:
        validation = validation.only(np.arange(0))
    if len(train) and not train.classes:
        raise UserError(f"{root}: {train.names[0]} is in no folder named by a wnid (n and eight digits); use WNID/image")
    return train, validation


def below(root: Path, folder: Path | None) -> Found:
    """The images below a folder of the root, including those in archives; none if folder is None."""
    if folder is None:
        return in_files(root, [])
    return relative(in_files(root, listed(folder)), f"{folder.relative_to(root)}/")


def in_files(root: Path, files: list[Path]) -> Found:
    """The images of the files that exist, sorted by name."""
    return named(gathered(root, [path for path in files if path.exists()]))


def part(found: Found, prefix: str) -> Found:
    """The images whose names start with a prefix, which is removed."""
    rows = np.array([row for row, name in enumerate(found.names) if name.startswith(prefix)], int)
    return relative(found.only(rows), prefix)


def relative(found: Found, prefix: str) -> Found:
    """The same images, with a prefix removed from their names, and labelled again."""
    return named(replace(found, names=tuple(name.removeprefix(prefix) for name in found.names)))


def named(found: Found) -> Found:
    """Set labels and classes from the folders in the names if these are wnids; otherwise mark both as unknown."""
    labels, classes = classified(found.names)
    if all(WNID.fullmatch(name) for name in classes):
        return replace(found, labels=labels, classes=classes)
    return replace(found, labels=np.full(len(found), -1), classes=())


def told(found: Found, wnids: dict[str, str]) -> Found:
    """Set the class of each image from a table of wnids by file stem."""
    classes = tuple(sorted(set(wnids.values())))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number.get(wnids.get(Path(name).stem, ""), -1) for name in found.names]
    return replace(found, labels=np.array(labels, np.int64), classes=classes)


def solution(root: Path) -> dict[str, str]:
    """The wnid of each validation image by file stem: from Kaggle's table, on its own or in the zip, or the development kit.

    Empty if none of these exists. Raises UserError if one is damaged.
    """
    archive, kit = root / f"{COMPETITION}.zip", root / DEVKIT
    try:
        if (root / SOLUTION).exists():
            with (root / SOLUTION).open("rb") as stream:
                return from_csv(stream)
        if archive.exists():
            with zipfile.ZipFile(archive) as members:
                if SOLUTION in members.namelist():
                    with members.open(SOLUTION) as stream:
                        return from_csv(stream)
        return from_kit(kit) if kit.exists() else {}
    except (ValueError, LookupError, zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"{root}: the labels of the validation images cannot be read ({error}); get them again") from None


def from_csv(stream: IO[bytes]) -> dict[str, str]:
    """Wnids by file stem from Kaggle's table, where each is followed by bounding boxes."""
    rows = csv.DictReader(io.StringIO(stream.read(LARGEST).decode()))
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def from_kit(path: Path) -> dict[str, str]:
    """Wnids by file stem from the development kit: a list of class numbers, and a Matlab table of their wnids."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    with gzip.open(path) as kit:
        for member in tar_members(kit):
            name = PurePosixPath(member.name).name
            if member.isreg() and name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt") and member.size <= LARGEST:
                kit.seek(member.offset_data)
                found[name] = kit.read(member.size)
    synsets = loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = found["ILSVRC2012_validation_ground_truth.txt"].split()
    return {f"ILSVRC2012_val_{place:08d}": wnids[int(number)] for place, number in enumerate(numbers, 1)}


def in_tables(root: Path, split: str) -> Found:
    """The images of a split's parquet tables, with their labels. Raises UserError if these are not in the order of the wnids."""
    from pyarrow import ArrowException, parquet

    records, names, labels = [], [], []
    files = tables(root, split)
    for container, path in enumerate(files):
        try:
            table = parquet.ParquetFile(path)
            for group in range(table.num_row_groups):
                columns = table.read_row_group(group, columns=["image.path", "label"])
                known = columns.column("label").to_pylist()
                paths = columns.column("image").combine_chunks().field("path").to_pylist()
                records += [(container, TABLE, group, row, 0) for row in range(len(known))]
                names += [name or f"{path.name}/{group}/{row}" for row, name in enumerate(paths)]
                labels += [-1 if label is None else label for label in known]
        except (ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(f"{path}: not one of the hub's tables ({reason}); download it again") from None
    if odd := [label for label in labels if not isinstance(label, int) or not -1 <= label < CLASSES]:
        raise UserError(f"{root}: {split} has the label {str(odd[0])[:20]}, which is not a class; download the tables again")
    wnids = [WNID.search(name) for name in names]
    pairs = sorted({(label, found[0]) for label, found in zip(labels, wnids, strict=True) if found})
    by_label = dict(pairs)
    if len(by_label) < len(pairs) or [wnid for _, wnid in pairs] != sorted(set(by_label.values())):
        raise UserError(f"{root}: labels of {split} do not follow the order of the wnids; download revision {REVISION}")
    classes = tuple(by_label.get(label, f"n{label:08d}") for label in range(max(labels, default=-1) + 1))
    containers, sizes = tuple(str(path.relative_to(root)) for path in files), tuple(path.stat().st_size for path in files)
    return Found(root, containers, sizes, np.array(records, RECORD), tuple(names), np.array(labels, np.int64), classes)


def joined(train: Found, validation: Found) -> Found:
    """Training images followed by validation images. Raises UserError if the latter have a class that the former lack."""
    if validation.labels.max(initial=-1) >= 0 and (other := sorted(set(validation.classes) - set(train.classes))):
        raise UserError(
            f"{validation.root}: the validation images have class {other[0]}, which the training images lack; correct one of them"
        )
    number = {name: label for label, name in enumerate(train.classes)}
    moved = np.array([*(number.get(name, -1) for name in validation.classes), -1])  # the last one is for label -1
    records = validation.records.copy()
    records["container"] += len(train.containers)
    return replace(
        train,
        containers=train.containers + validation.containers,
        sizes=train.sizes + validation.sizes,
        records=np.concatenate([train.records, records]),
        names=train.names + validation.names,
        labels=np.concatenate([train.labels, moved[validation.labels]]),
    )


def class_number(name: str) -> int:
    """The number of a class by its English name, as torchvision has it. Raises UserError if there is none, or several."""
    from torchvision.models import MobileNet_V2_Weights  # whose import takes long

    names = [each.casefold() for each in MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]]
    numbers = [number for number, each in enumerate(names) if each == name.casefold()]
    if len(numbers) > 1:
        raise UserError(f"'{name}': ImageNet has the classes {' and '.join(map(str, numbers))} of this name; write one number")
    if not numbers:
        raise UserError(f"'{name}': not the name of a class of ImageNet{nearest(name.casefold(), names)}")
    return numbers[0]
