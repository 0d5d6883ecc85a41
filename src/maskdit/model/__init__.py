"""Formulas: network, masking, preconditioning, loss, samplers, averages, FLOPs; and the file format of weights. No device."""
