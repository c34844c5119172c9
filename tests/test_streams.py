"""Streams named by (seed, purpose, index): the same numbers in any company, never the same ones twice."""

import numpy as np
import pytest
import torch
from scipy import stats

from dmcmc_core.errors import UserError
from dmcmc_core.streams import Drawn, Streams


def normals(seed=0, purpose="image", indices=(0,), shape=(8,), draws=1, dtype=torch.float64):
    rng = Streams(seed, purpose, indices)
    return torch.stack([rng(torch.empty(len(indices), *shape, dtype=dtype)) for _ in range(draws)])


def test_known_answers():
    """Recorded once: images of published seeds stay the images of those seeds."""
    rng, like = Streams(0, "image", [0, 1]), torch.empty(2, 2, dtype=torch.float64)
    first, second = rng(like), rng(like)
    assert first[0].tolist() == KNOWN["first"] and second[1].tolist() == KNOWN["second"]
    assert rng.uniform(like)[1].tolist() == KNOWN["uniform"]
    assert Streams(-5, "chain", [10**6])(like[:1])[0].tolist() == KNOWN["other"]


KNOWN = {
    "first": [0.6722829237508975, 1.1165900695673594],
    "second": [1.1442140250027317, -0.06646319133789406],
    "uniform": [0.37984359174307225, 0.3395352489342317],
    "other": [-0.16431348041221525, 1.0601998805799648],
}


def test_company_and_order_do_not_matter():
    together = normals(indices=range(20), draws=3)
    assert torch.equal(normals(indices=[7], draws=3)[:, 0], together[:, 7])
    assert torch.equal(normals(indices=[19, 0, 4], draws=3), together[:, [19, 0, 4]])


def test_one_stream_per_seed_purpose_and_index():
    """Also seed 0, image 1 against seed 1, image 0, which a sum of the two would make equal."""
    names = [(0, "image", 0), (0, "image", 1), (1, "image", 0), (0, "chain", 0), (10, "image", 0), (1, "0/image", 0)]
    rows = torch.stack([normals(s, p, [i], shape=(64,))[0, 0] for s, p, i in names])
    equal = (rows[:, None] == rows).any(-1)
    assert torch.equal(equal, torch.eye(len(names), dtype=torch.bool))


@pytest.mark.parametrize("shape", [(3,), (4096,), (5000,)])
def test_nothing_is_drawn_twice(shape):
    """Over pages of numbers made ahead, also where draws of other sizes and uniforms come between."""
    rng, seen = Streams(0, "image", [3]), []
    sizes = [shape, (2,), (2, 2), (4,), (1,)]
    for i in range(5 * 300 if shape == (3,) else 15):
        like = torch.empty(1, *sizes[i % 5], dtype=torch.float64)
        seen.append(rng(like).flatten())
        seen.append(rng.uniform(like).flatten())
    seen = torch.cat(seen)
    assert len(seen.unique()) == len(seen)


def test_state_restores_the_stream():
    whole, like = Streams(5, "chain", [0, 9]), torch.empty(2, 700)
    draws = [(whole(like), whole.uniform(like[:, 0])) for _ in range(12)]
    for cut in (1, 5, 6, 11):
        first = Streams(5, "chain", [0, 9])
        for _ in range(cut):
            first(like)
            first.uniform(like[:, 0])
        assert first.state == Drawn(cut, cut)
        rest = Streams(5, "chain", [0, 9], state=first.state)
        for normal, uniform in draws[cut:]:
            assert torch.equal(rest(like), normal) and torch.equal(rest.uniform(like[:, 0]), uniform)
    whole.state = Drawn(3, 3)  # also backwards
    assert torch.equal(whole(like), draws[3][0])


def test_shape_and_dtype_are_those_asked_for():
    rng = Streams(0, "image", range(3))
    for shape, dtype in (((3, 1, 2, 2), torch.float32), ((3,), torch.float64), ((3, 5), torch.float16)):
        out = rng(torch.empty(shape, dtype=dtype))
        assert out.shape == shape and out.dtype == dtype
    single, double = normals(dtype=torch.float32), normals()
    assert torch.equal(single, double.float())
    assert rng(torch.empty(3, 0)).shape == (3, 0)


def test_normals_are_normal():
    """Within streams and across them, at the smallest p-value that five tests would show once in 200 runs."""
    x = normals(indices=range(200), shape=(10,), draws=10)
    for sample in (x.flatten(), x[:, 0].flatten(), x[0, :, 0], x[..., 0].flatten(), x.sum((0, 2)) / 10):
        assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-3
    rows = x.permute(1, 0, 2).flatten(1)
    correlations = torch.corrcoef(rows)[torch.triu(torch.ones(200, 200), 1) > 0] * rows.shape[1] ** 0.5
    assert stats.kstest(correlations.numpy(), "norm").pvalue > 1e-3


def test_uniforms_are_uniform_in_zero_to_one():
    rng = Streams(0, "image", range(100))
    x = torch.stack([rng.uniform(torch.empty(100, 7, dtype=torch.float64)) for _ in range(20)])
    assert (x >= 0).all() and (x < 1).all()
    assert stats.kstest(x.flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_uniforms_stay_below_one_when_rounded(dtype, monkeypatch):
    """The largest float64 below 1 is 1 to the nearest float32."""
    monkeypatch.setattr(Streams, "_page", lambda self, kind, page, *shape: np.full((1, *shape), 1 - 2.0**-53))
    assert (Streams(0, "image", [0]).uniform(torch.empty(1, 3, dtype=dtype)) < 1).all()


def test_errors():
    with pytest.raises(UserError, match="stream indices must be at least 0, not -1"):
        Streams(0, "image", [3, -1])
    with pytest.raises(UserError, match="2 random streams cannot serve 3 rows"):
        Streams(0, "image", [0, 1])(torch.empty(3, 4))
