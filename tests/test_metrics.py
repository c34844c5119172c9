"""Metrics against closed forms, brute force and the reference packages; and what they answer to bad input."""

from unittest import mock

import numpy as np
import pytest
import torch

from dmcmc_core import metrics
from dmcmc_core.data import glyphs32
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import (
    distance_to_set,
    frechet_distance,
    kid,
    kid_subsets,
    memorisation,
    neighbours,
    prdc,
    statistics,
)


def draws(n: int, d: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Correlated rows whose scales span two decades."""
    g = torch.Generator().manual_seed(1000 + seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) * torch.logspace(-2, 0, d)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + shift


def spd(d: int, seed: int) -> torch.Tensor:
    return statistics(draws(4 * d, d, seed))[1]


# ---- Fréchet distance

ROUNDING = 3e-9  # of the traces: the root of a small eigenvalue keeps half of the digits of float64


def test_statistics_are_numpys_for_any_tile():
    x = draws(101, 7)
    mu, cov = statistics(x.float(), rows=10)
    assert mu.dtype == cov.dtype == torch.float64
    exact = x.float().double().numpy()
    np.testing.assert_allclose(mu, exact.mean(0), atol=1e-13)
    np.testing.assert_allclose(cov, np.cov(exact, rowvar=False), atol=1e-13)


def test_frechet_distance_of_a_distribution_from_itself_is_zero_also_when_singular():
    for n in (200, 20):  # 20 rows in 64 dimensions: rank 19
        mu, cov = statistics(draws(n, 64))
        assert 0 <= frechet_distance(mu, cov, mu, cov) < ROUNDING * cov.trace()


def test_frechet_distance_of_a_shift_is_its_squared_length():
    mu, cov = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), spd(16, 1)
    assert frechet_distance(mu, cov, mu + 0.3, cov) == pytest.approx(16 * 0.09, abs=ROUNDING * cov.trace().item())


def test_frechet_distance_of_commuting_covariances():
    vectors = torch.linalg.qr(draws(8, 8)).Q
    a, b = torch.linspace(0, 2, 8, dtype=torch.float64), torch.linspace(1, 0, 8, dtype=torch.float64) ** 2
    cov1, cov2 = (vectors * a @ vectors.T for a in (a, b))
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    zero = torch.zeros(8)
    assert frechet_distance(zero, cov1, zero, cov2) == pytest.approx(
        expected, abs=ROUNDING * (a.sum() + b.sum()).item()
    )
    assert frechet_distance(0.0, 4.0, 3.0, 9.0) == pytest.approx(9 + 1)  # one dimension: (m1 - m2)^2 + (s1 - s2)^2


@pytest.mark.parametrize("n, m", [(20, 30), (30, 20), (200, 30), (30, 200), (40, 41)])
def test_frechet_distance_of_singular_covariances_is_exact(n, m):
    """tr (cov1 cov2)^(1/2) is the sum of the singular values of the product of two factors."""
    x, y = draws(n, 64, 0), draws(m, 64, 1, shift=0.3)
    (mu1, cov1), (mu2, cov2) = statistics(x), statistics(y)
    a, b = (x - mu1) / (n - 1) ** 0.5, (y - mu2) / (m - 1) ** 0.5
    root = torch.linalg.svdvals(a @ b.T).sum()
    expected = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * root
    traces = (cov1.trace() + cov2.trace()).item()
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected.item(), abs=ROUNDING * traces)


def pairs_of_statistics():
    x, y = draws(300, 48, 0), draws(400, 48, 1, shift=0.2)
    yield "regular", x, y
    yield "fewer rows than features", x[:30], y[:20]
    yield "one singular", x[:30], y
    yield "features twice", torch.cat([x, x], 1), torch.cat([y, y], 1)
    yield "a constant feature", torch.cat([x, x[:, :1] * 0 + 2], 1), torch.cat([y, y[:, :1] * 0 + 3], 1)
    yield "copies of one row", x[:1].expand(50, -1), y
    yield "copies of two rows", x[:1].expand(50, -1), y[:1].expand(60, -1)
    yield "equal", x[:20], x[:20]


CASES = {name: (x, y) for name, x, y in pairs_of_statistics()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Matrix is singular")  # scipy.linalg.sqrtm's
def test_frechet_distance_agrees_with_pytorch_fid(case):
    package = pytest.importorskip("pytorch_fid.fid_score", exc_type=ImportError)
    (mu1, cov1), (mu2, cov2) = (statistics(x) for x in CASES[case])
    try:
        theirs = package.calculate_frechet_distance(*(t.numpy() for t in (mu1, cov1, mu2, cov2)))
    except TypeError:
        pytest.skip("pytorch-fid 0.3.0 calls scipy.linalg.sqrtm in a way that scipy 1.18 no longer has")
    tolerance = 1e-6 * (cov1.trace() + cov2.trace()).item()
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(theirs, abs=max(tolerance, 1e-12))


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance_agrees_with_torch_fidelity(case):
    package = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    x, y = CASES[case]
    theirs = package.fid_statistics_to_metric(*(package.fid_features_to_statistics(z) for z in (x, y)), False)
    (mu1, cov1), (mu2, cov2) = statistics(x), statistics(y)
    tolerance = 1e-6 * (cov1.trace() + cov2.trace()).item()
    ours = frechet_distance(mu1, cov1, mu2, cov2)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], abs=max(tolerance, 1e-12))


@pytest.mark.parametrize("chains", [None, 20])
def test_bootstrap_is_the_distance_of_drawn_rows(chains):
    x, (mu, cov) = draws(100, 5, 0), statistics(draws(80, 5, 1))
    groups = None if chains is None else torch.arange(100) % chains
    found = metrics.bootstrap_frechet(x, mu, cov, resamples=4, groups=groups, seed=3, rows=33)
    generator = torch.Generator().manual_seed(3)
    for value in found.tolist():
        drawn = torch.randint(chains or 100, (chains or 100,), generator=generator)
        rows = drawn if chains is None else (drawn[:, None] + chains * torch.arange(5)).flatten()
        assert value == pytest.approx(frechet_distance(*statistics(x[rows]), mu, cov), rel=1e-9)


def test_frechet_distance_takes_arrays_and_is_symmetric():
    (mu1, cov1), (mu2, cov2) = statistics(draws(50, 9, 0)), statistics(draws(60, 9, 1))
    there, back = frechet_distance(mu1, cov1, mu2, cov2), frechet_distance(mu2, cov2, mu1, cov1)
    assert there == pytest.approx(back, abs=ROUNDING * (cov1.trace() + cov2.trace()).item()) and there > 0
    assert frechet_distance(mu1.numpy(), cov1.numpy(), mu2.numpy(), cov2.tolist()) == there


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(mu2=torch.zeros(4)), "mu1 3 and mu2 4"),
        (dict(cov1=torch.eye(4)), r"cov1 must have the shape \(3, 3\)"),
        (dict(mu1=torch.tensor([0.0, float("nan"), 0.0])), "mu1 holds values that are not finite"),
        (dict(cov2=torch.full((3, 3), float("inf"))), "cov2 holds values that are not finite"),
        (dict(cov1=torch.ones(3, 3).triu()), "cov1 must be symmetric"),
        (dict(cov2=-torch.eye(3)), "cov2 must be positive semidefinite"),
        (dict(mu1=torch.zeros(3, 1)), "mu1 must have the shape"),
    ],
)
def test_frechet_distance_refuses(change, words):
    good = dict(mu1=torch.zeros(3), cov1=torch.eye(3), mu2=torch.zeros(3), cov2=torch.eye(3))
    with pytest.raises(UserError, match=words):
        frechet_distance(**(good | change))


# ---- KID


def test_kid_is_the_formula_for_any_tile():
    x, y = draws(23, 5, 0).float(), draws(31, 5, 1, shift=0.5).float()
    k = lambda a, b: (a.double() @ b.double().T / 5 + 1) ** 3  # noqa: E731
    kxx, kyy = k(x, x), k(y, y)
    expected = (kxx.sum() - kxx.trace()) / (23 * 22) + (kyy.sum() - kyy.trace()) / (31 * 30) - 2 * k(x, y).mean()
    for rows in (1, 7, 2048):
        assert kid(x, y, rows=rows) == pytest.approx(expected.item(), rel=1e-10)


def test_kid_is_unbiased():
    """Small sets from one distribution: the mean over 2,000 pairs is within 4 standard errors of 0, unlike with the
    diagonals left in."""
    pairs = [(draws(6, 3, 2 * i), draws(5, 3, 2 * i + 1)) for i in range(2000)]
    values = torch.tensor([kid(x, y) for x, y in pairs], dtype=torch.float64)
    error = values.std() / 2000**0.5
    assert values.mean().abs() < 4 * error

    biased = torch.stack([sum(((a @ b.T / 3 + 1) ** 3).mean() * w for a, b, w in
                               ((x, x, 1), (y, y, 1), (x, y, -2))) for x, y in pairs])  # fmt: skip
    assert biased.mean() > 4 * error, "the bound would not see a bias"


def test_kid_agrees_with_torch_fidelity():
    package = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
    x, y = draws(200, 16, 0), draws(150, 16, 1, shift=0.3)
    theirs = package.kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=60, verbose=False)
    mean, spread = kid_subsets(x, y, subsets=20, size=60)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    with pytest.raises(UserError, match="subsets of 2 to 150 rows"):
        kid_subsets(x, y, size=151)


# ---- precision, recall, density, coverage


def brute_prdc(fake: np.ndarray, real: np.ndarray, k: int):
    """The definitions of Naeem et al. 2020, one pair at a time."""
    between = np.array([[np.sqrt(((r - f) ** 2).sum()) for f in fake] for r in real])

    def radius(points):
        own = np.array([[np.sqrt(((p - q) ** 2).sum()) for q in points] for p in points])
        return np.sort(own, 1)[:, k]

    real_radius, fake_radius = radius(real)[:, None], radius(fake)[None]
    return (
        (between < real_radius).any(0).mean(),
        (between < fake_radius).any(1).mean(),
        (between < real_radius).sum(0).mean() / k,
        (between.min(1) < real_radius[:, 0]).mean(),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_the_definition_for_any_tile(k):
    fake, real = draws(40, 4, 0, shift=0.4), draws(55, 4, 1)
    expected = brute_prdc(fake.numpy(), real.numpy(), k)
    assert all(0 < value for value in expected) and min(expected) < 0.95, "a case that tells them apart"
    for rows in (1, 2, 13, 2048):
        assert tuple(prdc(fake, real, k, rows=rows)) == pytest.approx(expected, abs=1e-12)
    prepared = metrics.radii(real, k)
    assert prdc(fake, real, k, reference_radii=prepared) == prdc(fake, real, k)


def hard_tables():
    """Where inner products alone go wrong: copies, ties on a grid, and rows far from the origin."""
    x, y = draws(90, 6, 0).float(), draws(120, 6, 1).float()
    yield x, y
    yield torch.cat([x[:40], x[:40], y[:10]]), torch.cat([y, x[:40]])
    yield (2 * x).round(), (2 * y).round()
    yield x / 1000 + 1e4, y / 1000 + 1e4
    yield x[:1].expand(90, -1), y


@pytest.mark.parametrize("x, y", list(hard_tables()), ids=["plain", "copies", "grid", "far away", "one row"])
def test_neighbours_by_inner_products_are_those_by_differences(x, y):
    """Bit for bit: what is not sure is computed from the differences."""
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(neighbours._nearest(x, y, 6), exact.topk(6, largest=False).values)
    own = torch.cdist(y.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, 3]
    for rows in (70, 2048):
        assert torch.equal(metrics.radii(y, 3, rows=rows), own)
    closer = neighbours._comparison(x, y)
    for radius in (own.expand(len(x), -1), exact, exact.roll(1, 1), torch.zeros_like(exact)):
        assert torch.equal(closer(radius), exact < radius)


def test_inner_products_suffice_nearly_always():
    """The slow way is for the pairs that need it, or ten thousand images of 2,048 features would take hours."""
    x, y = draws(300, 32, 0).float(), draws(300, 32, 1).float()
    with mock.patch.object(neighbours, "_distances", wraps=neighbours._distances) as slow:
        prdc(x, y)
    pairs = sum(len(call.args[0]) * call.args[0].shape[-2] * call.args[1].shape[-2] for call in slow.call_args_list)
    assert 0 < pairs < 0.2 * 3 * 300 * 300


def test_precision_and_recall_agree_with_torch_fidelity():
    package = pytest.importorskip("torch_fidelity.metric_prc", exc_type=ImportError)
    x, y = draws(120, 8, 0, shift=0.5), draws(150, 8, 1)
    theirs = package.prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    ours = prdc(x, y, k=3)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_prdc_of_equal_and_of_distant_sets():
    x = draws(60, 6).float()
    assert tuple(prdc(x, x.clone())) == (1, 1, 1, 1)
    assert tuple(prdc(x, x + 1000)) == (0, 0, 0, 0)
    copies = x[:1].expand(60, -1)  # a model that makes one image: precise, and covers next to nothing
    collapsed = prdc(copies, x)
    assert collapsed.precision == 1 and collapsed.recall == 0 and collapsed.coverage < 0.5
    with pytest.raises(UserError, match="at least 6 rows"):
        prdc(x[:5], x)
    with pytest.raises(UserError, match="not of 6 and 5 features"):
        prdc(x, x[:, :5])


# ---- classes


def test_class_histogram_and_distances():
    counts = metrics.class_histogram(torch.tensor([0, 2, 2, 3]), 5)
    assert counts.tolist() == [1, 0, 2, 1, 0]
    reference = torch.tensor([2, 2, 2, 2, 0])
    assert metrics.total_variation(counts, reference) == pytest.approx(0.25)
    assert metrics.total_variation(counts, 7 * counts) == 0
    assert metrics.class_coverage(counts, reference) == 0.75
    for labels in (torch.tensor([5]), torch.tensor([-1]), torch.tensor([0.5]), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"integers in \[0, 5\)"):
            metrics.class_histogram(labels, 5)
    with pytest.raises(UserError, match="not over 5 and 2"):
        metrics.total_variation(counts, torch.ones(2))
    with pytest.raises(UserError, match="histogram"):
        metrics.class_coverage(torch.zeros(5), reference)


# ---- distance to a data set, memorisation


def test_distance_to_set_is_brute_force_for_any_tile():
    x, data = draws(17, 12, 0).float(), draws(29, 12, 1).float()
    every = (x[:, None].double() - data[None].double()).square().sum(2).sqrt()
    for rows in (1, 5, 2048):
        found = distance_to_set(x.view(17, 3, 2, 2), data.view(29, 3, 2, 2), rows=rows)
        torch.testing.assert_close(found.distance, every.min(1).values, rtol=1e-12, atol=0)
        assert torch.equal(found.index, every.argmin(1))
    own = distance_to_set(data, data, exclude_self=True, rows=5)
    others = torch.cdist(data.double(), data.double()).fill_diagonal_(torch.inf)
    torch.testing.assert_close(own.distance, others.min(1).values, rtol=1e-9, atol=0)
    with pytest.raises(UserError, match="cannot be compared"):
        distance_to_set(x, data[:, :5])


def test_exact_draws_are_at_distance_zero_and_cover_what_chance_covers():
    data = glyphs32(300).images
    n = 300
    index = torch.randint(300, (n,), generator=torch.Generator().manual_seed(0))
    found = distance_to_set(data[index], data)
    assert found.distance.max() == 0 and torch.equal(found.index, index)
    expected = metrics.expected_coverage(n, 300)
    assert metrics.coverage_of_set(found.index, 300) == pytest.approx(expected, abs=4 * (0.1 / 300) ** 0.5)
    assert metrics.coverage_of_set(found.index[:1].repeat(50), 300) == pytest.approx(1 / 300)


def test_memorisation_sees_copies_and_only_copies():
    x = torch.rand(900, 12, generator=torch.Generator().manual_seed(0))
    train, heldout, fresh = x[:500], x[500:700], x[700:]
    honest = memorisation(fresh, train, heldout)
    assert abs(honest.nearer_train - honest.nearer_train_fresh) < 3 * honest.error
    assert honest.nearer_train_fresh == pytest.approx(500 / 699, abs=4 * (0.2 / 200) ** 0.5)
    assert honest.to_train == pytest.approx(honest.to_train_fresh, rel=0.1) and honest.copies < 0.06

    noisy = train[:200] + 0.01 * torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    copied = memorisation(noisy, train, heldout)
    assert copied.nearer_train == 1 and copied.copies == 1 and copied.to_train < 0.1 * copied.to_train_fresh
    assert copied.nearer_train - copied.nearer_train_fresh > 3 * copied.error

    half = memorisation(torch.cat([train[:100], fresh[:100]]), train, heldout)
    assert half.nearer_train - half.nearer_train_fresh > 3 * half.error and half.copies >= 0.5
    assert memorisation(heldout, train, heldout).nearer_train == 0


# ---- results of different n


def test_rows_of_different_n_are_not_compared():
    row = {"n": 600, "reference": "digits-heldout", "reference_n": 600, "features": "digits-cnn", "frechet": 1.0}
    metrics.require_equal_n(row, row | {"frechet": 2.0})
    metrics.require_equal_n(600, row)
    for change in ({"n": 500}, {"reference_n": 500}, {"reference": "digits-train"}, {"features": "random-conv"}):
        with pytest.raises(UserError, match=f"different {next(iter(change))} "):
            metrics.require_equal_n(row, row | change)
    with pytest.raises(UserError, match="different n must not be compared: 600 and 500"):
        metrics.require_equal_n(600, 500)
