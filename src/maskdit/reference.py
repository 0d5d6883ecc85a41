"""Statistics of the real images in a feature space, what held-out real images score there, and a class probe."""

from pathlib import Path

import numpy as np

from maskdit.config import Reference
from maskdit.data import Images
from maskdit.extractor import SHA256, demand, extract
from maskdit.files import write_json
from maskdit.metrics import frechet_distance, inception_score, moments
from maskdit.runtime import say


def reference(config: Reference, *, images: Path, out: Path) -> None:
    """Features of the training images and their mean and covariance; a logistic probe for the class, fitted on them.

    real.json holds what the held-out images score: their distance to the training images is the floor of the metric at their
    (small) number, and the probe's accuracy on them is what a perfect sampler would reach.
    """
    from sklearn.linear_model import LogisticRegression

    demand(config.family)
    data = Images.load(images)
    (pixels, labels), (unseen, unseen_labels) = data.part(heldout=False), data.part(heldout=True)
    both, probabilities = extract(np.concatenate([pixels, unseen]), config.batch)
    features, others = np.split(both, [len(pixels)])
    mean, spread = features.mean(0), features.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=300).fit((features - mean) / spread, labels)
    weight = fit.coef_ / spread
    bias = fit.intercept_ - weight @ mean
    mu, sigma = moments(features)
    np.savez(out / "reference.npz", features=features, mu=mu, sigma=sigma, probe_weight=weight, probe_bias=bias)
    guessed = (others @ weight.T + bias).argmax(1)
    real = {
        "images": len(others),
        "fd_mobilenet": frechet_distance(moments(others), (mu, sigma)),
        "is_mobilenet": inception_score(probabilities[len(pixels) :]),
        "probe_accuracy": float((guessed == unseen_labels).mean()),
    }
    write_json(out / "real.json", {"family": config.family, "weights_sha256": SHA256, "train_images": len(pixels), "heldout": real})
    say(f"reference: {len(pixels)} images; the probe names {real['probe_accuracy']:.1%} of {len(others)} held-out images rightly")
