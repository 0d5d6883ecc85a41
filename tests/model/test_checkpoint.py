"""Weights that say what they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskdit.artifacts.atomic import sha256
from maskdit.config.base import UserError
from maskdit.model import checkpoint


@pytest.fixture(params=["mapped", "read"], autouse=True)
def way(monkeypatch, request):
    monkeypatch.setenv("MASKDIT_MMAP", "01"[request.param == "mapped"])
    return request.param


def test_tensors_and_facts_come_back_bit_by_bit(tmp_path, way):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7), "c": torch.randn(2, 2).bfloat16()}
    checkpoint.save(tmp_path / "x.safetensors", tensors, {"step": 3, "names": ["é"]})
    again, facts = checkpoint.load(tmp_path / "x.safetensors")
    assert facts == {"step": 3, "names": ["é"]}
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert ("x.safetensors" in Path("/proc/self/maps").read_text()) == (way == "mapped")


def test_a_file_is_hashed_while_it_is_written_and_has_the_bytes_of_safetensors_own_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 100)
    tensors = {"b": torch.randn(30, 40), "A": torch.tensor(7.0), "half": torch.randn(9).bfloat16(), "none": torch.empty(0)}
    tensors["log"] = torch.arange(250).to(torch.uint8)
    facts = {"step": 3, "names": ["é", '"']}
    known = checkpoint.save(tmp_path / "ours", tensors, facts)
    save_file(tensors, tmp_path / "theirs", {"maskdit": json.dumps(facts)})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert known == sha256(tmp_path / "ours")


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "foreign"])
def test_what_is_not_a_whole_checkpoint_is_refused_with_what_to_do(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.randn(100)}, {})
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 300])
    with pytest.raises(UserError, match="rerun the training") as refusal:
        checkpoint.load(path)
    assert "\n" not in str(refusal.value)


def test_a_save_that_is_cut_off_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.ones(3)}, {"step": 1})

    class Dying:
        def update(self, data):
            if len(data) == 12:
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.hashlib, "sha256", Dying)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"a": torch.zeros(3)}, {"step": 2})
    tensors, facts = checkpoint.load(path)
    assert facts == {"step": 1}
    assert torch.equal(tensors["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]
