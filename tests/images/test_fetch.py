"""Images in every form that they come in: read where they lie, checked, never unpacked."""

import io
import json
import re
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pydantic import TypeAdapter

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.config.images import Fetch
from maskdit.images import imagenet, imagenet_download
from maskdit.images.dataset import Images
from maskdit.images.decode import centre_crop, decode
from maskdit.images.fetch import fetch
from maskdit.images.index import Encoded
from maskdit.images.own import split
from maskdit.images.scan import scan

ENTRY = TypeAdapter(Fetch)
WNIDS = ("n01440764", "n02123045", "n07753592")
SIDE = 8


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


def picture(label, number, size=(20, 14)):
    """A noisy picture that tells its class by its colour."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (size[1], size[0], 3))
    pixels[..., label % 3] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(label, number, kind="JPEG", **options):
    stream = io.BytesIO()
    picture(label, number).save(stream, kind, **options)
    return stream.getvalue()


FILES = {f"{wnid}/{wnid}_{number}.JPEG": encoded(label, number) for label, wnid in enumerate(WNIDS) for number in range(4)}


def lay_folders(root, prefix=""):
    for name, data in FILES.items():
        path = root / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def tar_of(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def lay_tar(root):
    (root / "all.tar").write_bytes(tar_of(FILES))


def lay_zip(root, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(root / "all.zip", "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(f"photos/{name}", data)


def lay_stored(root):
    lay_zip(root, zipfile.ZIP_STORED)


def lay_tar_of_tars(root):
    inner = {
        f"{wnid}.tar": tar_of({name.split("/")[1]: data for name, data in FILES.items() if name.startswith(wnid)}) for wnid in WNIDS
    }
    (root / "train.tar").write_bytes(tar_of(inner))


def folder(root, **changes):
    entry = {"source": "folder", "root": str(root), "bad": "fail", "resolution": SIDE, "images": 12, "heldout": 0.25, "seed": 0}
    return ENTRY.validate_python({**entry, **changes})


def fetched(entry, where):
    where.mkdir(exist_ok=True)
    fetch(entry, out=where)
    return Images.load(where)


@pytest.mark.parametrize("lay", [lay_folders, lay_tar, lay_zip, lay_stored, lay_tar_of_tars])
def test_every_form_gives_the_same_images_and_classes(tmp_path, lay):
    (tmp_path / "root").mkdir()
    lay(tmp_path / "root")
    images = fetched(folder(tmp_path / "root"), tmp_path / "out")
    assert images.classes == WNIDS
    assert list(images.labels) == [0] * 4 + [1] * 4 + [2] * 4
    wanted = np.stack([centre_crop(decode(data), SIDE) for _, data in sorted(FILES.items())])
    np.testing.assert_array_equal(images.pixels[:], wanted)
    np.testing.assert_array_equal(images.pixels[np.array([7, 2])], wanted[[7, 2]])
    np.testing.assert_array_equal(images.pixels[3], wanted[3])
    assert [int(images.heldout[images.labels == label].sum()) for label in range(3)] == [1, 1, 1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("index.json", "labels.npy", "heldout.npy", "records.npy", "store.json", "report.json", "source.json")
    }, "nothing is unpacked"


def test_the_split_is_of_each_class_and_by_the_seed():
    labels = np.repeat([0, 1], 50)
    one, same, other = (split(labels, 0.1, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert [one[labels == label].sum() for label in (0, 1)] == [5, 5]


def test_a_hostile_tar_gives_its_harmless_images_only_and_writes_nothing(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("../evil/a.png", "red/../../c.png", "red/good.png", "red/also.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encoded(0, 0))
            tar.addfile(member, io.BytesIO(encoded(0, 0)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("red/link.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.tar").write_bytes(stream.getvalue())
    before = sorted(tmp_path.rglob("*"))
    found = scan(tmp_path / "root")
    assert found.names == ("red/also.png", "red/good.png")
    assert found.left.images == 6
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def damaged(tmp_path):
    """Twelve images, beside them one in CMYK, a PNG by another name, and two that are damaged."""
    lay_folders(tmp_path / "root")
    home = tmp_path / "root" / WNIDS[0]
    picture(0, 90).convert("CMYK").save(home / "cmyk.JPEG")
    (home / "really-a-png.JPEG").write_bytes(encoded(0, 91, "PNG"))
    whole = io.BytesIO()
    picture(0, 92, (200, 200)).save(whole, "JPEG")
    (home / "cut.JPEG").write_bytes(whole.getvalue()[:900])
    (home / "empty.JPEG").write_bytes(b"")
    return tmp_path / "root"


def test_damaged_images_follow_the_policy(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr("maskdit.runtime.progress.KEY", "mine")
    advice = r"set bad: skip and images: 14 in fetch\.mine$"
    with pytest.raises(
        UserError, match=rf"images that cannot be used: 2 of 16, listed in .* \(\S*cut\.JPEG: damaged .*{advice}"
    ) as refusal:
        fetched(folder(damaged, images=16), tmp_path / "fail")
    listing = Path(re.findall("listed in (.*?) \\(", str(refusal.value))[0])
    assert [Path(bad["name"]).name for bad in read_json(listing)] == ["cut.JPEG", "empty.JPEG"]
    with pytest.raises(UserError, match=r"images that cannot be used: 2 of 16, .*cut\.JPEG.*empty\.JPEG") as refusal:
        fetched(folder(damaged, bad="list", images=16), tmp_path / "list")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"left out: 2 of 16 images, .*allow it with left_out: 0\.13 in fetch\.mine"):
        fetched(folder(damaged, bad="skip", images=14), tmp_path / "few")
    with pytest.raises(
        UserError,
        match=r"14 images found, .*images: 13 in fetch\.mine; set images: 14.*images that cannot be used and are left out: 2,",
    ):
        fetched(folder(damaged, bad="skip", images=13, left_out=0.13), tmp_path / "skip")
    images = fetched(folder(damaged, bad="skip", images=14, left_out=0.13), tmp_path / "skip")
    assert images.pixels[:].shape == (14, SIDE, SIDE, 3)
    report = read_json(tmp_path / "skip" / "report.json")
    assert report["images"]["kinds"] == {"JPEG CMYK": 1, "JPEG RGB": 12, "PNG RGB": 1}
    assert report["images"]["misnamed"] == [f"{WNIDS[0]}/really-a-png.JPEG"]
    assert [Path(bad["name"]).name for bad in report["images"]["damaged"]] == ["cut.JPEG", "empty.JPEG"]
    assert report["left_out"] == {
        "images that cannot be used": {"count": 2, "first": [f"{WNIDS[0]}/cut.JPEG", f"{WNIDS[0]}/empty.JPEG"]}
    }


def test_a_wrong_number_of_images_names_the_right_one(tmp_path):
    lay_folders(tmp_path / "root")
    with pytest.raises(UserError, match=r"12 images found, params\.yaml declares images: 13"):
        fetched(folder(tmp_path / "root", images=13), tmp_path / "out")


def test_an_image_that_changed_since_is_not_read(tmp_path):
    (tmp_path / "root").mkdir()
    lay_tar(tmp_path / "root")
    images = fetched(folder(tmp_path / "root"), tmp_path / "out")
    with (tmp_path / "root" / "all.tar").open("ab") as stream:
        stream.write(b"more")
    fresh = Encoded(images.pixels.found, SIDE)
    (tmp_path / "root" / "all.tar").rename(tmp_path / "root" / "moved.tar")
    (tmp_path / "root" / "moved.tar").rename(tmp_path / "root" / "all.tar")
    from maskdit.images import index

    index._Opened.cache_clear()
    with pytest.raises(UserError, match=r"all\.tar: has \d+ bytes, not \d+ as when it was fetched"):
        fresh[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "no such file or folder"),
        (lambda root: root.mkdir(), "0 images found"),
        (lambda root: (root.mkdir(), (root / "a.png").write_bytes(encoded(0, 0, "PNG"))), "a.png is not in a folder"),
        (lambda root: (root.mkdir(), (root / "x.zip").write_bytes(b"PK")), "x.zip: damaged"),
        (lambda root: root.write_bytes(b"x"), "not a folder, .tar or .zip"),
    ],
    ids=["absent", "empty", "flat", "damaged archive", "other file"],
)
def test_a_root_that_is_no_set_of_images_is_refused_in_one_line(tmp_path, make, said):
    make(tmp_path / "root")
    with pytest.raises(UserError) as refusal:
        fetched(folder(tmp_path / "root"), tmp_path / "out")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def by_hand(image, side):
    """ADM's crop, from its description, with arrays in place of Pillow's box."""
    pixels = np.asarray(image).astype(np.float64)
    while min(pixels.shape[:2]) >= 2 * side:
        high, wide = (length // 2 * 2 for length in pixels.shape[:2])
        pixels = np.floor((pixels[:high, 0:wide:2] + pixels[:high, 1:wide:2]) / 2 + 0.5)  # Pillow rounds after each direction
        pixels = np.floor((pixels[0::2] + pixels[1::2]) / 2 + 0.5)
    scale = side / min(pixels.shape[:2])
    size = tuple(round(length * scale) for length in pixels.shape[1::-1])
    small = np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))
    top, left = ((length - side) // 2 for length in small.shape[:2])
    return small[top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 8), (16, 16), (128, 64)])
def test_the_crop_is_adm_s(size):
    image = picture(1, 5, size)
    found, wanted = centre_crop(image, 8), by_hand(image, 8)
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_every_mode_becomes_rgb_and_transparency_white():
    def back(image, kind="PNG"):
        stream = io.BytesIO()
        image.save(stream, kind)
        return np.asarray(decode(stream.getvalue()))

    assert back(Image.new("L", (2, 2), 77)).tolist() == [[[77] * 3] * 2] * 2
    assert back(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).tolist() == [[[255] * 3]]
    assert back(Image.new("P", (1, 1))).shape == (1, 1, 3)
    deep = Image.fromarray(np.full((1, 1), 200 * 256, np.uint16))
    assert back(deep).tolist() == [[[200] * 3]]


def test_a_bomb_is_refused():
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    with pytest.raises(UserError, match=r"bomb\.png: 400,000,000 pixels, and the limit is 89,478,485"):
        decode(stream.getvalue(), "bomb.png")


VALIDATION = {f"ILSVRC2012_val_0000000{number}": (WNIDS[2 - number], encoded(2 - number, 70 + number)) for number in range(3)}


def net_folders(root):
    lay_folders(root, "train")
    for name, (wnid, data) in VALIDATION.items():
        (root / "val" / wnid).mkdir(parents=True)
        (root / "val" / wnid / f"{name}.JPEG").write_bytes(data)


def net_tars(root):
    root.mkdir()
    lay_tar_of_tars(root)
    (root / "train.tar").rename(root / "ILSVRC2012_img_train.tar")
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({f"{name}.JPEG": data for name, (_, data) in VALIDATION.items()}))


def net_kaggle(root):
    root.mkdir()
    base = "ILSVRC/Data/CLS-LOC"
    with zipfile.ZipFile(root / "imagenet-object-localization-challenge.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(f"{base}/train/{name}", data)
        for name, (_, data) in VALIDATION.items():
            archive.writestr(f"{base}/val/{name}.JPEG", data)
        archive.writestr(f"{base}/test/ILSVRC2012_test_00000001.JPEG", encoded(0, 0))
        rows = "".join(f"{name},{wnid} 1 2 3 4 \n" for name, (wnid, _) in VALIDATION.items())
        archive.writestr("LOC_val_solution.csv", f"ImageId,PredictionString\n{rows}")


def net_tables(root):
    (root / "data").mkdir(parents=True)
    train = [
        (f"{Path(name).stem}_{name.split('/')[0]}.JPEG", data, WNIDS.index(name.split("/")[0])) for name, data in FILES.items()
    ]
    other = [(f"{name}_{wnid}.JPEG", data, WNIDS.index(wnid)) for name, (wnid, data) in VALIDATION.items()]
    for name, rows in (
        ("train-00000-of-00002", train[:7]),
        ("train-00001-of-00002", train[7:]),
        ("validation-00000-of-00001", other),
    ):
        column = [{"bytes": data, "path": path} for path, data, _ in rows]
        parquet.write_table(
            pa.table({"image": column, "label": [label for *_, label in rows]}), root / "data" / f"{name}.parquet", row_group_size=3
        )


def net(root, **changes):
    entry = {"source": "imagenet", "root": str(root), "origin": "local", "resolution": SIDE, "images": 12, "validation": 3}
    return ENTRY.validate_python({**entry, "classes": 3, "bad": "fail", **changes})


@pytest.mark.parametrize("lay", [net_folders, net_tars, net_kaggle, net_tables])
def test_imagenet_is_read_in_every_form_with_the_same_classes(tmp_path, lay):
    lay(tmp_path / "root")
    images = fetched(net(tmp_path / "root"), tmp_path / "out")
    assert images.classes == WNIDS
    assert list(images.labels[images.rows(heldout=False)]) == [0] * 4 + [1] * 4 + [2] * 4
    unseen = images.rows(heldout=True)
    assert len(unseen) == 3
    known = images.labels[unseen]
    assert sorted(known) == ([-1] * 3 if lay is net_tars else [0, 1, 2])
    every = sorted(np.asarray(images.pixels[row]).tobytes() for row in range(15))
    wanted = [*FILES.values(), *(data for _, data in VALIDATION.values())]
    assert every == sorted(centre_crop(decode(data), SIDE).tobytes() for data in wanted)


def test_a_plan_of_the_disk_comes_before_anything_else(tmp_path, capsys):
    with pytest.raises(UserError, match="contains no ImageNet; copy or link there"):
        fetched(net(tmp_path / "absent", images=1281167, resolution=256), tmp_path / "out")
    assert "latents 21 GB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("origin", "said"),
    [("huggingface", "needs HF_TOKEN"), ("official", "set IMAGENET_URL"), ("kaggle", "needs its client")],
)
def test_what_an_origin_needs_is_said_in_one_line(tmp_path, monkeypatch, origin, said):
    for name in ("HF_TOKEN", "IMAGENET_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=said) as refusal:
        fetched(net(tmp_path / "root", origin=origin), tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_tables_come_from_the_hub_by_the_token_which_nobody_else_sees(tmp_path, monkeypatch, capsys):
    net_tables(tmp_path / "hub")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            """Nothing."""

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            seen.append((self.server.server_port, self.path, self.headers.get("Authorization")))
            first = self.server is servers[0]
            data = b"" if first else (tmp_path / "hub" / "data" / Path(self.path).name).read_bytes()
            self.send_response(302 if first else 200)
            if first:
                self.send_header("Location", f"http://127.0.0.1:{servers[1].server_port}/cdn/{Path(self.path).name}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{servers[0].server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(imagenet_download, "SHARDS", {"train": 2, "validation": 1})
    monkeypatch.setattr(imagenet_download, "room", lambda root, needed: None)
    try:
        images = fetched(net(tmp_path / "root", origin="huggingface"), tmp_path / "out")
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert len(images.labels) == 15
    tokens = {port: {token for other, _, token in seen if other == port} for port in {port for port, *_ in seen}}
    assert tokens == {servers[0].server_port: {"Bearer hf_secret"}, servers[1].server_port: {None}}
    written = "".join(path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_secret" not in written + capsys.readouterr().err


def test_tables_in_the_hub_s_cache_are_linked_without_a_token(tmp_path, monkeypatch):
    net_tables(tmp_path / "hub")
    kept = tmp_path / "cache" / "datasets--ILSVRC--imagenet-1k" / "snapshots" / imagenet.REVISION
    kept.parent.mkdir(parents=True)
    (tmp_path / "hub").rename(kept)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(imagenet_download, "SHARDS", {"train": 2, "validation": 1})
    images = fetched(net(tmp_path / "root", origin="huggingface"), tmp_path / "out")
    assert len(images.labels) == 15
    assert {path.resolve().parent for path in (tmp_path / "root" / "data").iterdir()} == {kept / "data"}


def test_a_batch_and_weights_are_fetched_by_their_hash(tmp_path):
    pixels = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "b.npz", arr_0=pixels)
    entry = {"source": "npz", "url": f"file://{tmp_path}/b.npz", "sha256": None, "resolution": SIDE, "images": 3}
    assert len(fetched(ENTRY.validate_python(entry), tmp_path / "out").pixels) == 3
    with pytest.raises(UserError, match="declares 4 of 8 pixels"):
        fetched(ENTRY.validate_python({**entry, "images": 4}), tmp_path / "two")
    with pytest.raises(UserError, match="has sha256"):
        fetched(ENTRY.validate_python({**entry, "sha256": "0" * 64}), tmp_path / "three")
    (tmp_path / "vae").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / "vae" / name).write_text("{}")
    entry = ENTRY.validate_python({"source": "autoencoder", "url": f"file://{tmp_path}/vae", "sha256": None})
    (tmp_path / "four").mkdir()
    fetch(entry, out=tmp_path / "four")
    assert json.loads((tmp_path / "four" / "index.json").read_text())["kind"] == "autoencoder"
