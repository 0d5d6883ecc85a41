"""The command lines of `maskdit import` and `maskdit export`. Their help texts wait for no library."""

from pathlib import Path
from typing import Any

UNUSED = {"npz": ("step", "weights", "vae", "metrics"), "upstream": ("vae", "metrics"), "diffusers": ()}  # by format of an export


def add_weights(verbs: Any) -> None:
    """Add the two commands and their options to those of maskdit."""
    line = "Turn published weights into a run."
    text = f"{line} Optimiser states are ignored; nothing in the file is executed."
    entry = verbs.add_parser("import", help=line, description=text)
    entry.add_argument(
        "file", type=Path, metavar="FILE", help="a torch or safetensors file, an index of shards, or a diffusers folder of a DiT"
    )
    entry.add_argument("--vae", type=Path, required=True, metavar="FOLDER", help="its autoencoder, in diffusers' layout")
    entry.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    entry.add_argument("--format", choices=("upstream", "dit", "diffusers"), help="upstream: MaskDiT's (default: detected)")
    entry.add_argument("--step", type=int, metavar="N", help="its training step, if the file does not state it")
    entry.add_argument("--heads", type=int, nargs="+", default=[], metavar="N", help="heads of encoder and decoder, if unusual")
    entry.add_argument(
        "--side", type=int, metavar="N", help="side of the latents, if the file has no positions (32 for 256 pixels)"
    )
    text = "Write a checkpoint as MaskDiT's torch file or a diffusers folder, or samples for ADM's evaluator."
    entry = verbs.add_parser("export", help="Write a checkpoint or samples in another project's format.", description=text)
    entry.add_argument("run", type=Path, metavar="RUN", help="a run, from artifacts/runs or imported; for npz, samples")
    entry.add_argument("--format", choices=("upstream", "diffusers", "npz"), required=True)
    entry.add_argument("--out", type=Path, required=True, metavar="PATH", help="a new file (upstream, npz) or folder (diffusers)")
    entry.add_argument("--step", type=int, metavar="N", help="a milestone (default: the last one)")
    entry.add_argument("--weights", choices=("ema", "net", "both"), help="default: ema; both: upstream only")
    entry.add_argument("--vae", type=Path, metavar="FOLDER", help="the autoencoder to copy (diffusers)")
    entry.add_argument("--metrics", type=Path, metavar="FOLDER", help="records for the model card (default: results/metrics)")


def demand_used(options: dict[str, Any]) -> None:
    """Raise UserError for an option of an export that its format has no use for."""
    from maskdit.config.base import UserError

    for name in (name for name in UNUSED[options["format"]] if options[name] is not None):
        raise UserError(f"export: --{name} has no effect with --format {options['format']}; leave it out")
    if options["metrics"] and options["weights"] == "net":
        raise UserError("export: --metrics has no effect with --weights net, because evaluations are of ema weights; leave it out")
