"""What a node costs: FLOPs, bytes on disk, and device-hours at a site; counted from params.yaml, without a network."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from maskdit.config.evaluation import Features, Reconstruct, Reference, Rescore
from maskdit.config.images import Autoencoder, Extractor, Folder, ImageNet, Pictures
from maskdit.config.latents import DownloadedVae, Encode, Vae
from maskdit.config.params import Params
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain, Released, Training
from maskdit.methods.entries import of_node
from maskdit.model.memory import Memory, parameters, step_memory
from maskdit.runtime.variables import bf16_allowed

# TFLOP/s of dense products in half precision, tf32 and fp32, from data sheets. cpu: one core of an AMD EPYC in bf16 and fp32, the
# large product that a training times (FLOP/s of the records by their MFU): 0.20 to 0.21 in docs/fashion, 0.056 to 0.066 in a demo.
MEMORY = {"a100": 80e9, "h100": 80e9, "h200": 141e9, "l40s": 48e9}  # bytes; of a CPU, what this machine has free
PEAKS: dict[str, tuple[float, float, float]] = {
    "a100": (312, 156, 19.5),
    "h100": (989, 494, 67),
    "h200": (989, 494, 67),
    "l40s": (362, 183, 91.6),
    "cpu": (0.2, 0.066, 0.066),
}
MFU = 0.4  # the achieved fraction of the peak, unless another is named; trainings of docs/fashion: 0.38 to 0.50, computed as here
ENCODER, DECODER = 272.7e9 / 256**2, 622.2e9 / 256**2  # FLOPs per pixel of SD's autoencoder, counted by torch
NETWORKS = {"inception-2015": 11.4e9, "dinov2": 162e9, "mobilenet-v2": 0.05e9}  # FLOPs per image
WIDTHS = {"inception-2015": 2048 + 2023, "dinov2": 1024, "mobilenet-v2": 1280 + 1000}
SIZES = {"inception-2015": 9.6e7, "dinov2": 1.2e9, "mobilenet-v2": 1.4e7}  # bytes of weights
ARCHIVE = 121e3  # bytes per compressed image of ImageNet


@dataclass(frozen=True)
class Cost:
    """Cost of a node: FLOPs and their precision, the most bytes on disk at once, and the largest number of parts."""

    flops: float = 0.0
    precision: str = "tf32"
    disk: float = 0.0
    parts: int = 1


def has_bf16() -> bool:
    """Whether the CPU of this machine computes in bf16, which `precision: auto` then means."""
    file = Path("/proc/cpuinfo")
    return bf16_allowed() and file.exists() and bool({"avx512_bf16", "amx_bf16"} & set(file.read_text(encoding="utf-8").split()))


@dataclass(frozen=True)
class Site:
    """Where a study would run: device, achieved fraction of its peak, devices per training, hours that a job may last.

    A CPU is one core, in bf16 if this machine has it.
    """

    device: str
    mfu: float
    devices: int
    limit: float
    bf16: bool = field(default_factory=has_bf16)  # of the CPU

    def __str__(self) -> str:
        core = f" core in {'bf16' if self.bf16 else 'fp32'}" if self.device == "cpu" else ""
        return f"{self.devices} x {self.device}{core} at {self.mfu:.0%} of peak FLOP/s"

    def hours(self, cost: Cost) -> float:
        """Device-hours of a node."""
        peak = PEAKS[self.device][0 if self.half(cost.precision) else 2 if cost.precision == "fp32" else 1]
        return cost.flops / (peak * 1e12 * self.mfu) / 3600

    def half(self, precision: str) -> bool:
        """Whether a step of this precision computes in 16 bits here."""
        return precision in ("bf16", "fp16", "auto") and (self.device != "cpu" or self.bf16)


def copies(entry: Training) -> int:
    """How many times a training has weights on disk at most: while it writes a third state, or when it has published its copies."""
    widths, marks = len(entry.posthoc_ema), len(entry.milestones)
    state, milestone = 4 + widths, 2 + widths  # weights, average, two moments; average and weights
    return max(3 * state + marks * milestone, 2 * state + marks * milestone + marks * (milestone - 1) + 1)


class Costs:
    """The costs of the nodes of params.yaml."""

    def __init__(self, params: Params) -> None:
        self.params = params

    def latent(self, dataset: str, vae: str) -> tuple[int, int]:
        """Side and channels of a dataset's latents."""
        entry = self.params.vae[vae]
        return self.params.pictures(dataset).resolution // entry.factor, entry.latent_channels

    def scale(self, vae: str) -> float:
        """FLOPs per pixel of an autoencoder, relative to SD's: in proportion to its widest level and its layers."""
        entry = self.params.vae[vae]
        return (entry.channels[0] / 128) ** 2 * entry.layers_per_block / 2 if isinstance(entry, Vae) else 1.0

    def encoded(self, verb: str, key: str) -> tuple[str, str]:
        """The images of a run, an entry of fetch, and the autoencoder of their latents."""
        entry = self.params.entry(verb, key)
        if isinstance(entry, Released):
            return self.params.reference[entry.dataset].dataset, entry.vae
        encode = self.params.encode[entry.dataset]
        return encode.dataset, encode.vae

    def of(self, node: str) -> Cost:
        """Cost of a node; 0 FLOPs if it takes only minutes on a CPU."""
        params = self.params
        verb, key = node.split("/")
        match entry := params.entry(verb, key):
            case ImageNet():
                return Cost(disk=ARCHIVE * (entry.images + entry.validation))
            case Pictures():
                return Cost(disk=0.0 if isinstance(entry, Folder) else entry.images * 3.0 * entry.resolution**2)
            case Extractor():
                return Cost(disk=SIZES[entry.family])
            case Autoencoder() | DownloadedVae():
                return Cost(disk=3.4e8)
            case Vae():
                pixels = entry.steps * entry.batch * params.pictures(entry.dataset).resolution ** 2
                return Cost(3 * self.scale(key) * (ENCODER + DECODER) * pixels, entry.precision, 4e6)
            case Encode():
                data, (side, channels) = params.pictures(entry.dataset), self.latent(entry.dataset, entry.vae)
                count = data.training * (2 if entry.mirror else 1)
                flops = count * self.scale(entry.vae) * ENCODER * data.resolution**2
                return Cost(flops, "tf32", count * 4 * channels * side**2, entry.shards)
            case Reference():
                images = params.pictures(entry.dataset).images
                kept = images if entry.memorisation else min(images, entry.neighbours_from or images)
                whole = self.featured(entry.extractor, images, entry.shards)
                return replace(whole, disk=whole.disk * kept / images)
            case Features():
                return self.featured(entry.extractor, params.sample[key].images, params.sample[key].shards)
            case Rescore():
                return replace(self.featured(entry.extractor, params.sample[key].images, params.sample[key].shards), disk=0.0)
            case Pretrain() | Finetune():
                last = entry.milestones[-1]
                marks = range(0, last, max(1, last // 200))
                method = of_node(params, verb, key)
                mean = sum(method.flops(entry, method.kept(entry, step)) for step in marks) / len(marks)
                size = parameters(method.encoder, method.decoder)
                return Cost(3 * mean * last * entry.batch, entry.precision, 4 * size * copies(entry))
            case Released():
                return Cost(disk=3e9)
            case Sample():
                return self.drawn(entry)
            case Reconstruct():
                data, family = params.pictures(entry.dataset), params.entry("fetch", entry.extractor).family
                count = getattr(data, "validation", 0) or data.images - data.training
                autoencoder = self.scale(entry.vae) * (ENCODER + DECODER)
                flops = count * (autoencoder * data.resolution**2 + 2 * NETWORKS[family])
                return Cost(flops, "tf32", 0.0, entry.shards)
        return Cost()

    def memory(self, node: str, site: Site) -> Memory:
        """Memory of a training's step on one device of a site."""
        verb, key = node.split("/")
        entry, method = self.params.entry(verb, key), of_node(self.params, verb, key)
        weights, half = parameters(method.encoder, method.decoder), site.half(entry.precision)
        return step_memory(entry, half, site.device == "cpu", weights, method.blocks(entry), site.devices)

    def featured(self, extractor: str, images: int, shards: int) -> Cost:
        """Cost of extracting the features of some images, in fp32 without TF32, as `Extractor.see` does."""
        family = self.params.entry("fetch", extractor).family
        return Cost(images * NETWORKS[family], "fp32", 4.0 * images * WIDTHS[family], shards)

    def drawn(self, entry: Sample) -> Cost:
        """Cost of samples: forward passes on all tokens, then the decoder."""
        method = of_node(self.params, entry.phase, entry.run)
        network = method.flops(None, method.tokens)
        resolution = self.params.pictures(self.encoded(entry.phase, entry.run)[0]).resolution
        passes = 2 * entry.solver_steps - 1 if entry.solver.endswith("heun") else entry.solver_steps
        passes *= 2 if entry.guidance > 1 else 1
        flops = entry.images * (passes * network + self.scale(entry.vae) * DECODER * resolution**2)
        return Cost(flops, entry.precision, entry.images * 3.0 * resolution**2, entry.shards)
