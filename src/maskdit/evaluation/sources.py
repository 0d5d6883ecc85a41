"""Sets of images on disk, read in parts, and what can stand for one: features that `maskdit score` has saved, or statistics."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskdit.artifacts.arrays import DAMAGE, Array, Joined, Stored, read_array, read_arrays
from maskdit.artifacts.atomic import digest, read_json, replacing
from maskdit.artifacts.shards import savez
from maskdit.config.base import UserError
from maskdit.evaluation.protocol import SPACES, statistics
from maskdit.images.archives import IMAGES
from maskdit.images.dataset import npz_rows
from maskdit.images.decode import FORMATS, decode, refused
from maskdit.images.folders import listed
from maskdit.images.index import THREADS, state_of
from maskdit.runtime.progress import progress

PART = 1000  # images whose features are in memory at once
OUTPUTS = (*SPACES, "logits")  # what a network says of images, each (N, F) in float32
FACTS = "facts"  # the member of an npz that says in JSON how features or statistics were made
ADVICE = "save uint8 of shape (N, H, W, 3), as (127.5 * x + 128).clip(0, 255) makes it of x from -1 to 1"


@dataclass(frozen=True)
class Source:
    """A set of images (`pixels`: as an array (N, H, W, 3) of uint8), its features (`outputs`), or its statistics alone.

    given: statistics by ADM's names. facts: how features or statistics were made, if that is known: network, number and size of the
    images. state: changes if a file is written. by_class: whether the images come one class after the other.
    """

    path: Path
    count: int = 0  # 0: unknown
    size: tuple[int, int] | None = None  # height and width; None: unknown
    pixels: Any = None
    outputs: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    jpeg: int = 0
    by_class: bool = False

    @property
    def shown(self) -> bool:
        """Whether there are images or their features, not statistics alone."""
        return self.pixels is not None or bool(self.outputs)

    def parts(self) -> Iterator[dict[str, Array]]:
        """The features of a file of features, a part at a time."""
        for at in range(0, self.count, PART):
            yield {name: array[at : at + PART] for name, array in self.outputs.items()}

    def described(self) -> dict[str, Any]:
        """What a file of its features or statistics says of its images."""
        size = list(self.size) if self.size else None
        return {"images": self.count, "size": size, "jpeg": self.jpeg, "by_class": self.by_class}


class Pictures:
    """Acts as an array (N, H, W, 3) of uint8 that decodes image files of one size when it is indexed."""

    def __init__(self, files: Sequence[Path], size: tuple[int, int]) -> None:
        self.files, self.shape = files, (len(files), *size, 3)

    def __getitem__(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self.one, rows.tolist())))

    def one(self, row: int) -> NDArray[np.uint8]:
        """One image. Raises UserError if it is damaged, or has changed."""
        data = self.files[row].read_bytes()
        with advised():
            pixels = np.asarray(decode(data, str(self.files[row])))
        if pixels.shape != self.shape[1:]:
            raise UserError(f"{self.files[row]}: has changed while it was read; run the command again")
        return pixels


def opened(path: Path) -> Source:
    """What lies at a path: a folder of images or of our samples, an npz of images, of features or of statistics.

    Raises UserError for anything else, and for images that are not all of one size with three channels of 8 bits.
    """
    if path.suffix.lower() in (".pkl", ".pickle"):
        advice = "where you trust it, read it in Python and np.savez(file, mu=..., sigma=...)"
        raise UserError(f"{path}: a pickle can run code when it is read, so it is refused; {advice}")
    if path.is_dir():
        index = read_json(path / "index.json") if (path / "index.json").is_file() else {}
        shards = index.get("shards") if isinstance(index, dict) else None
        return samples(path, list(map(str, shards))) if isinstance(shards, list) else folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a folder of images, or an npz")
    return npz(path)


def folder(path: Path) -> Source:
    """Image files below a folder in the order of their paths, as torch-fidelity takes them."""
    files = sorted((file for file in listed(path) if file.name.lower().endswith(IMAGES)), key=str)
    if not files:
        raise UserError(f"{path}: holds no images; name a folder of PNG files, or an npz with arr_0")
    first, *_ = found = [head(files[number]) for number in progress(range(len(files)), "read", len(files), unit="images")]
    if other := next((number for number, (size, _) in enumerate(found) if size != first[0]), None):
        sizes = " and ".join(f"{files[at].relative_to(path)} {found[at][0][1]} x {found[at][0][0]}" for at in (0, other))
        raise UserError(f"{path}: images of several sizes ({sizes} pixels); resize all to one, as the images of the reference were")
    state = digest([[str(file.absolute()), *state_of(file)] for file in files])
    jpeg, nested = sum(kind == "JPEG" for _, kind in found), len({file.parent for file in files}) > 1
    return Source(path, len(files), first[0], Pictures(files, first[0]), state=state, jpeg=jpeg, by_class=nested)


@contextmanager
def advised() -> Iterator[None]:
    """Say what to do about an image that cannot be decoded."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; make it again, or remove it") from None


def head(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width of an image file, and its format, without its pixels.

    Raises UserError if it has not three channels of 8 bits and can not be made so without a choice.
    """
    with path.open("rb") as stream, advised(), refused(str(path)), Image.open(stream, formats=FORMATS) as image:
        size, mode, clear, raw = image.size, image.mode, "transparency" in image.info, str(image.tile)
        kind = "JPEG" if image.format == "MPO" else str(image.format)
    if mode[0] in "IF" or ";16" in raw:
        raise UserError(f"{path}: has more than 8 bits a channel ({mode}); save it as 8-bit RGB")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or clear:
        raise UserError(f"{path}: has a channel of transparency ({mode}); save it as RGB, on the background that you mean")
    return (size[1], size[0]), kind


def samples(path: Path, names: Sequence[str]) -> Source:
    """The images of our step `sample`."""
    arrays = list[Any]()
    for name in names:
        array = read_array(path / name, mapped=True)
        if not len(arrays):
            demand_images(path / name, array)
        elif (array.dtype, array.shape[1:]) != (arrays[0].dtype, arrays[0].shape[1:]):
            raise UserError(f"{path / name}: {array.dtype} {array.shape}, not images like those before; rerun the sample step")
        # a map would count as this process's memory
        arrays.append(Stored(path / name, array.dtype, array.offset, array.shape) if isinstance(array, np.memmap) else array)
    if not arrays:
        raise UserError(f"{path}: holds no samples; rerun the sample step")
    pixels, state = Joined(arrays), digest([[str(path.absolute()), name, *state_of(path / name)] for name in names])
    return Source(path, pixels.shape[0], (pixels.shape[1], pixels.shape[2]), pixels, state=state)


def demand_images(path: Path, array: Any, name: str = "") -> None:
    """Raise UserError unless an array is of images (N, H, W, 3) in uint8."""
    shape, told = tuple(array.shape), f"{path}: {name}{' is ' * bool(name)}{array.dtype} {tuple(array.shape)}"
    if len(shape) == 4 and shape[-1] == 4:
        raise UserError(f"{told}: has a channel of transparency; save it as RGB, on the background that you mean")
    if len(shape) == 4 and shape[1] == 3 and shape[-1] != 3:
        raise UserError(f"{told}: has its channels first; save array.transpose(0, 2, 3, 1)")
    if array.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not all(shape):
        raise UserError(f"{told}, not images; {ADVICE}")


def npz(path: Path) -> Source:
    """An npz: of images as ADM's, with or without their statistics; of features, which has them by name; or of statistics."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        facts = json.loads(str(read_arrays(path, FACTS)[FACTS])) if FACTS in names else {}
        array = npz_rows(path, "arr_0") if "arr_0" in names else None
        outputs = {name: npz_rows(path, name) for name in OUTPUTS if name in names}
        if outputs and not facts:
            raise ValueError("it has features, but does not say of which network; save them by --save-features")
    except PermissionError:
        raise
    except (OSError, *DAMAGE) as error:
        raise UserError(
            f"{path}: not an npz that can be read ({' '.join(str(error).split())[:160]}); get or save it again"
        ) from None
    state = digest([str(path.absolute()), *state_of(path)])
    given = statistics(path) if {"mu", "sigma"} & set(names) else {}
    if array is not None:
        demand_images(path, array, "arr_0")
        labels = read_arrays(path, "arr_1").get("arr_1", np.zeros(0))
        ordered = bool(len(labels.shape) == 1 and len(labels) > 1 and (labels[1:] >= labels[:-1]).all() and labels[0] != labels[-1])
        return Source(path, len(array), (array.shape[1], array.shape[2]), array, given=given, state=state, by_class=ordered)
    if not outputs and not given:
        held = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{path}: holds {held}; images are named arr_0, statistics mu and sigma, with mu_s and sigma_s of sFID")
    return told(path, facts, outputs, given)


def told(path: Path, facts: dict[str, Any], outputs: dict[str, Any], given: dict[str, Array]) -> Source:
    """Features or statistics, of which `facts` say how they were made. Raises UserError if the two do not fit."""
    try:
        known = {name: facts[name] for name in ("family", "extractor_sha256", "resize")} if facts else {}
        size = tuple(map(int, facts["size"])) if facts.get("size") else None
        count, jpeg, by_class = (int(facts.get(name, 0)) for name in ("images", "jpeg", "by_class"))
        wrong = [name for name, array in outputs.items() if array.dtype != np.float32 or array.shape != (count, *array.shape[1:2])]
        if wrong or (outputs and "features" not in outputs) or (size and len(size) != 2):
            raise ValueError(f"{', '.join(wrong) or 'features'} are not as {FACTS} say")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a file that maskdit score has saved ({error}); save it again") from None
    of = {"count": count, "size": size, "facts": known, "jpeg": jpeg, "by_class": bool(by_class)}
    return Source(path, outputs=outputs, given=given, **of)  # type: ignore[arg-type]


def save_features(out: Path, parts: list[Path], source: Source, network: dict[str, Any]) -> None:
    """Write features that lie in files of parts as one npz, one part in memory at a time; facts say how they were made."""
    first = read_arrays(parts[0])
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in first.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                form = {"descr": "<f4", "fortran_order": False, "shape": (source.count, array.shape[1])}
                np.lib.format.write_array_header_1_0(stream, form)
                for part in parts:
                    stream.write(read_arrays(part, name)[name].astype("<f4", copy=False).tobytes())
        with archive.open(f"{FACTS}.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(network | source.described())), allow_pickle=False)


def save_statistics(out: Path, known: dict[str, Array], source: Source, network: dict[str, Any]) -> None:
    """Write mean and covariance by ADM's names, which ADM's and EDM's readers also take; facts say how they were made."""
    arrays = {name: known[name] for pair in SPACES.values() for name in pair if name in known}
    with replacing(out) as temporary:
        savez(temporary, arrays | {FACTS: np.array(json.dumps(network | source.described()))})
