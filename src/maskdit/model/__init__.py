"""Formulas: network, masking, preconditioning, loss, samplers, EMA, FLOPs; also the checkpoint format. No device code."""
