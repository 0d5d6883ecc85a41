"""Import and export: MaskDiT's and DiT's checkpoints, folders for diffusers, and samples for ADM's evaluator."""
