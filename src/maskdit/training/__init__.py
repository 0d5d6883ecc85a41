"""Latents to checkpoints: the loop behind pretrain and finetune, one step of it, its batches, and its recovery state."""
