"""MaskDiT's masked encoder and decoder, trained by flow matching."""

from maskdit.methods.maskdit import MaskDit
from maskdit.methods.sit import Flow


class MaskSit(Flow, MaskDit):
    """Masked training with SiT's objective; the mask and `defer` are MaskDiT's."""

    name = "MaskSiT"
