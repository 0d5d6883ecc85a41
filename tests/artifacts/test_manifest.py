"""Artifacts: whole or not there, and never of unknown making."""

import errno
import json
import os
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskdit.artifacts import atomic
from maskdit.artifacts.atomic import digest, named, read_json, replacing, save_array, sha256, write_json
from maskdit.artifacts.manifest import Known, inputs_of, lineage, manifest_file, read_manifest
from maskdit.artifacts.publish import demand_replaceable, publishing
from maskdit.config.base import Section, UserError, new
from maskdit.runtime.lock import me


class Entry(Section):
    """An entry with some numbers, one of which came later."""

    lr: float
    batch: int = 1
    precision: str | None = None
    later: int = new(0)


class Params:
    """As much of params.yaml as lineage asks for."""

    def __init__(self, **entries):
        self.entries = entries

    def entry(self, verb, key):
        return Entry(**self.entries[f"{verb}_{key}"])


def make(out, node="encode/a", config=None, ancestors=None, content="one"):
    with publishing(out, node, config or {"lr": 1.0}, ancestors or {}) as place:
        if out.suffix == ".csv":
            place.write_text(content)
            return None
        if out.suffix:
            write_json(place, {"content": content})
        else:
            (place / "part").mkdir()
            (place / "part" / "x.txt").write_text(content)
    return inputs_of(out)[0][1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_are_published_whole(tmp_path):
    save_array(tmp_path / "a.npy", np.arange(5))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(5))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


def test_a_published_folder_holds_the_size_and_hash_of_each_file(tmp_path):
    manifest = make(tmp_path / "out")
    file = tmp_path / "out" / "part" / "x.txt"
    assert manifest.files == {"part/x.txt": Known(3, sha256(file))}
    assert manifest.lineage["encode/a"].config == {"lr": 1.0}
    assert {"commit", "machine"} <= set(manifest.made)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_step_that_fails_leaves_the_old_folder_untouched(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(RuntimeError), publishing(tmp_path / "out", "encode/a", {}, {}) as place:
        (place / "x.txt").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "part" / "x.txt").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_publishing_again_replaces_the_whole_folder_and_sweeps_what_a_killed_step_left(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out" / "stale").write_text("")
    killed(tmp_path / "out")
    make(tmp_path / "out", content="two")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "part"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def killed(out):
    """The workshop that a step leaves that was killed there."""
    home = out.parent / f".{out.name}.making-killed"
    (home / "made" / out.name).mkdir(parents=True)
    (home / "lock").write_text("")
    (home / "lock.lease").write_text(json.dumps({**me(), "process": 2**22 + 1}))
    return home


def test_a_step_removes_neither_folders_of_others_nor_the_workshop_of_one_that_is_at_work(tmp_path):
    (tmp_path / ".out.backup").mkdir()
    (tmp_path / ".out.making-mine").mkdir()
    with publishing(tmp_path / "out", "encode/a", {}, {}) as first:
        (first / "x.txt").write_text("first")
        with pytest.raises(UserError), publishing(tmp_path / "out", "encode/a", {}, {}):
            raise UserError("another process is training this recipe")
        assert (first / "x.txt").exists()
    assert (tmp_path / "out" / "x.txt").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.backup", ".out.making-mine", "out"]


def test_an_artifact_that_a_killed_step_had_taken_away_to_replace_it_comes_back(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out").rename(killed(tmp_path / "out") / "old")
    with pytest.raises(RuntimeError), publishing(tmp_path / "out", "encode/a", {}, {}):
        raise RuntimeError
    assert (tmp_path / "out" / "part" / "x.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_steps_that_publish_the_same_at_once_the_last_stays_and_both_succeed(tmp_path, monkeypatch):
    make(tmp_path / "out")
    rename = Path.rename

    def overtaken(path, target):  # another process publishes between the two renames
        if target == tmp_path / "out" and not overtaken.done:
            overtaken.done = True
            make(tmp_path / "out", content="other")
        return rename(path, target)

    overtaken.done = False
    monkeypatch.setattr(Path, "rename", overtaken)
    make(tmp_path / "out", content="mine")
    assert (tmp_path / "out" / "part" / "x.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "error", [SystemExit(143), KeyboardInterrupt(), OSError(errno.EIO, "disk")], ids=lambda error: type(error).__name__
)
def test_a_signal_or_an_error_between_the_two_renames_loses_nothing(tmp_path, monkeypatch, error):
    make(tmp_path / "out")
    rename = Path.rename

    def cut(path, target):
        if target == tmp_path / "out" and path.parent.name == "made":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises((type(error), UserError)):
        make(tmp_path / "out", content="two")
    assert (tmp_path / "out" / "part" / "x.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_of_yours_beside_an_output_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"README\.md: exists and was not made with .*README\.csv; move it away, or choose another --out"
        ):
            table(tmp_path / "README.csv")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    for _ in range(2):
        table(tmp_path / "t.csv")


def table(out):
    with publishing(out, "table/a", {}, {}) as place:
        place.write_text("")
        place.with_suffix(".md").write_text("")


def test_what_appears_at_the_output_while_a_step_works_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="exists and is not encode/a"), publishing(tmp_path / "out", "encode/a", {}, {}) as place:
        (place / "x").write_text("")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_files_beside_a_result_that_it_did_not_publish_stay(tmp_path):
    for names in (("a.yaml", "b.yaml"), ("a.yaml",)):
        with publishing(tmp_path / "t.csv", "table/a", {}, {}) as place:
            place.write_text("")
            (place.parent / "scores").mkdir()
            for name in names:
                (place.parent / "scores" / name).write_text("")
        (tmp_path / "scores" / "mine.txt").write_text("")
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["a.yaml", "mine.txt"]


OTHERS = {
    "a full folder": lambda out: (out.mkdir(), (out / "precious").write_text("")),
    "a folder with a manifest of its own": lambda out: (
        out.mkdir(),
        (out / "manifest.json").write_text('{"name": "an extension"}'),
    ),
    "another node's": lambda out: make(out, "encode/b"),
    "a link": lambda out: out.symlink_to(out.parent),
    "a file": lambda out: out.write_text(""),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize(
    ("what", "suffix"), [pair for pair in product(OTHERS, ("", ".csv", ".json")) if pair[1] == "" or pair[0] != "a link"]
)  # a link to a file is replaced, not followed
def test_nothing_but_the_same_node_s_output_is_replaced(tmp_path, what, suffix):
    out = tmp_path / f"out{suffix}"
    OTHERS[what](out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="move it away, or choose another --out"):
        demand_replaceable(out, "encode/a", usual=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", ["", ".csv", ".json"])
def test_the_same_node_s_output_is_replaced_also_if_its_manifest_is_damaged(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    demand_replaceable(out, "encode/a", usual=False)
    if not suffix:
        out.mkdir()
        demand_replaceable(out, "encode/a", usual=False)
    make(out)
    demand_replaceable(out, "encode/a", usual=False)
    manifest_file(out).write_text("{")
    demand_replaceable(out, "encode/a", usual=True)


@pytest.mark.parametrize("suffix", ["", ".csv", ".json"])
def test_a_manifest_that_was_changed_is_refused_whichever_part(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    make(out)
    tree = json.loads(manifest_file(out).read_text())
    holder = tree["manifest"] if suffix == ".json" else tree
    holder["made"]["commit"] = "0" * 40
    manifest_file(out).write_text(json.dumps(tree))
    with pytest.raises(UserError, match="its manifest was changed since it was written"):
        read_manifest(out)
    del holder["sha256"]  # as of a release that had none
    manifest_file(out).write_text(json.dumps(tree))
    assert read_manifest(out).made["commit"] == "0" * 40


def test_a_folder_beside_a_file_is_published_whole_and_its_neighbours_stay(tmp_path):
    for names in (("old", "same"), ("same", "new")):
        with publishing(tmp_path / "t.csv", "table/a", {}, {}) as place:
            place.write_text(str(names))
            (place.parent / "scores" / "a").mkdir(parents=True)
            for name in names:
                (place.parent / "scores" / "a" / name).write_text(str(names))
        (tmp_path / "scores" / "b").mkdir(exist_ok=True)
        assert {path.name: path.read_text() for path in (tmp_path / "scores" / "a").iterdir()} == dict.fromkeys(names, str(names))
    assert (tmp_path / "scores" / "b").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifests", "scores", "t.csv"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [("on", "it has 2 bytes in place of 3"), ("one more", "it has 8 bytes"), ("0ne", "its sha256 differs"), (None, "is missing")],
)
def test_a_damaged_input_is_refused(tmp_path, damage, message):
    make(tmp_path / "out")
    file = tmp_path / "out" / "part" / "x.txt"
    file.unlink() if damage is None else file.write_text(damage)
    with pytest.raises(UserError, match=message) as refusal:
        inputs_of(tmp_path / "out")
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_json_artifact_holds_its_manifest_and_is_refused_when_edited(tmp_path):
    make(tmp_path / "m.json", "evaluate/a")
    tree = json.loads((tmp_path / "m.json").read_text())
    assert tree["content"] == "one"
    assert tree["manifest"]["node"] == "evaluate/a"
    (tmp_path / "m.json").write_text(json.dumps({**tree, "content": "better"}))
    with pytest.raises(UserError, match="changed since it was written"):
        inputs_of(tmp_path / "m.json")


def test_an_input_made_with_another_number_is_refused_in_a_line_with_both(tmp_path):
    manifest = make(tmp_path / "out", config={"lr": 1.0, "batch": 2})
    found = [(tmp_path / "out", manifest)]
    assert set(lineage(found, Params(encode_a={"lr": 1.0, "batch": 2}))) == {"encode/a"}
    with pytest.raises(UserError, match=r"encode/a was made with lr 1\.0, params\.yaml says 2\.0") as refusal:
        lineage(found, Params(encode_a={"lr": 2.0, "batch": 2}))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("today", [{}, {"later": 0}, {"batch": 1}, {"precision": "auto"}])
def test_an_entry_of_before_is_read_with_today_s_defaults(today, tmp_path):
    manifest = make(tmp_path / "one", config={"lr": 1.0, "precision": "bf16"})
    assert lineage([(tmp_path / "one", manifest)], Params(encode_a={"lr": 1.0, "precision": "bf16", **today}))


@pytest.mark.parametrize(
    ("recorded", "today", "said"),
    [
        ({}, {"later": 3}, "later null, params.yaml says 3"),
        ({"precision": "bf16"}, {"precision": "fp32"}, 'precision "bf16", params.yaml says "fp32"'),
        ({"precision": "bf16"}, {"precision": "auto", "batch": 2}, "batch 1, params.yaml says 2"),
        ({"gone": 1}, {}, "gone 1, params.yaml says null"),
        ({"lr": "much"}, {}, 'lr "much", params.yaml says 1.0'),
    ],
)
def test_what_an_entry_of_before_has_otherwise_is_named(recorded, today, said, tmp_path):
    manifest = make(tmp_path / "one", config={"lr": 1.0, **recorded})
    with pytest.raises(UserError, match=re.escape(said)):
        lineage([(tmp_path / "one", manifest)], Params(encode_a={"lr": 1.0, **today}))


def test_a_field_that_came_later_is_neither_recorded_nor_hashed_while_it_is_neutral():
    assert digest(Entry(lr=1.0).model_dump()) == digest({"revision": 1, "lr": 1.0, "batch": 1, "precision": None})
    assert Entry(lr=1.0, later=2).model_dump()["later"] == 2


def test_inputs_from_two_makings_of_one_ancestor_are_refused(tmp_path):
    first, second = (make(tmp_path / name, "vae/v", content=name) for name in ("first", "second"))
    one = make(tmp_path / "one", "encode/a", ancestors=first.lineage)
    two = make(tmp_path / "two", "encode/b", ancestors=second.lineage)
    params = Params(vae_v={"lr": 1.0}, encode_a={"lr": 1.0}, encode_b={"lr": 1.0})
    with pytest.raises(UserError, match="made from another vae/v"):
        lineage([(tmp_path / "one", one), (tmp_path / "two", two)], params)


def test_an_ancestor_far_up_is_checked_too(tmp_path):
    first = make(tmp_path / "first", "vae/v")
    manifest = make(tmp_path / "one", "encode/a", ancestors=first.lineage)
    with pytest.raises(UserError, match="vae/v was made with"):
        lineage([(tmp_path / "one", manifest)], Params(vae_v={"lr": 9.0}, encode_a={"lr": 1.0}))


def test_who_reads_while_it_is_replaced_reads_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with path.open() as reader:
        write_json(path, {"new": 1})
        assert json.load(reader) == {"old": 1}
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it as they may any file"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027])
def test_files_of_an_artifact_have_the_permissions_of_new_ones_whatever_made_them(tmp_path, monkeypatch, mask):
    monkeypatch.setattr(atomic, "_umask", lambda: mask)
    with publishing(tmp_path / "folder", "vae/v", {}, {}) as place:
        save_file({"x": np.zeros(1)}, place / "x.safetensors")
        assert (place / "x.safetensors").stat().st_mode & 0o777 == 0o600, "as an autoencoder's, by safetensors"
    with publishing(tmp_path / "x.csv", "table/t", {}, {}, usual=True) as place:
        place.write_text("a\n")
        place.chmod(0o600)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~mask)}


def test_a_file_that_is_written_anew_keeps_its_permissions(tmp_path):
    for mode in (0o600, 0o664, 0o444):
        (tmp_path / "a.json").touch()
        (tmp_path / "a.json").chmod(mode)
        write_json(tmp_path / "a.json", {})
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


@pytest.mark.parametrize("place", ["demo/old/b.json", "other/b.json", "b.json"])
@pytest.mark.parametrize("top", ["results", "metrics"])
def test_a_second_record_of_the_same_name_is_refused(tmp_path, place, top):
    metrics = tmp_path / top / "metrics" if top == "results" else tmp_path / top
    for name in ("a", "b"):
        make(metrics / "demo" / f"{name}.json", f"evaluate/{name}")
    assert list(named(tmp_path / top, ("a", "b", "c"))) == ["a", "b"]
    (metrics / place).parent.mkdir(exist_ok=True)
    shutil.copy(metrics / "demo" / "b.json", metrics / place)
    assert list(named(tmp_path / top, ("a",))) == ["a"]
    with pytest.raises(UserError, match=r"b\.json: .*b\.json is a record of the same name; move one of them out of "):
        named(tmp_path / top, ("a", "b"))


def test_a_record_in_a_deeper_folder_alone_is_none(tmp_path):
    make(tmp_path / "old" / "a.json", "evaluate/a")
    assert named(tmp_path, ("a",)) == {}


def test_a_reconstruction_of_the_same_name_is_no_record_of_an_evaluation(tmp_path):
    make(tmp_path / "metrics" / "demo" / "a.json", "evaluate/a")
    make(tmp_path / "reconstructions" / "demo" / "a.json", "reconstruct/a")
    assert named(tmp_path, ("a",)) == {"a": tmp_path / "metrics" / "demo" / "a.json"}


def test_of_a_folder_of_json_files_those_that_are_named_and_there_are_read(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / f"{name}.json", f"evaluate/{name}")
    assert [manifest.node for _, manifest in inputs_of(tmp_path, ("b", "c"))] == ["evaluate/b"]


@pytest.mark.parametrize(("content", "line"), [(None, "run the step that makes it"), ("{", "not JSON, so damaged")])
def test_an_input_without_a_manifest_is_refused(tmp_path, content, line):
    make(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(UserError, match=line):
        inputs_of(tmp_path / "out")


@pytest.mark.parametrize("content", ["{}", "[]", '{"manifest": {}}'])
def test_a_json_file_that_no_step_wrote_is_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UserError, match=r"m\.json"):
        inputs_of(tmp_path / "m.json")


def test_what_lies_beside_a_file_is_published_with_it_and_not_at_all_if_the_step_fails(tmp_path):
    def step(content, error=False):
        with publishing(tmp_path / "t.csv", "table/a", {}, {}) as place:
            place.write_text(content)
            place.with_suffix(".md").write_text(content)
            if error:
                raise RuntimeError

    step("one")
    with pytest.raises(RuntimeError):
        step("two", error=True)
    assert {file.name: file.read_text().split("\n")[0] for file in tmp_path.glob("t.*")} == {"t.csv": "one", "t.md": "one"}


def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="not a folder; move it away, or choose another --out"):
        make(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
