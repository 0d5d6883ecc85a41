"""Distances against closed forms and independent implementations."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch

from maskdit.config.base import UserError
from maskdit.evaluation import metrics
from maskdit.evaluation.metrics import (
    Sums,
    frechet_at_infinity,
    frechet_distance,
    halves,
    inception_score,
    kernel_distance,
    moments,
    monge_distance,
    nearest,
    overlap,
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


def test_the_distance_of_gaussians_in_few_dimensions_of_many_is_that_in_these():
    basis = scipy.linalg.qr(RNG.normal(size=(200, 200)))[0]
    flat = [np.concatenate([variances, np.zeros(197)]) for variances in ([1.0, 4.0, 9.0], [4.0, 1.0, 16.0])]
    pair = [(np.zeros(200), basis @ np.diag(variances) @ basis.T) for variances in flat]
    assert frechet_distance(*pair) == pytest.approx(3, rel=1e-9)
    assert frechet_distance(*reversed(pair)) == pytest.approx(3, rel=1e-9)
    nothing = (np.zeros(200), np.zeros((200, 200)))
    assert frechet_distance(pair[0], nothing) == frechet_distance(nothing, pair[0]) == pytest.approx(14)


def test_the_score_is_1_for_one_answer_and_the_number_of_classes_for_sure_and_varied_ones():
    assert inception_score(np.zeros((10, 5))) == pytest.approx(1)
    assert inception_score(np.tile(np.eye(5) * 2000, (4, 1))) == pytest.approx(5)
    assert inception_score(np.tile(np.eye(5)[:3] * 2000, (4, 1))) == pytest.approx(3), "classes that no image is of are no error"


@pytest.mark.parametrize("splits", [1, 3])
def test_the_score_is_that_of_torch_fidelity(splits, monkeypatch):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = RNG.normal(size=(600, 7))
    monkeypatch.setattr(metrics, "SPLIT", 600 // splits)
    wanted = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("block", [metrics.BLOCK, 7 * 250, 1])
def test_squared_distances_are_those_of_scipy_in_blocks_that_bound_the_memory(block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    parts = list(squared_distances(ONE, OTHER))
    assert all(part.size <= max(block, len(OTHER)) for _, part in parts)
    assert [row for at, _ in parts for row in range(at.start, at.stop)] == list(range(300))
    wanted = scipy.spatial.distance.cdist(ONE, OTHER, "sqeuclidean")
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), wanted, rtol=1e-8)


def test_precision_and_recall_are_those_of_torch_fidelity_in_this_order():
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = OTHER, np.concatenate([OTHER[:50] + 0.01, ONE[:50]])
    wanted = prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, verbose=False)
    found = overlap(generated, real, 3)
    assert (found.precision, found.recall) == pytest.approx((wanted["precision"], wanted["recall"]))
    assert found.precision < 0.6 < found.recall < 1
    same = overlap(real, real, 3)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


@pytest.mark.parametrize("cuts", [[], [40, 101], [1, 2, 299]])
def test_moments_of_parts_are_those_of_the_whole(cuts, monkeypatch):
    features = (ONE * 3 + 5).astype(np.float32)
    monkeypatch.setattr(metrics, "PART", 64)
    first, *rest = [Sums.of(part) for part in np.split(features, cuts)]
    found = sum(rest, start=first)
    exact = features.astype(np.float64)
    assert found.count == 300
    np.testing.assert_allclose(found.moments()[0], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.moments()[1], np.cov(exact, rowvar=False), rtol=1e-12, atol=1e-12 * exact.var())


def test_the_score_is_the_mean_over_5000_images_at_a_time_in_their_order():
    logits = RNG.normal(size=(10_500, 7)) + np.eye(7)[np.arange(10_500) % 7] * np.linspace(0, 5, 10_500)[:, None]
    found = []
    for at in (0, 5000, 10_000):
        p = np.exp(logits[at : at + 5000])
        p = p / p.sum(1, keepdims=True)
        found.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum() / len(p)))
    assert inception_score(logits) == pytest.approx(np.mean(found), rel=1e-12)


def test_precision_and_recall_are_adm_s_exactly_in_float32_however_they_are_cut(monkeypatch):
    source = np.random.default_rng(5)
    real, made = (np.abs(source.normal(size=(count, 2048))).astype(np.float32) for count in (90, 120))
    real[7], made[60:] = made[3], made[60:] * np.float32(0.97)

    def squares(a, b):  # as ADM's evaluator writes it, on whole matrices
        return np.maximum(np.square(a).sum(1)[:, None] - 2 * np.matmul(a, b.T) + np.square(b).sum(1)[None], np.float32(0))

    assert squares(real, made).dtype == np.float32
    radius = {name: np.sort(squares(points, points), 1)[:, 3] for name, points in (("real", real), ("made", made))}
    across = squares(made, real)
    wanted = ((across <= radius["real"]).any(1).mean(), (radius["made"] >= across.T).any(1).mean())
    assert all(0 < share < 1 for share in wanted)
    for block in (metrics.BLOCK, 300):
        monkeypatch.setattr(metrics, "BLOCK", block)
        found = overlap(made, real, 3)
        assert (found.precision, found.recall) == wanted


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 1e3), (1, 1e5), (1e19, 0), (1e-19, 0), (1e-3, 1)])
def test_neither_scale_nor_a_common_offset_changes_how_sets_cover_each_other(scale, offset):
    source = np.random.default_rng(6)
    real, made = source.normal(size=(200, 64)), source.normal(size=(150, 64)) * 0.9
    made[:20], real[5] = real[:20] + 1e-3 * source.normal(size=(20, 64)), real[4]
    real, made = ((points * scale + offset).astype(np.float32) for points in (real, made))
    exact = [points.astype(np.float64) for points in (real, made)]
    across, within, ours = (scipy.spatial.distance.cdist(exact[one], exact[other]) for one, other in ((1, 0), (0, 0), (1, 1)))
    wanted = ((across <= np.sort(within, 1)[:, 3]).any(1).mean(), (across <= np.sort(ours, 1)[:, 3, None]).any(0).mean())
    balls = across < np.sort(within, 1)[:, 5]
    found = overlap(made, real, 3)
    assert (found.precision, found.recall) == wanted
    assert (found.density, found.coverage) == (balls.sum() / 5 / 150, balls.any(0).mean())
    assert 0.1 < found.precision < 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value):
    features = ONE.astype(np.float32)
    features[3, 2] = value
    good = ONE.astype(np.float32)
    for pair, what in (((features, good), "samples"), ((good, features), "reference")):
        with pytest.raises(UserError, match=f"the features of the {what} are not all finite numbers"):
            overlap(*pair, 3)


def test_a_feature_on_the_border_of_a_ball_is_inside_for_precision_and_recall_and_outside_for_density():
    real = np.array([[0.0], [1], [3]], np.float32)  # radii 1, 1, 2 to the nearest other
    found = overlap(np.array([[-1.0], [-9.0]], np.float32), real, 1, near=1)
    assert found.precision == 0.5
    assert (found.density, found.coverage) == (0, 0)


def test_density_and_coverage_count_balls():
    real = np.array([[0.0], [1], [2], [3], [10], [11], [12], [13]])
    made = np.array([[1.5], [1.4], [100.0]])
    radius = np.sort(np.abs(real - real.T), 1)[:, 2]
    inside = np.abs(made - real.T) < radius
    found = overlap(made, real, 1, near=2)
    assert (found.density, found.coverage) == (inside.sum() / (2 * 3), inside.any(0).mean())


def test_the_kernel_distance_is_that_of_torch_fidelity_over_the_same_subsets():
    from torch_fidelity.metric_kid import kid_features_to_metric

    pair = [torch.from_numpy(features) for features in (ONE, OTHER)]
    wanted = kid_features_to_metric(*pair, kid_subset_size=60, kid_subsets=12, verbose=False)["kernel_inception_distance_mean"]
    found = kernel_distance(ONE, OTHER, np.random.RandomState(2020), 60, 12)  # torch-fidelity's seed
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found != kernel_distance(ONE, OTHER, np.random.RandomState(0), 60, 12)


def test_the_kernel_distance_is_0_in_the_mean_for_one_distribution():
    same = np.random.default_rng(1).normal(size=(2, 500, 4))
    assert abs(kernel_distance(*same, np.random.default_rng(0), 400, 20)) < 0.02


def test_the_distance_at_infinity_leaves_out_what_few_images_add():
    source = np.random.default_rng(2)
    made, real = source.normal(size=(4000, 8)), (np.zeros(8), np.eye(8))
    at_hand, beyond = frechet_distance(moments(made), real), frechet_at_infinity(made, real, np.random.default_rng(0))
    assert abs(beyond) < at_hand / 2


def test_the_distance_at_infinity_is_where_a_line_in_1_over_n_ends(monkeypatch):
    monkeypatch.setattr(metrics, "frechet_distance", lambda one, real, half: 7 + 300 / one[0][0])
    monkeypatch.setattr(metrics, "moments", lambda features: (np.array([len(features)]), np.eye(1)))
    assert frechet_at_infinity(np.zeros((1000, 1)), (np.zeros(1), np.eye(1)), np.random.default_rng(0)) == pytest.approx(7)


def test_mind_of_a_shift_and_of_a_scale_is_the_closed_form():
    shift = RNG.normal(size=12)
    near = monge_distance(ONE + shift, ONE, np.random.default_rng(3))
    assert monge_distance(ONE + 1000 + shift, ONE + 1000, np.random.default_rng(3)) == pytest.approx(near, rel=1e-4)
    many = monge_distance(ONE + shift, ONE, np.random.default_rng(0), 40_000)
    assert many == pytest.approx(3 * np.square(shift).sum(), rel=0.03), "3 |mu1 - mu2|^2"
    doubled = monge_distance(2 * ONE, ONE, np.random.default_rng(0), 40_000)
    assert doubled == pytest.approx(3 * np.square(ONE).sum(1).mean(), rel=0.03), "3 times the mean squared length"


def test_mind_is_that_of_one_dimension_for_each_direction():
    rng = np.random.default_rng(5)
    rows = [np.sort(rng.permutation(len(points))[:250]) for points in (ONE, OTHER)]
    onto = rng.standard_normal((20, 12))
    onto /= np.linalg.norm(onto, axis=1, keepdims=True)
    ranked = [np.sort(onto @ points[kept].T, axis=1) for points, kept in zip((ONE, OTHER), rows, strict=True)]
    wanted = 3 * 12 * np.square(ranked[0] - ranked[1]).mean()
    assert monge_distance(ONE, OTHER, np.random.default_rng(5), 20) == pytest.approx(wanted, rel=1e-5)


def test_two_halves_share_no_image():
    points = np.arange(9.0)[:, None]
    one, other = halves(points, 100, np.random.default_rng(0))
    assert len(one) == len(other) == 4
    assert not set(one.ravel()) & set(other.ravel())
    assert len(halves(points, 3, np.random.default_rng(0))[0]) == 3


def test_k_copies_among_n_samples_are_k_of_n_and_a_near_copy_is_one():
    source = np.random.default_rng(3)
    real = source.normal(size=(300, 16)).astype(np.float32)
    far = source.normal(size=(63, 16)).astype(np.float32) * 9
    found = nearest(np.concatenate([far, real[40:50], real[90:117] + np.float32(1e-3)]), real)
    assert found.copied == 37 / 100
    np.testing.assert_array_equal(found.rows_N[63:], [*range(40, 50), *range(90, 117)])
    assert nearest(far, real).copied == 0


@pytest.mark.parametrize(("dimensions", "wanted"), [(1, 2 / 3), (2, 6 * np.pi / (8 * np.pi + 3 * np.sqrt(3)))])
def test_fresh_draws_and_images_left_out_are_copies_as_often_as_two_points_are_mutual_nearest_neighbours(dimensions, wanted):
    source = np.random.default_rng(4)
    fresh, real = source.random((2, 6000, dimensions))
    rows = np.arange(len(real))
    assert nearest(fresh, real).copied == pytest.approx(wanted, abs=0.025)
    assert nearest(real, real, rows).copied == pytest.approx(wanted, abs=0.025)


@pytest.mark.parametrize("block", [metrics.BLOCK, 1])
def test_an_image_left_out_is_neither_its_own_neighbour_nor_that_of_its_neighbour(block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    real = np.array([[0.0], [1], [5], [5], [11]], np.float32)
    found = nearest(real[[0, 2, 4]], real, np.array([0, 2, 4]))
    assert (found.rows_N.tolist(), found.distances_N.tolist(), found.own_N.tolist()) == ([1, 3, 2], [1, 0, 6], [4, 4, 0])
    assert found.copied == 2 / 3, "a twin among the training images counts"
