"""Patches, and which are hidden."""

import torch

from maskdit.model.masking import gather, masked, patchify, restore, sample_mask, unpatchify


def test_putting_patches_back_is_the_inverse_of_cutting():
    latent = torch.randn(2, 3, 8, 8)
    for patch in (1, 2, 4):
        assert torch.equal(unpatchify(patchify(latent, patch), patch, 3), latent)


def test_a_patch_holds_its_own_square_row_by_row():
    latent = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    patches = patchify(latent, 2)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # (row, column, channel) of the upper right square


def test_restoring_is_the_inverse_of_gathering_and_fills_the_rest():
    tokens, filler = torch.randn(3, 10, 4), torch.randn(4)
    kept = sample_mask(torch.rand(3, 10), 6)
    restored = restore(gather(tokens, kept), kept, 10, filler)
    hidden = masked(kept, 10)
    assert torch.equal(restored[~hidden], tokens[~hidden])
    assert torch.equal(restored[hidden], filler.expand(3 * 4, -1))
    assert torch.equal(gather(restored, kept), gather(tokens, kept))


def test_a_mask_keeps_as_many_as_it_should_each_once():
    kept = sample_mask(torch.rand(50, 16), 5)
    assert all(len(set(row)) == 5 and row == sorted(row) for row in kept.tolist())
    assert masked(kept, 16).sum(1).eq(11).all()


def test_every_patch_is_hidden_equally_often():
    torch.manual_seed(0)
    share = masked(sample_mask(torch.rand(20000, 8), 4), 8).float().mean(0)
    torch.testing.assert_close(share, torch.full((8,), 0.5), atol=0.02, rtol=0)


def test_the_kept_patches_are_those_of_the_smallest_scores():
    assert sample_mask(torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.4, 0.3, 0.2, 0.1]]), 2).tolist() == [[1, 3], [2, 3]]


def test_every_subset_of_the_patches_is_as_likely_as_any_other():
    torch.manual_seed(0)
    subsets = sample_mask(torch.rand(20000, 5), 2).unique(dim=0, return_counts=True)
    assert len(subsets[0]) == 10
    torch.testing.assert_close(subsets[1] / 20000, torch.full((10,), 0.1), atol=0.01, rtol=0)
