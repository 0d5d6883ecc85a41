"""The command line of `maskdit draw`. Its help text waits for no library."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEDS = 2**63
TEXT = """Draw images of a run, or of an exported folder. No params.yaml is needed, and none is read.

The picture is a grid with one row per class. With --to-seed or --to-class each row is a strip from one image to another: between
seeds the start noise is interpolated on a sphere, between classes their vectors on a line.

The same numbers give the same pixels as the sample step: the seed, guidance, solver, solver_steps, batch and precision of a sample
entry are options here, and its other numbers have their defaults. Image k of class c (both count from 0) is number c + k * CLASSES
of an entry with balanced labels."""
EXAMPLES = """examples:
  maskdit draw demo-maskdit                                          # the key of a run: its last phase and milestone
  maskdit draw artifacts/runs/demo-dit/pretrain --step 300           # an earlier milestone
  maskdit draw demo-maskdit --class face food --count 8 --guidance 3.5 --seed 1
  maskdit draw demo-maskdit --class face --count 100 --out faces     # single files
  maskdit draw demo-maskdit --class face --to-class food             # a strip between two classes
  maskdit draw my-model                                              # a folder of maskdit export --format diffusers

environment variables, as maskdit sample --help explains them: MASKDIT_DEVICE, MASKDIT_THREADS, MASKDIT_DETERMINISTIC, MASKDIT_MMAP,
MASKDIT_SHARED"""


def whole(least: int, most: int = SEEDS - 1) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            bound = f"of at least {least}" if most == SEEDS - 1 else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {bound}")
        return number

    return parse


def named(text: str) -> Path:
    """Parse a path, which has a name."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty")
    return Path(text)


def strength(text: str) -> float:
    """Parse a guidance: 1 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 1 (no guidance) or more")
    return number


def add_draw(verbs: Any) -> None:
    """Add the command and its options to those of maskdit."""
    line = "Draw images of a run as PNG: some classes, one class, or strips between two images."
    form = argparse.RawDescriptionHelpFormatter
    draw = verbs.add_parser("draw", help=line, description=TEXT, epilog=EXAMPLES, formatter_class=form)
    text = "a run (its key or its folder), an imported run, or a folder of maskdit export --format diffusers"
    draw.add_argument("run", type=Path, metavar="RUN", help=text)
    text = "classes by name, in any case, or by number (default: up to eight of them); a name counts before a number"
    draw.add_argument("--class", dest="classes", nargs="+", action="extend", default=[], metavar="NAME|N", help=text)
    text = "images per class (default 4) or per strip (default 8)"
    draw.add_argument("--count", type=whole(1, 100_000), metavar="N", help=text)
    text = "scale of guidance (default 1.5; 1: none, the default where there is a single class, or no label was dropped)"
    draw.add_argument("--guidance", type=strength, metavar="W", help=text)
    draw.add_argument(
        "--steps", dest="solver_steps", type=whole(1, 1000), default=40, metavar="N", help="solver steps (default 40)"
    )
    text = "default heun; dpmpp-2m takes half the time per step; ddpm: of DiT's own weights; flow-*: of flow matching"
    draw.add_argument("--solver", choices=("heun", "dpmpp-2m", "ddpm", "flow-heun", "flow-euler"), default="heun", help=text)
    draw.add_argument("--seed", type=whole(-SEEDS), default=0, metavar="S", help="default 0")
    text = "draw these images of each class, in place of the first --count ones: the number is that of the start noise"
    draw.add_argument("--noise", type=whole(0), nargs="+", default=[], metavar="N", help=text)
    draw.add_argument("--step", type=whole(1), metavar="N", help="a milestone of the run (default: the last one)")
    draw.add_argument("--to-seed", type=whole(-SEEDS), metavar="S", help="strips from --seed to this seed")
    draw.add_argument("--to-class", metavar="NAME|N", help="strips from each class to this class")
    text = "images at a time (default 16, or 1 for a large network on a CPU); another number may change the last digits"
    draw.add_argument("--batch", type=whole(1, 4096), metavar="N", help=text)
    precisions = ("auto", "fp32", "tf32", "bf16", "fp16")
    draw.add_argument("--precision", choices=precisions, default="auto", help="default auto: the fastest of the device")
    text = "the run's autoencoder (default: the one that made its latents, beside the run or in artifacts/vae)"
    draw.add_argument("--vae", type=Path, metavar="FOLDER", help=text)
    text = "a .png file for a grid (default: results/draw_RUN.png), or a folder for single images as PNG"
    draw.add_argument("--out", type=named, metavar="PATH", help=text)
