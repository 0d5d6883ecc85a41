"""The command line of `maskdit score`. Its help text waits for no library."""

import argparse
from typing import Any

from maskdit.tools.draw_options import named, whole

TEXT = """FID, sFID, Inception Score, precision, recall, KID, density and coverage of images that you have, in any folder.

SAMPLES and REFERENCE are each a folder of PNG or JPEG files, an npz with images in arr_0 as ADM's, artifacts/samples/KEY, or a file
that --save-features wrote. REFERENCE can also be an npz with mu and sigma, as ADM's and EDM's, which gives FID and IS alone; with
mu_s and sigma_s also sFID. All images must have one size. Several sets of SAMPLES make one table against one reference.

Only Inception of 2015 with 50,000 images gives a metric named fid. What cannot be compared with published numbers is listed below
the table. docs/evaluation.md says how others compute the same, and how far their numbers differ."""
EXAMPLES = """examples:
  maskdit score samples/ --reference VIRTUAL_imagenet256_labeled.npz       # ADM's protocol
  maskdit score samples/ --reference photos/ --mind --json                 # one's own reference
  maskdit score one.npz two.npz three.npz --reference reference.npz        # one table
  maskdit score photos/ --save-features photos.npz                         # once, then --reference photos.npz
  maskdit score samples/ --reference photos/ --extractor mobilenet-v2      # without a download
  torchrun --nproc-per-node 8 -m maskdit.cli score samples/ --reference photos/     # eight GPUs

An interrupted command goes on where it stopped when it is repeated: features are kept by the thousand in $XDG_CACHE_HOME/maskdit,
by default ~/.cache/maskdit, until nobody has used them for a week.

environment variables, as maskdit sample --help explains them: MASKDIT_DEVICE, MASKDIT_THREADS, MASKDIT_SHARED"""


def add_score(verbs: Any) -> None:
    """Add the command and its options to those of maskdit."""
    line = "Print FID, sFID, IS, precision, recall, KID, density and coverage of images that you have."
    form = argparse.RawDescriptionHelpFormatter
    score = verbs.add_parser("score", help=line, description=TEXT, epilog=EXAMPLES, formatter_class=form)
    score.add_argument("samples", type=named, nargs="+", metavar="SAMPLES", help="a set of images, or several")
    text = "real images, or their statistics (without it only the Inception Score is computed)"
    score.add_argument("--reference", type=named, metavar="REFERENCE", help=text)
    families = ("inception-2015", "mobilenet-v2", "dinov2")
    text = "the network (default: inception-2015; of dinov2 the Frechet distance is known as FDD)"
    score.add_argument("--extractor", choices=families, default=families[0], help=text)
    text = "its weights (default: inception-2015: downloaded once into $TORCH_HOME; mobilenet-v2: a package; dinov2: none)"
    score.add_argument("--weights", type=named, metavar="FILE", help=text)
    score.add_argument("--batch", type=whole(1, 4096), default=50, metavar="N", help="images at a time (default 50)")
    score.add_argument("--mind", action="store_true", help="also compute MIND, which needs fewer images than FID")
    score.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    text = "keep the features of the samples, to name them in place of the images"
    score.add_argument("--save-features", type=named, metavar="FILE", help=text)
    text = "keep mean and covariance of the samples' features, to name them as a reference"
    score.add_argument("--save-statistics", type=named, metavar="FILE", help=text)
