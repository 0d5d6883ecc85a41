"""What a study costs before anything is spent: jobs, device-hours, wall time and disk of each step, from FLOPs alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from maskdit.config.base import UserError
from maskdit.config.images import Extractor, Folder, ImageNet, Npz, Pictures
from maskdit.config.latents import Vae
from maskdit.config.params import Params
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Released, Training, kept_tokens
from maskdit.model.flops import forward, seen

PEAKS = {  # FLOP/s of dense matrix products by their makers' sheets: half precision, tf32; a CPU's is of two cores, measured here
    "a100": (312e12, 156e12),
    "h100": (989e12, 494e12),
    "h200": (989e12, 494e12),
    "v100": (125e12, 15.7e12),
    "l40s": (362e12, 183e12),
    "cpu": (0.2e12, 0.1e12),
}
ENCODER, DECODER = 272.7e9 / 256**2, 622.2e9 / 256**2  # FLOPs a pixel of SD's autoencoder, counted by torch
NETWORKS = {"inception-2015": 11.4e9, "dinov2": 162e9, "mobilenet-v2": 0.05e9}  # FLOPs an image
WIDTHS = {"inception-2015": 2048 + 2023, "dinov2": 1024, "mobilenet-v2": 1280 + 1000}
ARCHIVE = 121e3  # bytes of an image of ImageNet, compressed


@dataclass(frozen=True)
class Cost:
    """Of one node: floating-point operations, in which precision, bytes that it leaves, how many jobs may share it."""

    flops: float = 0.0
    precision: str = "tf32"
    disk: float = 0.0
    jobs: int = 1


@dataclass(frozen=True)
class Site:
    """Where it would run: the device, its share of the peak, devices of one job, hours that a job may last."""

    device: str
    mfu: float
    devices: int
    limit: float

    def hours(self, cost: Cost) -> float:
        """Device-hours of a node."""
        half = cost.precision in ("bf16", "fp16") or (cost.precision == "auto" and self.device != "cpu")  # few CPUs have bf16
        return cost.flops / (PEAKS[self.device][0 if half else 1] * self.mfu) / 3600


class Plan:
    """The nodes behind a benchmark's table and curves, each with its cost."""

    def __init__(self, params: Params, bench: str) -> None:
        params.entry("table", bench)
        self.params = params
        self.ends = [
            f"table/{bench}",
            *(f"{verb}/{bench}" for verb in ("curves", "efficiency", "recon") if bench in getattr(params, verb)),
        ]
        self.nodes: dict[str, Cost] = {}
        for end in self.ends:
            self.visit(end)

    def visit(self, node: str) -> None:
        """A node and all behind it."""
        if node in self.nodes:
            return
        verb, key = node.split("/")
        upstream = self.params.upstream(verb, key)
        if verb in ("table", "curves", "efficiency"):  # their samples are known by name
            upstream = {f"evaluate/{name}" for name in self.params.entry(verb, key).evals}
        for other in sorted(upstream):
            self.visit(other)
        self.nodes[node] = self.cost(verb, self.params.entry(verb, key), key)

    def behind(self, node: str) -> dict[str, float]:
        """A node and all behind it, each with the share of it that is needed: of a training up to a milestone, its steps."""
        verb, key = node.split("/")
        found = {node: 1.0}
        for other in self.params.upstream(verb, key):
            found |= self.behind(other)
        entry = self.params.entry(verb, key)
        if isinstance(entry, Sample) and entry.phase != "released" and entry.step != "final":
            run = f"{entry.phase}/{entry.run}"
            found[run] = entry.step / self.params.entry(*run.split("/")).milestones[-1]
        return found

    def paid(self, needed: dict[str, float], site: Site) -> float:
        """Device-hours of shares of nodes."""
        return sum(share * site.hours(self.nodes[node]) for node, share in needed.items())

    def side(self, dataset: str, vae: str) -> int:
        """Of the latent."""
        return self.params.pictures(dataset).resolution // self.params.vae[vae].factor

    def per_image(self, run: str, dataset: str, entry: Training | None = None, step: int = 0) -> float:
        """FLOPs of a forward pass of a run's network; of a training, at a step of it."""
        pretrain, encode = self.params.pretrain[run], self.params.encode[dataset]
        side, channels = self.side(encode.dataset, encode.vae), self.params.vae[encode.vae].latent_channels
        encoder, decoder = pretrain.encoder, pretrain.decoder
        tokens = (side // encoder.patch) ** 2
        numbers = channels * encoder.patch**2
        inner, depth = (decoder.width, decoder.depth) if decoder else (encoder.width, None)
        kept = kept_tokens(tokens, entry.mask_at(step) if entry else 0.0)
        blocks = seen(encoder.depth, tokens, kept, entry.defer if entry else 0, entry.route if entry else None)
        return forward(tokens, kept, numbers, encoder.width, blocks, inner, numbers, depth)

    def numbers(self, run: str) -> float:
        """Parameters of a run, near enough for disk: 12 W^2 a block and 6 W^2 of its modulation."""
        pretrain = self.params.pretrain[run]
        parts = [pretrain.encoder, *([pretrain.decoder] if pretrain.decoder else [])]
        return sum(part.depth * (12 * part.width**2 + 6 * part.width * pretrain.encoder.width) for part in parts)

    def cost(self, verb: str, entry: Any, key: str) -> Cost:
        """Of one node; 0 FLOPs for what is minutes on a CPU."""
        params = self.params
        match verb:
            case "fetch":
                return Cost(disk=self.fetched(entry))
            case "vae":
                return self.autoencoder(entry)
            case "encode":
                data = params.pictures(entry.dataset)
                count = data.training * (2 if entry.mirror else 1)
                side, channels = self.side(entry.dataset, entry.vae), params.vae[entry.vae].latent_channels
                return Cost(count * ENCODER * data.resolution**2, "tf32", count * 4 * channels * side**2, entry.shards)
            case "reference":
                data = params.pictures(entry.dataset)
                return self.featured(entry.extractor, data.images, entry.shards)
            case "pretrain" | "finetune":
                run = entry.run if isinstance(entry, Finetune) else key
                last = entry.milestones[-1]
                marks = range(0, last, max(1, last // 200))
                mean = sum(self.per_image(run, entry.dataset, entry, step) for step in marks) / len(marks)
                kept = 4 * self.numbers(run) * (len(entry.milestones) + 1 + 4)  # averages, weights, and the state meanwhile
                return Cost(3 * mean * last * entry.batch, entry.precision, kept)
            case "released":
                return Cost(disk=3e9)
            case "sample":
                return self.drawn(entry)
            case "features":
                sample = params.sample[key]
                return self.featured(entry.extractor, sample.images, sample.shards)
            case "reconstruct":
                data = params.pictures(entry.dataset)
                count = data.validation if isinstance(data, ImageNet) else data.images - data.training
                flops = count * ((ENCODER + DECODER) * data.resolution**2 + 2 * NETWORKS[self.family(entry.extractor)])
                return Cost(flops, "tf32", 0.0, entry.shards)
        return Cost()

    def fetched(self, entry: Any) -> float:
        """Bytes that come from outside."""
        if isinstance(entry, ImageNet):
            return ARCHIVE * (entry.images + entry.validation)
        if isinstance(entry, Npz):
            return entry.images * 3.0 * entry.resolution**2
        if isinstance(entry, Pictures):
            return 0.0 if isinstance(entry, Folder) else entry.images * 3.0 * entry.resolution**2
        return 1e8 if isinstance(entry, Extractor) else 3.4e8

    def autoencoder(self, entry: Any) -> Cost:
        """Training it, as if it were SD's in proportion to its widest level; 0 for a downloaded one."""
        if not isinstance(entry, Vae):
            return Cost(disk=3.4e8)
        share = (entry.channels[0] / 128) ** 2 * entry.layers_per_block / 2
        pixels = entry.steps * entry.batch * self.params.pictures(entry.dataset).resolution ** 2
        return Cost(3 * share * (ENCODER + DECODER) * pixels, entry.precision, 4e6)

    def family(self, extractor: str) -> str:
        """Of an entry of fetch that is an extractor."""
        entry = self.params.fetch[extractor]
        assert isinstance(entry, Extractor)
        return entry.family

    def featured(self, extractor: str, images: int, shards: int) -> Cost:
        """Features of so many images."""
        family = self.family(extractor)
        return Cost(images * NETWORKS[family], "tf32", 4.0 * images * WIDTHS[family], shards)

    def drawn(self, entry: Sample) -> Cost:
        """Samples: passes of the network through all tokens, then the decoder."""
        phase = getattr(self.params, entry.phase)[entry.run]
        if isinstance(phase, Released):  # of the paper's size
            vae = self.params.vae[phase.vae]
            reference = self.params.reference[phase.dataset].dataset
            side = self.params.pictures(reference).resolution // vae.factor
            tokens = (side // 2) ** 2
            inner, depth = (1152, None) if phase.format == "dit" else (512, 8)
            network: float = forward(tokens, tokens, 16, 1152, [tokens] * 28, inner, 16, depth)
            resolution = side * vae.factor
        else:
            run = phase.run if isinstance(phase, Finetune) else entry.run
            network = self.per_image(run, phase.dataset)
            resolution = self.params.pictures(self.params.encode[phase.dataset].dataset).resolution
        asked = 2 * entry.solver_steps - 1 if entry.solver == "heun" else entry.solver_steps
        passes = asked * (2 if entry.guidance > 1 else 1)
        flops = entry.images * (passes * network + DECODER * resolution**2)
        return Cost(flops, entry.precision, entry.images * 3.0 * resolution**2, entry.shards)


def rows(plan: Plan, site: Site) -> Iterator[list[str]]:
    """A line a step: nodes, jobs that may run at once, device-hours, hours of the longest node, disk; then their sums."""
    total = [0.0, 0.0]
    for verb in dict.fromkeys(node.split("/")[0] for node in plan.nodes):
        costs = [cost for node, cost in plan.nodes.items() if node.split("/")[0] == verb]
        hours = [site.hours(cost) for cost in costs]
        longest = max(hours) / site.devices
        slices = -(-longest // site.limit) if site.limit else 1
        disk = sum(cost.disk for cost in costs)
        note = f"{slices:.0f} slices of {site.limit:g} h" if slices > 1 else ""
        yield [
            verb,
            str(len(costs)),
            str(sum(cost.jobs for cost in costs)),
            f"{sum(hours):.1f}",
            f"{longest:.1f}",
            gigabytes(disk),
            note,
        ]
        total = [total[0] + sum(hours), total[1] + disk]
    yield ["all", str(len(plan.nodes)), "", f"{total[0]:.1f}", "", gigabytes(total[1]), ""]


def gigabytes(count: float) -> str:
    """Bytes in GB."""
    return f"{count / 1e9:.1f}"


def affordable(plan: Plan, site: Site, budget: float) -> Iterator[list[str]]:
    """Each evaluation, the cheapest first: the device-hours of all behind it, what all so far cost together, whether they fit."""
    ends = [node for node in plan.nodes if node.split("/")[0] in ("evaluate", "reconstruct")]
    alone = {end: plan.paid(plan.behind(end), site) for end in ends}
    needed: dict[str, float] = {}
    for end in sorted(ends, key=lambda end: alone[end]):
        for node, share in plan.behind(end).items():
            needed[node] = max(share, needed.get(node, 0.0))
        together = plan.paid(needed, site)
        yield [end, f"{alone[end]:.1f}", f"{together:.1f}", "yes" if together <= budget else "no"]


def show(title: list[str], lines: Iterable[list[str]]) -> None:
    """Print columns, the first to the left."""
    table = [title, *lines]
    wide = [max(len(line[place]) for line in table) for place in range(len(title))]
    for line in table:
        cells = [
            cell.ljust(size) if place in (0, len(wide) - 1) else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(line, wide, strict=True))
        ]
        print("  ".join(cells).rstrip())


def plan(params: Params, bench: str, device: str, mfu: float, devices: int, limit: float, budget: float | None) -> None:
    """`maskdit plan STUDY`: print what each step costs, and with a budget which evaluations it pays for.

    Raises UserError for a device that is not known and numbers that make no sense.
    """
    if device not in PEAKS:
        raise UserError(f"--device {device}: known are {', '.join(PEAKS)}")
    if not (0 < mfu <= 1 and devices >= 1 and limit >= 0):
        raise UserError("plan: --mfu is above 0 and at most 1, --devices at least 1, --limit not negative")
    site, found = Site(device, mfu, devices, limit), Plan(params, bench)
    print(f"{bench} on {devices} x {device} at {mfu:.0%} of the makers' peak: computed, not measured")
    if budget is None:
        show(["step", "nodes", "jobs", "device-hours", "longest (h)", "disk (GB)", ""], rows(found, site))
    else:
        show(["evaluation", "alone (h)", "so far (h)", f"within {budget:g} device-hours"], affordable(found, site, budget))
