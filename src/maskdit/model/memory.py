"""Memory of a training step in closed form, so that `plan` needs no network and no device."""

from collections.abc import Sequence
from dataclasses import dataclass

from maskdit.config.training import Training
from maskdit.model.flops import FREQUENCIES, Sizes

# Bytes that a block keeps for its backward pass, for each token and unit of its width, counted with torch.autograd.graph's hooks.
SAVED = {(True, False): 48.3, (True, True): 36.2, (False, False): 80.4, (False, True): 68.3}  # by (half precision, compiled)
AT_WORK = 3.0  # the blocks whose activations are in memory in addition, while they are computed and used: 2.2 to 4.1 measured
CONTEXT = 1.5e9  # of CUDA, its libraries and NCCL
USED = 0.9  # the share of the free memory that is used
Blocks = Sequence[tuple[int, int, int]]  # width, heads and tokens of each


@dataclass(frozen=True)
class Memory:
    """Bytes that a step needs: `fixed` for weights, gradients, moments and averages, and `image` for each image in a pass."""

    fixed: float
    image: float

    def of(self, images: int) -> float:
        """Bytes for a pass of so many images."""
        return self.fixed + self.image * images

    def fitting(self, share: int, free: float) -> int:
        """The largest divisor of a rank's share of the batch that fits with a margin into free bytes; 1 if even that does not."""
        return max(size for size in range(1, share + 1) if share % size == 0 and (size == 1 or self.of(size) <= USED * free))


def parameters(encoder: Sizes, decoder: Sizes | None) -> int:
    """About how many weights a network has, without those of its classes."""
    width = encoder["width"]
    parts = [part for part in (encoder, decoder) if part]
    blocks = sum(part["depth"] * (12 * part["width"] ** 2 + 6 * part["width"] * width) for part in parts)
    return blocks + width * (FREQUENCIES + width) + sum(2 * width * part["width"] for part in parts)


def step_memory(config: Training, half: bool, cpu: bool, weights: int, blocks: Blocks, ranks: int = 1) -> Memory:
    """Memory of a rank's step in half or full precision, with the largest number of tokens that each block has in the training."""
    saved = [SAVED[half, config.compile] * width * count for width, _, count in blocks]
    if cpu and half:  # short sequences are attended to by explicit products
        saved = [size + 2 * heads * count**2 * (count <= 512) for size, (_, heads, count) in zip(saved, blocks, strict=True)]
    image = (sum(4.0 * width * count for width, _, count in blocks) if config.checkpointing else sum(saved)) + AT_WORK * max(saved)
    averages = len(config.posthoc_ema)
    fixed: float = weights * (20 + 4 * averages + 2 * half)
    fixed += weights * (16 + 4 * averages) / ranks if cpu else CONTEXT  # a CPU also holds the copy of a state
    return Memory(fixed, image)
