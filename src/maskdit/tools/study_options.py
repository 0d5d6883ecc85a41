"""The options of `maskdit study` and `maskdit init`, apart from the code that needs torch."""

import argparse
from pathlib import Path
from typing import Any


def side(text: str) -> int:
    """Parse the pixels of one side."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of pixels; images are square, so give that of one side")
    return int(text)


def add_classes(entry: argparse.ArgumentParser) -> None:
    """Add the option that says which folders are classes."""
    text = "which folder above an image is its class (default: auto, the first, refused if another may be meant); none: no classes"
    entry.add_argument("--classes", choices=("auto", "first", "last", "path", "none"), default="auto", help=text)


def add_study(verbs: Any) -> None:
    """Add the commands to the command line."""
    study = verbs.add_parser("study", help="Add a study of a folder of images to params.yaml.")
    study.add_argument("name", metavar="NAME", help="the prefix of its keys")
    study.add_argument("root", type=Path, metavar="ROOT", help="a folder CLASS/image, or tar or zip files with this layout")
    text = "finetune these published weights, an entry of released: in params.yaml, in place of training from nothing"
    study.add_argument("--from", dest="released", metavar="KEY", help=text)
    text = "Write a project into a new folder: params.yaml, and the files by which Snakemake and DVC run it."
    init = verbs.add_parser("init", help=text)
    init.add_argument("folder", type=Path, metavar="FOLDER", help="is made, or is empty")
    text = "a folder CLASS/image, or tar or zip files, to be studied in place of the demo's emoji"
    init.add_argument("--images", type=Path, metavar="IMAGES", help=text)
    init.add_argument("--name", metavar="NAME", help="the prefix of the study's keys (default: by the name of IMAGES)")
    for entry, end in ((study, ", with --from that of the weights"), (init, "")):
        text = f"side of the images (default 32{end})"
        entry.add_argument("--resolution", type=side, metavar="PIXELS", help=text)
        text = "by the number of images"
        entry.add_argument(
            "--heldout", type=float, metavar="FRACTION", help=f"fraction of held-out images (default: {text}, from 0.1)"
        )
        entry.add_argument("--steps", type=int, metavar="N", help=f"steps of pretraining; others in proportion (default: {text})")
        entry.add_argument("--batch", type=int, metavar="N", help=f"images per step (default: {text}, up to the demo's)")
        entry.add_argument(
            "--samples", type=int, metavar="N", help=f"samples of each evaluation (default: {text}, up to the demo's)"
        )
        entry.add_argument("--skip-bad", action="store_true", help="leave out damaged images")
        text = "largest fraction of the images that may be left out (default 0.05)"
        entry.add_argument("--left-out", type=float, default=0.05, metavar="FRACTION", help=text)
        add_classes(entry)
