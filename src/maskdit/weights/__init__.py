"""Weights of others to ours and back: MaskDiT's and DiT's checkpoints, folders for diffusers, ADM's npz."""
