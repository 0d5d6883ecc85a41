"""Latents to checkpoints: the loop behind pretrain and finetune, its optimisation step, its batches and its recovery state."""
