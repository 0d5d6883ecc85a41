"""Samples as ADM's evaluator reads them: one npz, so that anyone can run the original."""

import zipfile
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import read_array
from maskdit.artifacts.atomic import read_json, replacing
from maskdit.artifacts.manifest import inputs_of
from maskdit.config.base import UserError
from maskdit.runtime.progress import progress, say


def pack(samples: Path, out: Path) -> None:
    """`maskdit export SAMPLES --format npz`: images as arr_0, uint8 (N, H, W, 3) in their order, and labels as arr_1.

    They are written shard by shard, without holding them all; the same samples give the same bytes. Raises UserError if `out` is
    there already or samples are not whole.
    """
    if out.exists():
        raise UserError(f"{out}: is already there; name a new place")
    inputs_of(samples)
    index = read_json(samples / "index.json", "shards", "protocol")
    shards = [read_array(samples / name, mapped=True) for name in index["shards"]]
    shape = (sum(len(shard) for shard in shards), *shards[0].shape[1:])
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for number in progress(range(len(shards)), "export", len(shards)):
                stream.write(np.ascontiguousarray(shards[number]).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as stream:
            np.lib.format.write_array(stream, read_array(samples / "labels.npy"), allow_pickle=False)
    say(f"export: {shape[0]} images of {shape[1]} pixels to {out}")
