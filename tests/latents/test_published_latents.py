"""Latents that others have encoded: the same numbers in our shards, and nothing in their files is executed."""

import io
import os
import pickle
import sys
import tarfile
import time

import lmdb
import numpy as np
import pytest
from torch.utils.data import Dataset, default_collate

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.latents.dataset import Latents, Space
from maskdit.latents.published import unpickled
from small import encoded, make_vae

COUNT, SHAPE = 11, (4, 4, 4)  # 2 C, H, W of 8 pixels in the small autoencoder
MOMENTS = np.random.default_rng(0).normal(size=(2 * COUNT, *SHAPE)).astype(np.float32)
LABELS = np.arange(COUNT) % 3


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return make_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


def write_lmdb(root, count=COUNT, **changes):
    """As upstream's extract_latent.py has it; `changes` replace the bytes under a key, - for _, and None removes it."""
    values = {f"z-{number}": MOMENTS[number].tobytes() for number in range(count)}
    values |= {f"y-{number}": str(LABELS[number % COUNT]).encode() for number in range(count)}
    values |= {"length": str(count).encode()} | {name.replace("_", "-"): value for name, value in changes.items()}
    with lmdb.open(str(root), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for name, value in values.items():
            if value is not None:
                transaction.put(name.encode(), value)


def write_tars(root, pickled=pickle.dumps, count=COUNT, **members):
    """As upstream's lmdb2wds.py has it, six samples a file; `members` replace the bytes of an extension of sample 7."""
    root.mkdir()
    for number in range(count):
        parts = {"latent": pickled(MOMENTS[number]), "cls": str(LABELS[number]).encode()} | (members if number == 7 else {})
        with tarfile.open(root / f"latent_imagenet_512_train-{number // 6:04d}.tar", "a") as tar:
            for extension, data in parts.items():
                if data is not None:
                    (member := tarfile.TarInfo(f"{number:07d}.{extension}")).size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def convert(root, kind, vae, tmp_path, images=COUNT, classes=3, **changes):
    """The latents that encode makes of published ones."""
    (folder := tmp_path / "raw").mkdir(exist_ok=True)
    index = {"kind": "latents", "format": kind, "root": str(root), "images": images, "resolution": 8}
    write_json(folder / "index.json", {**index, "classes": [str(name) for name in range(classes)]})
    write_json(folder / "manifest.json", {})
    encoded(folder, vae, tmp_path / "out", **{"mirror": False, "shards": 3, **changes})
    return Latents.load(tmp_path / "out")


def everything(latents, mirror=0):
    return latents.read(np.arange(COUNT), np.full(COUNT, mirror))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["lmdb", "webdataset"])
def test_published_moments_become_shards_of_the_same_numbers(vae, tmp_path, kind, shards):
    (write_lmdb if kind == "lmdb" else write_tars)(tmp_path / "root")
    found = convert(tmp_path / "root", kind, vae, tmp_path, shards=shards)
    np.testing.assert_array_equal(everything(found), MOMENTS[:COUNT].astype(np.float16))
    np.testing.assert_array_equal(found.labels, LABELS)
    assert (found.mirrors, found.space.channels, found.space.side) == (1, 2, 4)
    assert len(read_json(tmp_path / "out" / "index.json")["shards"]) == shards


@pytest.mark.parametrize("mirror", [False, True])
def test_the_second_half_of_twice_as_many_are_the_mirrors(vae, tmp_path, mirror):
    write_lmdb(tmp_path / "root", 2 * COUNT)
    found = convert(tmp_path / "root", "lmdb", vae, tmp_path, mirror=mirror)
    assert found.mirrors == 1 + mirror
    for view in range(1 + mirror):
        np.testing.assert_array_equal(everything(found, view), MOMENTS[view * COUNT :][:COUNT].astype(np.float16))


FAULTS = [
    ({"y_13": b"1"}, {"mirror": True}, "the classes of the two halves differ, so these are no mirrors"),
    ({"count": COUNT}, {"mirror": True}, r"encode\.mirror: .* has no mirrored latents; set it to false"),
    ({}, {"images": 12}, "holds 22 latents, params.yaml declares 12 images; correct it"),
    ({}, {"classes": 2}, "has classes 0 to 2, params.yaml declares 2; correct it"),
    ({"z_4": None}, {}, "has no z-4; get it again"),
    ({"z_4": b"1234"}, {}, r"z-4 has 4 bytes, moments \(4, 4, 4\) need 256; get it again"),
    ({"y_4": b"<html>"}, {}, "y-4: b'<html>' is not a number"),
    ({"length": b"many"}, {}, "length: .* is not a number"),
    ({"z_4": np.full(SHAPE, 1e5, np.float32).tobytes()}, {}, "the moments of image 4 do not fit float16"),
]


@pytest.mark.parametrize(("content", "changes", "line"), FAULTS, ids=[line[:30] for _, _, line in FAULTS])
def test_a_faulty_lmdb_is_one_line(vae, tmp_path, content, changes, line):
    write_lmdb(tmp_path / "root", **{"count": 2 * COUNT, **content})
    with pytest.raises(UserError, match=line):
        convert(tmp_path / "root", "lmdb", vae, tmp_path, **changes)


def test_what_is_no_lmdb_and_a_missing_package_are_named(vae, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not an LMDB of latents"):
        convert(tmp_path / "none", "lmdb", vae, tmp_path)
    assert not (tmp_path / "none").exists(), "a reader makes no files"
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="needs the package lmdb: pip install lmdb"):
        convert(tmp_path / "none", "lmdb", vae, tmp_path)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"cls": None}, r"train-0001\.tar: 0000007\.latent has no \.cls beside it"),
        ({"cls": b"cat"}, r"the class of 0000007\.latent: b'cat' is not a number"),
        ({"latent": b"cos\nsystem\n(S'true'\ntR."}, r"train-0001\.tar: 0000007\.latent: not the pickle of an array"),
    ],
    ids=["no class", "no number", "no array"],
)
def test_a_faulty_tar_is_one_line(vae, tmp_path, members, line):
    write_tars(tmp_path / "root", **members)
    with pytest.raises(UserError, match=line):
        convert(tmp_path / "root", "webdataset", vae, tmp_path)


def test_a_cut_tar_is_named(vae, tmp_path):
    write_tars(tmp_path / "root")
    path = sorted((tmp_path / "root").iterdir())[1]
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"0001\.tar"):
        convert(tmp_path / "root", "webdataset", vae, tmp_path)


ARRAY = MOMENTS[0]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("age", [b"numpy._core", b"numpy.core"], ids=["NumPy 2", "NumPy 1"])
def test_the_pickle_of_an_array_is_read_without_running_it(protocol, age):
    def aged(data):  # as NumPy 1 names its modules: strings of another length
        if protocol == 3 or age == b"numpy._core":
            return data.replace(b"numpy._core", age)
        place = data.index(b"numpy._core")
        data = data.replace(b"numpy._core", age)
        return data[: place - 1] + bytes([data[place - 1] - 1]) + data[place:]

    data = aged(pickle.dumps(ARRAY, protocol))
    np.testing.assert_array_equal(unpickled(data, SHAPE, "here"), ARRAY)
    locked = ARRAY.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(unpickled(pickle.dumps(locked, protocol), SHAPE, "here"), ARRAY)


class Hostile:
    """What runs a command when it is read."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def bomb(depth):
    """A pickle of a tuple of two of a tuple of two of …, which has 2^depth parts."""
    return b"\x80\x04)" + b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(depth)) + b"."


OTHERS = {
    "a command": pickle.dumps(Hostile()),
    "an array beside a command": pickle.dumps((ARRAY, Hostile())),
    "a list": pickle.dumps([ARRAY]),
    "float64": pickle.dumps(ARRAY.astype(np.float64)),
    "float64 of as many bytes": pickle.dumps(ARRAY.astype(np.float64)[:2]),
    "the other byte order": pickle.dumps(ARRAY.astype(">f4")),
    "int32": pickle.dumps(ARRAY.astype(np.int32)),
    "another order of axes": pickle.dumps(np.asfortranarray(ARRAY)),
    "another shape of as many numbers": pickle.dumps(ARRAY.reshape(2, 8, 4)),
    "objects": pickle.dumps(np.array([Hostile(), 1], object)),
    "cut": pickle.dumps(ARRAY)[:-90],
    "nothing": b"",
    "a stop": b"\x80\x04.",
    "an empty stack": b"\x80\x04R.",
    "no mark": b"\x80\x04t.",
    "no memo": b"\x80\x04h\x05.",
    "a bomb": bomb(200),
    "the name of a bomb": bomb(200)[:-1] + b"h\xc7\x93.",
    "a bomb that is called": bomb(200)[:-1] + b"\x8c\x01a\x86R.",
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_another_pickle_is_refused_in_one_line_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"here: not the pickle of .*it is not read") as refusal:
        unpickled(OTHERS[name], SHAPE, "here")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200
    assert not any(tmp_path.iterdir())


class PerSample(Dataset):
    """One get a sample from a transaction that stays open, bytes to a copied array, the class one-hot: as upstream reads."""

    def __init__(self, root):
        self.transaction = lmdb.open(str(root), readonly=True, lock=False, create=False).begin()

    def __getitem__(self, number):
        moments = np.frombuffer(self.transaction.get(f"z-{number}".encode()), np.float32).reshape(8, 32, 32).copy()
        classes = np.zeros(1000, np.float32)
        classes[int(self.transaction.get(f"y-{number}".encode()))] = 1
        return moments.copy(), classes


@pytest.mark.slow
def test_batches_of_1024_are_read_many_times_faster_than_sample_by_sample_from_an_lmdb(tmp_path):
    count, batch = 4096, 1024
    moments = np.random.default_rng(0).normal(size=(count, 8, 32, 32)).astype(np.float32)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**29) as environment, environment.begin(write=True) as transaction:
        for number, each in enumerate(moments):
            transaction.put(f"z-{number}".encode(), each.tobytes())
            transaction.put(f"y-{number}".encode(), b"7")
    parts = np.split(moments.astype(np.float16)[:, None], 4)
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    mapped = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(len(parts))]
    ours = Latents.of(mapped, np.full(count, 7), Space(4, 32, (0.0,) * 4, (1.0,) * 4, "vae", ("a",)))
    theirs = PerSample(tmp_path / "lmdb")
    orders = [np.random.default_rng(seed).permutation(count)[:batch] for seed in range(12)]

    def seconds(read):
        began = time.process_time()
        read()
        return time.process_time() - began

    def lone(rows):
        return seconds(lambda: default_collate([theirs[int(row)] for row in rows]))

    def whole(rows):
        return seconds(lambda: (ours.read(rows, np.zeros(batch, int)), ours.labels[rows]))

    np.testing.assert_array_equal(ours.read(orders[0], np.zeros(batch, int)), moments[orders[0]].astype(np.float16))
    ratio = np.median([lone(rows) for rows in orders]) / np.median([whole(rows) for rows in orders])
    assert ratio > 5  # 10 to 14 on a busy machine of two cores, 23 to 27 of one shard
