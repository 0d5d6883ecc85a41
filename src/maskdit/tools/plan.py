"""What a study would cost: jobs, device-hours, wall time and disk of each step, computed from FLOPs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from maskdit.config.base import UserError
from maskdit.config.evaluation import Features, Reconstruct, Reference
from maskdit.config.images import Autoencoder, Extractor, Folder, ImageNet, Pictures
from maskdit.config.latents import DownloadedVae, Encode, Vae
from maskdit.config.params import Params
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain, Released, Training, kept_tokens
from maskdit.model.flops import forward, seen

# TFLOP/s of dense matrix products in half precision and tf32, from data sheets; cpu: two cores, measured here
PEAKS = {"a100": (312, 156), "h100": (989, 494), "h200": (989, 494), "v100": (125, 15.7), "l40s": (362, 183), "cpu": (0.2, 0.1)}
ENCODER, DECODER = 272.7e9 / 256**2, 622.2e9 / 256**2  # FLOPs per pixel of SD's autoencoder, counted by torch
NETWORKS = {"inception-2015": 11.4e9, "dinov2": 162e9, "mobilenet-v2": 0.05e9}  # FLOPs per image
WIDTHS = {"inception-2015": 2048 + 2023, "dinov2": 1024, "mobilenet-v2": 1280 + 1000}
ARCHIVE = 121e3  # bytes per compressed image of ImageNet


@dataclass(frozen=True)
class Cost:
    """Cost of a node: FLOPs and their precision, bytes on disk, and the number of jobs that can share it."""

    flops: float = 0.0
    precision: str = "tf32"
    disk: float = 0.0
    jobs: int = 1


@dataclass(frozen=True)
class Site:
    """Where a study would run: device, achieved fraction of its peak, devices per training, hours that a job may last."""

    device: str
    mfu: float
    devices: int
    limit: float

    def hours(self, cost: Cost) -> float:
        """Device-hours of a node."""
        half = cost.precision in ("bf16", "fp16") or (cost.precision == "auto" and self.device != "cpu")  # few CPUs have bf16
        return cost.flops / (PEAKS[self.device][0 if half else 1] * 1e12 * self.mfu) / 3600


class Plan:
    """The nodes behind a benchmark's tables and curves, each with its cost."""

    def __init__(self, params: Params, bench: str) -> None:
        params.entry("table", bench)
        self.params = params
        self.nodes: dict[str, Cost] = {}
        for verb in ("table", "curves", "efficiency", "recon"):
            if bench in getattr(params, verb):
                self.visit(f"{verb}/{bench}")

    def visit(self, node: str) -> None:
        """Add a node and everything upstream of it."""
        if node in self.nodes:
            return
        for other in sorted(self.params.upstream(*node.split("/"))):
            self.visit(other)
        self.nodes[node] = self.cost(node)

    def behind(self, node: str) -> dict[str, float]:
        """A node and everything upstream of it, each with the fraction needed: of a training, its steps up to a milestone."""
        found = {node: 1.0}
        for other in self.params.upstream(*node.split("/")):
            found |= self.behind(other)
        entry = self.params.entry(*node.split("/"))
        if isinstance(entry, Sample) and entry.phase != "released" and entry.step != "final":
            last = self.params.entry(entry.phase, entry.run).milestones[-1]
            found[f"{entry.phase}/{entry.run}"] = entry.step / last
        return found

    def paid(self, needed: dict[str, float], site: Site) -> float:
        """Device-hours of nodes, each times the fraction that is needed."""
        return sum(share * site.hours(self.nodes[node]) for node, share in needed.items())

    def latent(self, dataset: str, vae: str) -> tuple[int, int]:
        """Side and channels of a dataset's latents."""
        entry = self.params.vae[vae]
        return self.params.pictures(dataset).resolution // entry.factor, entry.latent_channels

    def per_image(self, run: str, dataset: str, training: Training | None = None, step: int = 0) -> float:
        """FLOPs of a forward pass of a run's network: on all tokens, or as at a step of a training."""
        pretrain, encode = self.params.pretrain[run], self.params.encode[dataset]
        side, channels = self.latent(encode.dataset, encode.vae)
        encoder, decoder = pretrain.encoder, pretrain.decoder
        tokens, numbers = (side // encoder.patch) ** 2, channels * encoder.patch**2
        inner, depth = (decoder.width, decoder.depth) if decoder else (encoder.width, None)
        kept, blocks = tokens, [tokens] * encoder.depth
        if training:
            kept = kept_tokens(tokens, training.mask_at(step))
            blocks = seen(encoder.depth, tokens, kept, training.defer, training.route)
        return forward(tokens, kept, numbers, encoder.width, blocks, inner, numbers, depth)

    def cost(self, node: str) -> Cost:
        """Cost of a node; 0 FLOPs if it takes only minutes on a CPU."""
        params = self.params
        verb, key = node.split("/")
        match entry := params.entry(verb, key):
            case ImageNet():
                return Cost(disk=ARCHIVE * (entry.images + entry.validation))
            case Pictures():
                return Cost(disk=0.0 if isinstance(entry, Folder) else entry.images * 3.0 * entry.resolution**2)
            case Extractor():
                return Cost(disk=1e8)
            case Autoencoder() | DownloadedVae():
                return Cost(disk=3.4e8)
            case Vae():  # as if it were SD's, in proportion to its widest level
                share = (entry.channels[0] / 128) ** 2 * entry.layers_per_block / 2
                pixels = entry.steps * entry.batch * params.pictures(entry.dataset).resolution ** 2
                return Cost(3 * share * (ENCODER + DECODER) * pixels, entry.precision, 4e6)
            case Encode():
                data, (side, channels) = params.pictures(entry.dataset), self.latent(entry.dataset, entry.vae)
                count = data.training * (2 if entry.mirror else 1)
                return Cost(count * ENCODER * data.resolution**2, "tf32", count * 4 * channels * side**2, entry.shards)
            case Reference():
                return self.featured(entry.extractor, params.pictures(entry.dataset).images, entry.shards)
            case Features():
                return self.featured(entry.extractor, params.sample[key].images, params.sample[key].shards)
            case Pretrain() | Finetune():
                run, last = entry.run if isinstance(entry, Finetune) else key, entry.milestones[-1]
                marks = range(0, last, max(1, last // 200))
                mean = sum(self.per_image(run, entry.dataset, entry, step) for step in marks) / len(marks)
                encoder, decoder = params.pretrain[run].encoder, params.pretrain[run].decoder
                parts = [part for part in (encoder, decoder) if part]  # per block: about 12 W^2 and the modulation's 6 W^2 weights
                size = sum(part.depth * (12 * part.width**2 + 6 * part.width * encoder.width) for part in parts)
                copies = len(entry.milestones) + 1 + 4  # averages, final weights, and the state while training
                return Cost(3 * mean * last * entry.batch, entry.precision, 4 * size * copies)
            case Released():
                return Cost(disk=3e9)
            case Sample():
                return self.drawn(entry)
            case Reconstruct():
                data, family = params.pictures(entry.dataset), params.entry("fetch", entry.extractor).family
                count = data.validation if isinstance(data, ImageNet) else data.images - data.training
                flops = count * ((ENCODER + DECODER) * data.resolution**2 + 2 * NETWORKS[family])
                return Cost(flops, "tf32", 0.0, entry.shards)
        return Cost()

    def featured(self, extractor: str, images: int, shards: int) -> Cost:
        """Cost of extracting the features of some images."""
        family = self.params.entry("fetch", extractor).family
        return Cost(images * NETWORKS[family], "tf32", 4.0 * images * WIDTHS[family], shards)

    def drawn(self, entry: Sample) -> Cost:
        """Cost of samples: forward passes on all tokens, then the decoder."""
        phase = self.params.entry(entry.phase, entry.run)
        if isinstance(phase, Released):  # of the paper's size
            factor = self.params.vae[phase.vae].factor
            side = self.params.pictures(self.params.reference[phase.dataset].dataset).resolution // factor
            tokens, resolution = (side // 2) ** 2, side * factor
            inner, depth = (1152, None) if phase.format == "dit" else (512, 8)
            network: float = forward(tokens, tokens, 16, 1152, [tokens] * 28, inner, 16, depth)
        else:
            network = self.per_image(phase.run if isinstance(phase, Finetune) else entry.run, phase.dataset)
            resolution = self.params.pictures(self.params.encode[phase.dataset].dataset).resolution
        passes = 2 * entry.solver_steps - 1 if entry.solver == "heun" else entry.solver_steps
        flops = entry.images * (passes * (2 if entry.guidance > 1 else 1) * network + DECODER * resolution**2)
        return Cost(flops, entry.precision, entry.images * 3.0 * resolution**2, entry.shards)


def rows(plan: Plan, site: Site) -> Iterator[list[str]]:
    """One line per step: nodes, jobs that can run at once, device-hours, hours of the longest node, disk, note. Then the totals."""
    steps: dict[str, list[Cost]] = {}
    for node, cost in plan.nodes.items():
        steps.setdefault(node.split("/")[0], []).append(cost)
    for verb, costs in steps.items():
        each = [site.hours(cost) for cost in costs]
        longest = max(each) / site.devices
        slices = -(-longest // site.limit) if site.limit else 1
        note = f"{slices:.0f} slices of {site.limit:g} h" if slices > 1 else ""
        numbers = [str(len(costs)), str(sum(cost.jobs for cost in costs)), f"{sum(each):.1f}", f"{longest:.1f}"]
        yield [verb, *numbers, f"{sum(cost.disk for cost in costs) / 1e9:.1f}", note]
    hours, disk = sum(map(site.hours, plan.nodes.values())), sum(cost.disk for cost in plan.nodes.values())
    yield ["all", str(len(plan.nodes)), "", f"{hours:.1f}", "", f"{disk / 1e9:.1f}", ""]


def affordable(plan: Plan, site: Site, budget: float) -> Iterator[list[str]]:
    """The evaluations, cheapest first: device-hours of each with all that it needs, of all so far, and whether these fit."""
    ends = [node for node in plan.nodes if node.split("/")[0] in ("evaluate", "reconstruct")]
    alone = {end: plan.paid(plan.behind(end), site) for end in ends}
    needed: dict[str, float] = {}
    for end in sorted(ends, key=alone.__getitem__):
        for node, share in plan.behind(end).items():
            needed[node] = max(share, needed.get(node, 0.0))
        together = plan.paid(needed, site)
        yield [end, f"{alone[end]:.1f}", f"{together:.1f}", "yes" if together <= budget else "no"]


def show(title: list[str], lines: Iterable[list[str]]) -> None:
    """Print a table. The first and the last column are left-aligned."""
    table = [title, *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *middle, last in table:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())


def plan(params: Params, bench: str, device: str, mfu: float, devices: int, limit: float, budget: float | None) -> None:
    """`maskdit plan STUDY`: print what each step costs, or with a budget the evaluations that it pays for.

    Raises UserError for an unknown device and for numbers out of range.
    """
    if device not in PEAKS:
        raise UserError(f"--device {device}: unknown; choose one of {', '.join(PEAKS)}")
    if not (0 < mfu <= 1 and devices >= 1 and limit >= 0):
        raise UserError("plan: --mfu must be above 0 and at most 1, --devices at least 1, and --limit not negative")
    site, found = Site(device, mfu, devices, limit), Plan(params, bench)
    print(f"{bench} on {devices} x {device} at {mfu:.0%} of peak FLOP/s: computed, not measured")
    if budget is None:
        show(["step", "nodes", "jobs", "device-hours", "longest (h)", "disk (GB)", ""], rows(found, site))
    else:
        show(["evaluation", "alone (h)", "so far (h)", f"within {budget:g} device-hours"], affordable(found, site, budget))
