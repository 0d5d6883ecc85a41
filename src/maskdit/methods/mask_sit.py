"""MaskDiT's masked encoder and decoder, trained by flow matching."""

from maskdit.methods.maskdit import MaskDit
from maskdit.methods.sit import Sit


class MaskSit(Sit, MaskDit):
    """SiT's objective; the network, the mask and `defer` are MaskDiT's."""

    name = "MaskSiT"
