"""Strangers' parameters, weights, arrays, archives: taken as data or refused in one line; nothing runs or lies elsewhere."""

import argparse
import copy
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from maskdit import cli
from maskdit.artifacts.arrays import read_array, read_arrays
from maskdit.artifacts.atomic import read_json, save_array, sha256, write_json
from maskdit.artifacts.manifest import inputs_of
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.shards import savez
from maskdit.artifacts.step import STEPS
from maskdit.config.base import LONGEST, UserError
from maskdit.config.images import Folder
from maskdit.config.load import load, validate
from maskdit.evaluation.extractors import NETWORKS, Network
from maskdit.evaluation.reference import brought
from maskdit.images.dataset import Images, npz_images
from maskdit.images.download import allowed, name_of
from maskdit.images.fetch import fetch
from maskdit.images.imagenet import in_tables
from maskdit.images.index import Found
from maskdit.images.scan import scan
from maskdit.latents.autoencoder import geometry
from maskdit.latents.dataset import Latents
from maskdit.latents.published import Webdataset
from maskdit.model import checkpoint
from maskdit.reporting.pictures import images_of as images_of_samples
from maskdit.sampling.sample import find
from maskdit.tools.doctor import examine, training
from maskdit.weights.export import weights_of
from maskdit.weights.reading import read_file, read_folder
from project import ROOT, TOY, project, run

CONFIGS = 500
PAYLOADS = (
    "; touch {}",
    "$(touch {})",
    "`touch {}`",
    "| touch {}",
    "& touch {} &",
    "&& touch {}",
    "demo\ntouch {}",
    "demo\rtouch {}",
    "'; touch {}; '",
    '"; touch {}; "',
    "--out {}",
    "-- ../{}",
    "../../{}",
    "demo/../../{}",
    "demo/$(touch${{IFS}}{})/..",
    "{{input}} {{params}}",
    "${{fetch.demo.seed}}",
    "{{wildcards.key!r}}",
    "%s %n {{0}}",
    "déjà-vu {}",
    "\u202edemo\u2066",
    "\U0001f600",
    "\ud800",
    "de\0mo",
    "\x1b[2Jdemo",
    "demo\u2028touch {}",
    "ｄｅｍｏ",  # noqa: RUF001, wide letters
    "[key]",
    "literal[",
    "__class__",
    "model_fields",
    "",
    " ",
    "~root",
    "*",
    "demo #",
    "!!python/object/apply:os.system",
    "https://[x",
    "https://h:99999999/x",
    "https://h/%00",
    "https://h/$(touch {})",
    "file:///etc/passwd\n{}",
    "a" * 100_000,
    "9" * 5000,
)


def refusal(of: Callable[..., Any], *arguments: Any) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as refused:
        of(*arguments)
    line = str(refused.value)
    assert line.isprintable()
    assert len(line) <= LONGEST
    return line


def main(words: list[str]) -> int:
    """The exit code of a command."""
    try:
        return cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)


def leaves(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the strings of a tree are, and its keys, which end with None."""
    if isinstance(tree, dict):
        for key in tree:
            yield (*place, key, None)
            yield from leaves(tree[key], (*place, key))
    elif isinstance(tree, list):
        for number, part in enumerate(tree):
            yield from leaves(part, (*place, number))
    elif isinstance(tree, str):
        yield place


def planted(tree: Any, place: tuple[Any, ...], payload: str, instead: bool) -> Any:
    """A copy of a tree with a payload in place of a string or key, or behind it."""
    tree = copy.deepcopy(tree)
    *path, last = place[:-1] if place[-1] is None else place
    inside = tree
    for part in path:
        inside = inside[part]
    hostile = payload if instead else f"{last if place[-1] is None else inside[last]}{payload}"
    if place[-1] is None:
        inside[hostile] = inside.pop(last)
    else:
        inside[last] = hostile
    return tree


def commands(tree: dict[str, Any]) -> Iterator[str]:
    """What DVC would hand to a shell, by its own template."""
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for key, item in tree[stage["foreach"][2:-1]].items():
            for line in stage["do"]["cmd"]:
                yield re.sub(r"\$\{(key|item\.(\w+))\}", lambda found: str(item[found[2]] if found[2] else key), line)  # noqa: B023


def test_of_500_hostile_configs_each_is_refused_by_its_key_or_keeps_out_of_every_command(tmp_path):
    canary, draw = tmp_path / "canary", random.Random(0)
    trees = [json.loads(json.dumps(yaml.safe_load(path.read_text()))) for path in (TOY, ROOT / "params.yaml")]
    places = [list(leaves(tree)) for tree in trees]
    taken = 0
    for number in range(CONFIGS):
        which = number % len(trees)
        place, payload = draw.choice(places[which]), PAYLOADS[number % len(PAYLOADS)].format(canary)
        tree = planted(trees[which], place, payload, draw.random() < 0.5)
        try:
            validate(tree)
        except UserError as refused:
            line = str(refused)
            assert line.isprintable(), ascii(line)
            assert len(line) <= LONGEST
            words = [str(part) for part in place if part is not None]
            named = words[: min(2, len(words) - (place[-1] is None))]
            renamed = place[-1] is None and repr(place[-2]) in line  # what pointed at the old name says so
            names = str(UserError(payload[:99])) in line or (named and all(word in line for word in named))
            assert names or renamed, (place, line)
        else:
            taken += 1
            bad = [line for line in commands(tree) if not re.fullmatch(r"maskdit [a-z]+[a-z0-9_./ -]*", line)]
            assert not bad, bad[0]
    assert 5 < taken < CONFIGS / 5, "a title, a root, a url"
    assert not canary.exists()


def test_dvc_asks_for_the_check_of_the_whole_config_before_each_of_its_steps():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert len(stages) == len(STEPS)
    assert all(stage["do"]["cmd"][0] == "maskdit check" and len(stage["do"]["cmd"]) == 2 for stage in stages.values())
    outs = [out for stage in stages.values() for out in stage["do"]["outs"]]
    assert all(list(out.values()) == [{"persist": True}] for out in outs), "or DVC removes them before it has asked"


def test_snakemake_s_shells_hold_no_word_of_the_config_but_keys():
    shells = [
        line for path in (ROOT / "workflow").rglob("*.smk") for line in re.findall(r'^\s+"(maskdit .*)",?$', path.read_text(), re.M)
    ]
    assert len(shells) == len(STEPS) + 4, "the steps, and shares of four of them"
    used = {word for line in shells for word in re.findall(r"\{(.*?)\}", line)}
    assert {word.split(".")[0] for word in used} == {"wildcards", "params"}
    assert {word for word in used if word.startswith(("wildcards", "params"))} == {"wildcards.key", "params.part"}  # 3/8


YAMLS = {
    "a call": b"fetch: !!python/object/apply:os.mkdir [%s]\n",
    "an object": b"fetch: !!python/object/new:os.mkdir [%s]\n",
    "a name": b"fetch: !!python/name:os.mkdir\n# %s",
    "a module": b"fetch: !!python/module:os\n# %s",
    "an alias of itself": b"fetch: &a {demo: *a}\n# %s",
    "a billion": b"a: &a [x]\n"
    + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c]\n" % (n + 1, n + 1, n, n, n, n) for n in range(97, 121))
    + b"# %s",
    "depth": b"fetch: " + b"[" * 3000 + b"# %s",
    "no UTF-8": b"fetch: \xff\xfe%s",
    "a long number": b"fetch: " + b"9" * 5000 + b" # %s",
    "a date": b"fetch: 2001-99-99 # %s",
    "a control character": b"fetch: \x1b[2J%s",
    "a key that is a list": b"? [a, b]\n: %s",
    "a key that is a number": b"1: %s",
    "a merge of nothing": b"fetch:\n  <<: %s",
    "binary": b"fetch: !!binary '###%s'",
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_would_do_more_than_tell_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(YAMLS[name].replace(b"%s", b"canary"))
    assert main(["check"]) == 2
    assert re.fullmatch(r"maskdit: params\.yaml: .*\n", capsys.readouterr().err)
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "url", ["https://[x", "http://[::1/x", "https://h:x", "data:,x", "ftp://h/x", "//h/x", "", "jar:file:///x!/y"]
)
def test_an_address_that_is_none_is_not_fetched(url):
    assert url == "https://h:x" or not allowed(url)


def test_an_address_names_no_file_elsewhere():
    names = [
        name_of(f"https://h/{path}")
        for path in ("a/x.pt", "..", "%2e%2e", "%2e", "..%2f..%2fx.pt", "a%00b", ".x", "-x", "a%0Ab", "")
    ]
    assert names == ["x.pt", "weights", "weights", "weights", "x.pt", "weights", "weights", "weights", "weights", "weights"]


class Trap:
    """What makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def legacy_tar(path: Path, trap: Any) -> None:
    """torch's format of before 2017."""
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(trap, 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def torch_files(trap: Any) -> dict[str, Callable[[Path], Any]]:
    """What a file of weights may be that runs code."""
    tensors = {"x": torch.zeros(1)}
    spaced = argparse.Namespace(step=trap)
    return {
        "zip": lambda path: torch.save(trap, path),
        "zip among tensors": lambda path: torch.save({"ema": {**tensors, "y": trap}}, path),
        "zip in the arguments": lambda path: torch.save({"ema": tensors, "args": spaced}, path),
        "before 1.6": lambda path: torch.save({"ema": trap}, path, _use_new_zipfile_serialization=False),
        "pickle 2": lambda path: path.write_bytes(pickle.dumps(trap, 2)),
        "pickle 5": lambda path: path.write_bytes(pickle.dumps({"ema": trap}, 5)),
        "tar": lambda path: legacy_tar(path, trap),
    }


TORCH = list(torch_files(None))


@pytest.mark.parametrize("name", TORCH)
def test_no_pickle_in_a_checkpoint_is_executed(name, tmp_path, capsys):
    path = tmp_path / "x.pt"
    torch_files(Trap(tmp_path / "canary"))[name](path)
    for words in (
        ["import", str(path), "--vae", str(tmp_path), "--out", str(tmp_path / "run"), "--step", "1"],
        ["doctor", str(path)],
    ):
        assert main(words) == 2
        assert re.fullmatch(r"maskdit: .*x\.pt: .*\n", capsys.readouterr().err)
    assert [each.name for each in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("name", TORCH)
def test_no_pickle_in_a_feature_network_is_executed(name, family, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    monkeypatch.setitem(NETWORKS, family, dict)  # the network itself would be built after its weights are read
    torch_files(Trap(tmp_path / "canary"))[name](path)
    write_json(tmp_path / "index.json", {"kind": "extractor", "family": family, "file": "x.pth", "sha256": sha256(path)})
    assert f"not the weights of {family}" in refusal(Network, tmp_path)
    assert not (tmp_path / "canary").exists()


def objects(canary: Path) -> Any:
    """An array of two objects, one of which is a trap."""
    array = np.empty(2, object)
    array[:] = [Trap(canary), 1]
    return array


def pickled(path: Path, canary: Path) -> None:
    np.save(path.with_name("tmp.npy"), objects(canary), allow_pickle=True)
    path.with_name("tmp.npy").rename(path)


def images_of(home: Path, hostile: str) -> None:
    Images(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, int), np.zeros(2, bool), ("a",)).save(home)
    pickled(home / hostile, home / "canary")


def latents_of(home: Path, hostile: str) -> None:
    save_array(home / "moments.npy", np.zeros((2, 1, 8, 2, 2), np.float16))
    save_array(home / "labels.npy", np.zeros(2, int))
    space = {"channels": 4, "side": 2, "shift": [0.0] * 4, "scale": [1.0] * 4, "vae": "x", "classes": ["a"]}
    shards = [{"file": "moments.npy", "count": 2}]
    write_json(home / "index.json", {"shape": [2, 1, 8, 2, 2], "dtype": "float16", "space": space, "shards": shards})
    pickled(home / hostile, home / "canary")


def npz_of(home: Path, hostile: str) -> None:
    np.savez(home / "batch.npz", **{"mu": np.zeros(2), "sigma": np.eye(2), hostile: objects(home / "canary")})
    write_json(home / "index.json", {"kind": "npz"})


def samples_of(home: Path, hostile: str) -> None:
    images_of(home, hostile)
    write_json(home / "index.json", {"shards": ["images.npy"]})


ARRAYS = {  # what is made with which hostile part, and who reads it
    **{f"images {name}": (images_of, name, Images.load) for name in ("images.npy", "labels.npy", "heldout.npy")},
    **{f"latents {name}": (latents_of, name, Latents.load) for name in ("moments.npy", "labels.npy")},
    "samples": (samples_of, "images.npy", images_of_samples),
    "features": (npz_of, "features", lambda home: read_arrays(home / "batch.npz")),
    "statistics": (npz_of, "mu", brought),
    "other statistics": (npz_of, "sigma_s", brought),
    "images of a batch": (npz_of, "arr_0", lambda home: npz_images(home / "batch.npz")),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_no_object_of_an_array_is_made(name, tmp_path):
    make, hostile, read = ARRAYS[name]
    make(tmp_path, hostile)
    refusal(read, tmp_path)
    assert not (tmp_path / "canary").exists()


def test_no_member_of_a_webdataset_is_executed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.latent", pickle.dumps(Trap(tmp_path / "canary"))), ("0.cls", b"0"), ("0.pyd", pickle.dumps(1))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "it is not read" in refusal(Webdataset(tmp_path, (2,)).read, np.arange(1))
    assert not (tmp_path / "canary").exists()


class Extension(pa.ExtensionType):  # type: ignore[misc]
    """A type whose description is a pickle, as PyArrow once executed it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary
        super().__init__(pa.int64(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Trap(self.canary))

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> Any:
        raise AssertionError("what a stranger calls an extension was believed")


@pytest.mark.parametrize(
    "kind", ["an extension", "a pickle for a picture", "words", "a huge label", "a negative label", "no columns"]
)
def test_no_cell_of_a_table_is_executed_or_believed(kind, tmp_path):
    trap, labels = pickle.dumps(Trap(tmp_path / "canary")), pa.array([0, 0])
    if kind == "an extension":
        labels = pa.ExtensionArray.from_storage(Extension(tmp_path / "canary"), labels)
    elif kind != "a pickle for a picture":
        labels = {"words": pa.array(["a", "b"]), "a huge label": pa.array([0, 2**60]), "no columns": labels}.get(
            kind, pa.array([0, -7])
        )
    image = pa.array([{"bytes": trap, "path": f"n00000000_{number}.JPEG"} for number in range(2)])
    columns = {"x": labels} if kind == "no columns" else {"image": image, "label": labels}
    parquet.write_table(pa.table(columns), tmp_path / "train-00000-of-00001.parquet")
    if kind in ("an extension", "a pickle for a picture"):
        found = in_tables(tmp_path, "train")
        assert found.read(0) == trap, "bytes, nothing more"
    else:
        refusal(in_tables, tmp_path, "train")
    assert not (tmp_path / "canary").exists()


def test_weights_beside_a_config_are_read_from_safetensors_only(tmp_path):
    from maskdit.latents import autoencoder

    torch_files(Trap(tmp_path / "canary"))["zip"](tmp_path / "diffusion_pytorch_model.bin")
    write_json(tmp_path / "config.json", {"_class_name": "DiTTransformer2DModel"})
    assert "only safetensors are read" in refusal(read_folder, tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "AutoencoderKL", "auto_map": {"AutoModel": "x.Y"}, "latent_channels": 4})
    with pytest.raises((UserError, FileNotFoundError)):
        autoencoder.load(tmp_path, torch.device("cpu"))
    assert not (tmp_path / "canary").exists()


MANIFEST: dict[str, Any] = {
    "node": "encode/a",
    "files": {"a.bin": {"bytes": 3, "sha256": "0" * 64}},
    "lineage": {"encode/a": {"config": {}, "digest": "0" * 64}},
    "made": {"commit": "x"},
}
WRONG: tuple[Any, ...] = (
    None,
    1,
    "x",
    [],
    {},
    -1,
    True,
    [1],
    {"bytes": "many"},
    "../../etc/passwd",
    {"x": {}},
    1e999,
    "encode",
    "\x1b[2J",
)


def test_each_of_400_hostile_manifests_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    draw, said = random.Random(0), list[str]()
    places: list[tuple[Any, ...]] = [(), *((key,) for key in MANIFEST), ("files", "a.bin"), ("files", "a.bin", "bytes")]
    places += [("files", "a.bin", "sha256"), ("lineage", "encode/a"), ("lineage", "encode/a", "digest")]
    for number in range(400):
        place, value = places[number % len(places)], draw.choice(WRONG)
        tree: Any = copy.deepcopy(MANIFEST)
        if place:
            inside = tree
            for part in place[:-1]:
                inside = inside[part]
            inside[place[-1]] = value
        else:
            tree = value
        (tmp_path / "manifest.json").write_text(json.dumps(tree))
        try:
            assert inputs_of(tmp_path)[0][1].lineage.keys() <= {"encode/a"}, "less is no lie"
        except UserError as error:
            said.append(str(error))
    for name in ("/etc/passwd", "../manifest.json", "a/../../x"):
        tree = {**MANIFEST, "files": {name: {"bytes": 3, "sha256": "0" * 64}}}
        (tmp_path / "manifest.json").write_text(json.dumps(tree))
        refusal(inputs_of, tmp_path)
    for text in ("[" * 100_000, "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "1" * 5000):
        (tmp_path / "manifest.json").write_text(text, "latin1")
        refusal(inputs_of, tmp_path)
    assert len(said) > 300
    assert all(line.isprintable() for line in said)


READERS: dict[str, Callable[[Path], Any]] = {
    "images": Images.load,
    "latents": Latents.load,
    "network": Network,
    "store": Found.load,
    "run": lambda home: weights_of(home, None, ["ema"]),
    "milestone": lambda home: find(home, "final"),
    "autoencoder": geometry,
    "doctor": lambda home: list(examine(home)),
    "log": lambda home: list(training(home / "log.jsonl")),
}


@pytest.mark.parametrize("text", ["[]", "1", "null", '"kind"', "{}", '{"kind": []}', "[" * 100_000, "{", "\x00"])
@pytest.mark.parametrize("name", READERS)
def test_an_index_that_is_none_is_refused_in_one_line(name, text, tmp_path):
    for file in ("index.json", "store.json", "config.json", "facts.json", "log.jsonl"):
        if (file == "log.jsonl") == (name == "log"):
            (tmp_path / file).write_text(text)
    if name == "doctor" and "{" in text and "}" in text:
        return  # an artifact without a kind is one, too
    refusal(READERS[name], tmp_path)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname, made.mode = len(data), kind, link, mode
    return made, data


ESCAPES = {
    "dots": [member("../evil.png", png())],
    "many dots": [member("red/" + "../" * 20 + "tmp/evil.png", png())],
    "absolute": [member("/evil.png", png())],
    "dots at the end": [member("red/..", png())],
    "symlink": [member("red/link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "symlink to a folder": [member("red/blue", kind=tarfile.SYMTYPE, link="/tmp"), member("red/blue/evil.png", png())],
    "hardlink": [member("red/hard.png", kind=tarfile.LNKTYPE, link="../../secret")],
    "hardlink to a symlink": [
        member("red/link.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("red/hard.png", kind=tarfile.LNKTYPE, link="red/link.png"),
    ],
    "chain of 1000 symlinks": [member(f"red/l{number}", kind=tarfile.SYMTYPE, link=f"l{number + 1}") for number in range(1000)]
    + [member("red/l1000", kind=tarfile.SYMTYPE, link="../" * 50), member("red/l0/evil.png", png())],
    "character device": [member("red/null.png", kind=tarfile.CHRTYPE)],
    "block device": [member("red/disk.png", kind=tarfile.BLKTYPE)],
    "pipe": [member("red/pipe.png", kind=tarfile.FIFOTYPE)],
    "a type unknown": [member("red/what.png", kind=b"Z")],
    "hidden": [member(".ssh/evil.png", png()), member("red/.evil.png", png())],
    "NUL": [member("red/evil\0.png", png())],
    "backslashes": [member("..\\..\\evil.png", png())],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_of_16_escapes_from_a_tar_none_writes_a_file_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "x.tar", "w") as tar:
        for info, data in [member("red/good.png", png(), mode=0o4777), *ESCAPES[name]]:
            tar.addfile(info, io.BytesIO(data))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = scan(tmp_path / "root")
    count = len(found)
    assert all(".." not in part.split("/") and not part.startswith("/") for part in found.names)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    out = tmp_path / "out"
    out.mkdir()
    entry = {"source": "folder", "root": str(tmp_path / "root"), "bad": "skip", "resolution": 4, "images": count, "left_out": 0.999}
    fetch(Folder.model_validate(entry), out=out)
    new = [path for path in tmp_path.rglob("*") if path not in before and out not in path.parents and path != out]
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"scratch"}
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.stat().st_mode & 0o6000]
    assert not Path("/evil.png").exists()
    assert not Path("/tmp/evil.png").exists()


def test_a_zip_slip_writes_nothing_and_its_members_are_left_out(tmp_path):
    names = ("../evil.png", "red/../../evil.png", "red/.evil.png", "./../evil.png", "..\\evil.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("red/good.png", *names):
            archive.writestr(name, png())
        for kind in (0o120777, 0o20666, 0o10666, 0o140777):
            odd = zipfile.ZipInfo(f"red/{kind:o}.png")
            odd.external_attr = kind << 16
            archive.writestr(odd, "/etc/passwd")
    assert scan(tmp_path).names == ("red/good.png",)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_absolute_names_of_an_archive_are_read_where_they_lie_and_written_nowhere(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("/red/evil.png", "//red//more.png", "C:\\red\\other.png"):
            archive.writestr(name, png())
    assert sorted(name.rpartition("/")[2] for name in scan(tmp_path).names) == ["evil.png", "more.png", "other.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def number(value: int) -> bytes:
    """A number of a tar header in GNU's binary form, which may be negative or enormous."""
    return bytes([0xFF if value < 0 else 0x80]) + (value % 256**11).to_bytes(11, "big")


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A tar header that claims any size."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136], block[156:157] = number(size), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_in_tar(depth: int) -> bytes:
    data = png()
    name = "red/a.png"
    for _ in range(depth):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            info, _ = member(name, data)
            tar.addfile(info, io.BytesIO(data))
        data, name = stream.getvalue(), "a.tar"
    return data


def zip_at(offset: int) -> bytes:
    """A zip file whose directory says that its member begins at a byte where none can be."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("red/a.png", png())
        archive.filelist[0].header_offset = offset
    return stream.getvalue()


BOMBS = {  # files that are small and claim much: refused in one line, at once
    "a negative size": header("red/a.png", -512) + bytes(2048),
    "a circle": header("red/a.png", -1024) + header("red/b.png", 0) + bytes(1024),
    "2^80 bytes": header("red/a.png", 2**80) + bytes(2048),
    "a terabyte": header("red/a.png", 2**40) + bytes(2048),
    "a name of a terabyte": header("x", 2**40, b"L") + bytes(2048),
    "attributes of a terabyte": header("x", 2**40, b"x") + bytes(2048),
    "a name of no bytes": header("x", -1, b"L") + bytes(2048),
    "5000 headers of headers": b"".join(header("x", 1, b"L") + b"y" + bytes(511) for _ in range(5000)),
    "a size that is no number": tarfile.TarInfo("red/a.png").tobuf()[:124] + b"zzzzzzzzzzz\0" + bytes(2000),
    "attributes of a negative size": header("x", 13, b"x")
    + b"13 size=-512\n".ljust(512, b"\0")
    + header("red/a.png", 0)
    + bytes(1024),
}


@pytest.mark.parametrize("name", BOMBS)
def test_of_10_tar_headers_that_claim_what_is_not_there_each_is_refused_at_once(name, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.tar").write_bytes(BOMBS[name])
    began = time.monotonic()
    assert "x.tar" in refusal(scan, tmp_path / "root")
    (tmp_path / "root" / "x.tar").rename(tmp_path / "x.tar")
    refusal(Webdataset, tmp_path, (2,))
    assert time.monotonic() - began < 2


def test_tars_in_tars_are_opened_once(tmp_path):
    for depth in (1, 2):
        (tmp_path / "x.tar").write_bytes(tar_in_tar(depth))
        assert len(scan(tmp_path)) == 1
    for depth in (3, 300):
        (tmp_path / "x.tar").write_bytes(tar_in_tar(depth))
        assert "x.tar: a.tar: images in it cannot be read at random" in refusal(scan, tmp_path)


@pytest.mark.parametrize("offset", [2**33, 2**62, 2**63, 2**64 - 1])
def test_a_zip_that_points_outside_of_itself_is_refused(offset, tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_at(offset))

    def read() -> None:
        scan(tmp_path).read(0)

    assert "x.zip" in refusal(read)


LISTING = """
import re, sys, time
from pathlib import Path
from maskdit.images.scan import scan
def highest():  # not ru_maxrss, which begins with that of the process before exec
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, began = highest(), time.monotonic()
found = scan(Path(sys.argv[1]))
print(len(found), time.monotonic() - began, highest() - before)
"""


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_100_000_members_are_listed_in_seconds_and_in_little_memory(kind, tmp_path):
    count = 100_000
    if kind == "tar":
        template = tarfile.TarInfo("red/000000.png").tobuf()
        with (tmp_path / "x.tar").open("wb") as stream:
            for number in range(count):
                block = bytearray(template[:512])
                block[4:10] = b"%06d" % number
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                stream.write(block)
            stream.write(bytes(1024))
    else:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for number in range(count):
                archive.writestr(f"red/{number:06d}.png", b"")
    done = subprocess.run([sys.executable, "-c", LISTING, str(tmp_path)], capture_output=True, text=True, check=True)
    found, seconds, mebibytes = map(float, done.stdout.split())
    print(f"{kind}: {found:.0f} members in {seconds:.1f} s, {mebibytes:.0f} MiB")
    assert found == count
    assert seconds < 30
    assert 0 < mebibytes < 300


def test_a_packed_array_that_inflates_beyond_the_limit_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("maskdit.artifacts.arrays.INFLATED", 2**20)
    np.savez_compressed(tmp_path / "x.npz", features=np.zeros(2**18))
    assert "is packed and has more than 1 MiB" in refusal(read_arrays, tmp_path / "x.npz")


@pytest.mark.parametrize("shape", [(2**40,), (2**62, 2), (-1,), (2**31, 2**31, 2**31)])
def test_an_array_that_claims_more_than_its_file_is_refused_before_memory_is_asked_for(shape, tmp_path):
    with (tmp_path / "x.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
        stream.write(bytes(64))
    refusal(read_array, tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "mu.npy")
    refusal(read_arrays, tmp_path / "x.npz")


@pytest.mark.parametrize(
    "array", [np.zeros(0, int), np.zeros((0, 4)), np.array(3), np.asfortranarray(np.arange(6).reshape(2, 3))], ids=repr
)
def test_an_array_of_any_shape_is_read_as_it_was_saved(array, tmp_path):
    save_array(tmp_path / "x.npy", array)
    for mapped in (False, True):
        np.testing.assert_array_equal(read_array(tmp_path / "x.npy", mapped=mapped), array)


def torch_file(path: Path) -> None:
    torch.save({"ema": {"x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)}, "args": argparse.Namespace(step=3)}, path)


def table_file(path: Path) -> None:
    image = pa.array([{"bytes": png(), "path": f"n0000000{label}_1.JPEG"} for label in range(2)])
    parquet.write_table(pa.table({"image": image, "label": pa.array([0, 1])}), path)


def archive_file(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"red/{number}.png", png())
        return
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            info, data = member(f"red/{'é' * 60}{number}.png", png())
            info.pax_headers = {"comment": "x" * 200}
            tar.addfile(info, io.BytesIO(data))


def every(found: Found) -> list[bytes]:
    return [found.read(row) for row in range(len(found))]


FORMATS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "torch": ("x.pt", torch_file, read_file),
    "safetensors": ("x.safetensors", lambda path: checkpoint.save(path, {"a": torch.zeros(4)}, {"step": 1}), checkpoint.load),
    "npy": ("x.npy", lambda path: save_array(path, np.arange(20)), read_array),
    "npz": ("x.npz", lambda path: savez(path, {"mu": np.zeros(4), "sigma": np.eye(4)}), read_arrays),
    "batch": ("x.npz", lambda path: savez(path, {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}), npz_images),
    "json": ("x.json", lambda path: write_json(path, {"a": [1, 2, {"b": None}]}), read_json),
    "tar": ("x.tar", archive_file, lambda path: every(scan(path.parent))),
    "zip": ("x.zip", archive_file, lambda path: every(scan(path.parent))),
    "parquet": ("train-00000-of-00001.parquet", table_file, lambda path: every(in_tables(path.parent, "train"))),
    "params": ("params.yaml", lambda path: path.write_bytes(TOY.read_bytes()[:900]), load),
}
DAMAGES = 60  # of each format


@pytest.mark.parametrize("name", FORMATS)
def test_of_600_files_cut_or_with_flipped_bits_each_is_read_or_refused_in_one_line(name, tmp_path):
    file, make, read = FORMATS[name]
    path, draw = tmp_path / file, random.Random(name)
    make(path)
    whole = path.read_bytes()
    said: list[str] = []
    for number in range(DAMAGES):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[draw.randrange(len(data)) :]
        for _ in range(number % 3):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            read(path)
        except UserError as error:
            said.append(str(error))
    assert [line for line in said if not line.isprintable()] == []
    assert len(said) >= DAMAGES // 6, "most cuts"


def artifact_of(kind: str, out: Path) -> None:
    """A small artifact of a step, published with its manifest."""
    draw = np.random.default_rng(0)
    with publishing(out, f"{kind}/a", {}, {}) as place:
        if kind == "encode":
            moments = draw.normal(0, 4, (8, 1, 8, 4, 4)).astype(np.float16)
            save_array(place / "moments-0000.npy", moments)
            space = {"channels": 4, "side": 4, "shift": [0.0] * 4, "scale": [0.1] * 4, "vae": "x", "classes": ["a"]}
            shards = [{"file": "moments-0000.npy", "count": 8}]
            write_json(place / "index.json", {"shape": [8, 1, 8, 4, 4], "dtype": "float16", "space": space, "shards": shards})
        elif kind == "sample":
            save_array(place / "images-0000.npy", draw.integers(0, 255, (8, 4, 4, 3), np.uint8))
            write_json(place / "index.json", {"shards": ["images-0000.npy"], "checkpoint": {}, "protocol": {"images": 8}})
        else:
            name = "features-0000.npz" if kind == "features" else "reference.npz"
            savez(place / name, {"features": draw.random((8, 4)), "mu": np.zeros(4), "sigma": np.eye(4)})
            write_json(place / ("index.json" if kind == "features" else "real.json"), {"shards": [name], "protocol": {"images": 8}})
        save_array(place / "labels.npy", np.zeros(8, int))


@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
@pytest.mark.parametrize("kind", ["encode", "features", "sample", "reference"])
def test_a_damaged_shard_is_named_by_the_doctor_and_by_the_step_that_reads_it(kind, damage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / kind
    artifact_of(kind, out)
    assert main(["doctor", str(out)]) == 0
    capsys.readouterr()
    for name in sorted(path.name for path in out.iterdir() if path.name != "manifest.json"):
        whole = (out / name).read_bytes()
        bad = bytearray(whole)
        bad[len(bad) // 2] ^= 4
        (out / name).unlink()
        if damage != "missing":
            (out / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else bad)
        assert main(["doctor", str(out)]) == 1
        said = capsys.readouterr()
        assert said.err == ""
        assert [line for line in said.out.splitlines() if line.startswith("problem: ") and f"{kind}/{name}" in line]
        assert f"{kind}/{name}" in refusal(inputs_of, out)
        (out / name).write_bytes(whole)
    assert main(["doctor", str(out)]) == 0


def test_the_doctor_hashes_what_a_step_is_too_large_to_hash_each_time(tmp_path, capsys):
    artifact_of("sample", tmp_path / "a")
    path = tmp_path / "a" / "images-0000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert inputs_of(tmp_path / "a", largest=0), "as for a file of more than 256 MiB"
    assert main(["doctor", str(tmp_path / "a")]) == 1
    assert "images-0000.npy is not the file that was written: its sha256 differs" in capsys.readouterr().out


def test_a_description_that_is_no_dictionary_is_no_checkpoint(tmp_path):
    for text in ("[]", "1", "{", "null", "[" * 100_000):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"maskdit": text})
        assert "not a checkpoint of maskdit" in refusal(checkpoint.facts, tmp_path / "x.safetensors")


HOSTILE = {  # in params.yaml: what is there, what is there instead
    "a key": ("fetch:\n  demo:", 'fetch:\n  "demo; touch canary":'),
    "a key elsewhere": ("fetch:\n  demo:", 'fetch:\n  "../../precious":'),
    "a data set": (
        "vae:\n  demo:\n    source: train\n    dataset: demo",
        'vae:\n  demo:\n    source: train\n    dataset: "demo/$(touch canary)/.."',
    ),
    "a study": ("study: demo\n    reference", 'study: "demo`touch canary`"\n    reference'),
    "an object": ("resolution: 16", "resolution: !!python/object/apply:os.system ['touch canary']"),
}


@pytest.mark.pipeline
@pytest.mark.parametrize("name", HOSTILE)
def test_neither_engine_runs_a_word_of_params_yaml(name, tmp_path):
    where = project(tmp_path)
    old, new = HOSTILE[name]
    text = (where / "params.yaml").read_text()
    assert old in text
    (where / "params.yaml").write_text(text.replace(old, new))
    for folder in ("precious", "artifacts/raw/demo", "artifacts/raw/demo-features"):
        (where / folder).mkdir(parents=True)
        (where / folder / "mine").write_text("mine")
    (where / "artifacts" / "raw" / "demo" / "manifest.json").write_text("{}")
    for command in (("snakemake", "--cores", "1"), ("dvc", "repro"), ("dvc", "repro", "--single-item", "vae@demo")):
        code, said = run(where, *command)
        assert code
        assert "Traceback" not in said
        assert not list(where.rglob("canary*"))
        assert (where / "precious" / "mine").read_text() == "mine"


@pytest.mark.pipeline
def test_a_hostile_folder_name_is_a_folder_name_in_a_real_run(tmp_path):
    where = project(tmp_path)
    root = "a $(touch canary); `touch canary` & 'b' \"c\" {input} ../../{params} -- é"
    home = where / root / "red"
    home.mkdir(parents=True)
    (home / "a.png").write_bytes(png())
    (where / root / "blue").mkdir()
    (where / root / "blue" / "b.png").write_bytes(png())
    tree = yaml.safe_load((where / "params.yaml").read_text())
    tree["fetch"]["demo"] = {"source": "folder", "root": root, "bad": "fail", "resolution": 16, "images": 96, "heldout": 0.0}
    tree["table"]["demo"]["title"] = tree["curves"]["demo"]["title"] = "$(touch canary); {input} `touch canary`"
    (where / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(tree))))
    code, said = run(where, "snakemake", "--cores", "1", "--dry-run", "--printshellcmds")
    shown = re.findall(r"^Shell command: (maskdit .*)$", said, re.M)
    assert not code, said
    jobs = int(re.findall(r"^total +(\d+)$", said, re.M)[-1])
    assert len(shown) == jobs - 1, "all but the default target, which runs nothing"
    assert all(re.fullmatch(r"maskdit [a-z]+ [a-z0-9-]+", line) for line in shown)
    for command in (("snakemake", "--cores", "1", ".scratch/made/fetch/demo"), ("dvc", "repro", "fetch@demo")):
        code, said = run(where, *command)
        assert code
        assert "2 images found, params.yaml declares images: 96" in said
        assert not list(where.rglob("canary*"))
