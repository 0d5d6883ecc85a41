"""Distances against closed forms and independent implementations."""

import numpy as np
import pytest
import scipy.linalg
import torch

from maskdit import metrics
from maskdit.metrics import (
    density_coverage,
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
    merged,
    moments,
    precision_recall,
    softmax,
    squared_distances,
)

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.normal(size=(300, 12)) @ RNG.normal(size=(12, 12)), RNG.normal(size=(250, 12)) + 0.3


def test_the_distance_of_two_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    basis = scipy.linalg.qr(RNG.normal(size=(3, 3)))[0]  # covariances that commute
    found = frechet_distance((np.zeros(3), basis @ np.diag(a) @ basis.T), (np.array([1.0, 2, 2]), basis @ np.diag(b) @ basis.T))
    assert found == pytest.approx(9 + np.square(np.sqrt(a) - np.sqrt(b)).sum())


def test_the_distance_equals_that_by_scipy_s_matrix_root():
    (mu1, s1), (mu2, s2) = moments(ONE), moments(OTHER)
    wanted = np.square(mu1 - mu2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert frechet_distance((mu1, s1), (mu2, s2)) == pytest.approx(wanted, rel=1e-8)


def test_the_distance_is_that_of_torch_fidelity_also_with_fewer_images_than_features():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    for count in (300, 8):
        pair = [dict(zip(("mu", "sigma"), moments(features[:count]), strict=True)) for features in (ONE, OTHER)]
        wanted = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(moments(ONE[:count]), moments(OTHER[:count])) == pytest.approx(wanted, rel=1e-6)


def test_moments_are_the_unbiased_ones_of_the_features_in_float64():
    features = (RNG.normal(size=(50, 3)) + 100).astype(np.float16)
    mean = sum(row.astype(float) for row in features) / 50
    spread = sum(np.outer(row - mean, row - mean) for row in features.astype(float)) / 49
    np.testing.assert_allclose(moments(features)[0], mean, rtol=1e-12)
    np.testing.assert_allclose(moments(features)[1], spread, rtol=1e-10)


def test_a_set_is_at_distance_0_from_itself():
    assert frechet_distance(moments(ONE), moments(ONE)) == pytest.approx(0, abs=1e-8)


def test_the_score_is_1_for_one_answer_and_the_number_of_classes_for_sure_and_varied_ones():
    assert inception_score(np.full((10, 5), 0.2)) == pytest.approx(1)
    assert inception_score(np.tile(np.eye(5), (4, 1))) == pytest.approx(5)


def test_the_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(RNG.normal(size=(200, 7)))
    wanted = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(1).numpy()) == pytest.approx(wanted, rel=1e-9)


def test_squared_distances_are_those_of_scipy():
    np.testing.assert_allclose(squared_distances(ONE, OTHER), scipy.spatial.distance.cdist(ONE, OTHER, "sqeuclidean"), rtol=1e-8)


def test_precision_and_recall_are_those_of_torch_fidelity_in_this_order():
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = OTHER, np.concatenate([OTHER[:50] + 0.01, ONE[:50]])
    found = prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, verbose=False)
    assert precision_recall(generated, real, 3) == pytest.approx((found["precision"], found["recall"]))
    assert precision_recall(real, real, 3) == (1, 1)


def test_moments_of_parts_are_those_of_the_whole():
    parts = [(len(part), *moments(part)) for part in np.split(ONE, [40, 41 + 60])]
    for found, wanted in zip(merged(parts), moments(ONE), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def test_the_score_is_the_mean_over_5000_images_at_a_time_in_their_order():
    logits = RNG.normal(size=(10_500, 7)) + np.eye(7)[np.arange(10_500) % 7] * np.linspace(0, 5, 10_500)[:, None]
    found = []
    for at in (0, 5000, 10_000):
        p = np.exp(logits[at : at + 5000])
        p = p / p.sum(1, keepdims=True)
        found.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum() / len(p)))
    assert inception_score(softmax(logits)) == pytest.approx(np.mean(found), rel=1e-12)


def test_precision_and_recall_are_adm_s_exactly_in_float32_however_they_are_cut(monkeypatch):
    source = np.random.default_rng(5)
    real, made = (source.normal(size=(count, 16)).astype(np.float32) + shift for count, shift in ((90, 0), (120, 0.5)))
    real[7] = made[3]

    def squares(a, b):
        return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clip(min=0)

    radius = {name: np.sort(squares(points, points), 1)[:, 3] for name, points in (("real", real), ("made", made))}
    across = squares(made, real)
    wanted = ((across <= radius["real"]).any(1).mean(), (radius["made"] >= across.T).any(1).mean())
    for block in (metrics.BLOCK, 300):
        monkeypatch.setattr(metrics, "BLOCK", block)
        assert precision_recall(made, real, 3) == wanted


def test_density_and_coverage_count_balls():
    real = np.array([[0.0], [1], [2], [3], [10], [11], [12], [13]])
    made = np.array([[1.5], [1.4], [100.0]])
    radius = np.sort(np.abs(real - real.T), 1)[:, 2]
    inside = np.abs(made - real.T) < radius
    assert density_coverage(made, real, 2) == (inside.sum() / (2 * 3), inside.any(0).mean())


def test_the_kernel_distance_is_that_of_torch_fidelity_and_0_in_the_mean_for_one_distribution():
    from torch_fidelity.metric_kid import kid_features_to_metric

    pair = [torch.from_numpy(features[:200]) for features in (ONE, OTHER)]
    wanted = kid_features_to_metric(*pair, kid_subset_size=200, kid_subsets=1, verbose=False)["kernel_inception_distance_mean"]
    assert kernel_distance(ONE[:200], OTHER[:200], np.random.default_rng(0), 200, 1) == pytest.approx(wanted, rel=1e-6)
    same = np.random.default_rng(1).normal(size=(2, 500, 4))
    assert abs(kernel_distance(*same, np.random.default_rng(0), 400, 20)) < 0.02


def test_the_distance_at_infinity_leaves_out_what_few_images_add():
    source = np.random.default_rng(2)
    made, real = source.normal(size=(4000, 8)), (np.zeros(8), np.eye(8))
    at_hand, beyond = frechet_distance(moments(made), real), frechet_at_infinity(made, real, np.random.default_rng(0))
    assert abs(beyond) < at_hand / 2
