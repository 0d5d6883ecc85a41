"""Weights that say what they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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

    def dying(tensors, place, facts):
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"a": torch.zeros(3)}, {"step": 2})
    tensors, facts = checkpoint.load(path)
    assert facts == {"step": 1}
    assert torch.equal(tensors["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]
