"""Samples as one npz file in the layout of ADM's evaluator, so that others can score them with the original code."""

import zipfile
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import read_array
from maskdit.artifacts.atomic import read_json, replacing
from maskdit.artifacts.manifest import inputs_of
from maskdit.config.base import UserError
from maskdit.runtime.progress import progress, say


def pack(samples: Path, out: Path) -> None:
    """`maskdit export SAMPLES --format npz`: images in order as arr_0, uint8 (N, H, W, 3), and labels as arr_1.

    Shards are written one by one to limit memory; the same samples give the same bytes. Raises UserError if `out` exists or the
    samples are incomplete.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; choose a new path")
    inputs_of(samples)
    index = read_json(samples / "index.json", "shards", "protocol")
    shards = [read_array(samples / name, mapped=True) for name in index["shards"]]
    shape = (sum(map(len, shards)), *shards[0].shape[1:])
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for number in progress(range(len(shards)), "export", len(shards)):
                stream.write(np.ascontiguousarray(shards[number][:]).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as stream:
            np.lib.format.write_array(stream, read_array(samples / "labels.npy"), allow_pickle=False)
    say(f"export: {shape[0]} images of {shape[1]} pixels to {out}")
