"""What the parts of boundary diffusion cannot use is told in one sentence, before anything is computed."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dmcmc_core import boundary
from dmcmc_core.errors import UserError

LATENTS = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
LABELS = [0, 1] * 3
MADE = boundary.fit(LATENTS, LABELS)
TIMES = [0, 5, 9]


def still(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0 * x


@pytest.mark.parametrize(
    ("latents", "labels", "held_out", "match"),
    [
        (LATENTS, [2.0, math.nan] * 3, None, "labels must be of two values, not of 4"),
        (LATENTS, ["yes", "no"] * 3, None, "labels must be numbers, not .'yes'"),
        (LATENTS, None, None, "labels must be numbers, not None"),
        (LATENTS, torch.zeros(6, 1), None, r"every latent needs a label: 6 of them, not \(6, 1\)"),
        (LATENTS[:0], [], None, "labels must be of two values, not of 0"),
        (LATENTS[:, 0, 0], LABELS, None, r"latents must have shape \(n, \*shape\), not \(6,\)"),
        (LATENTS / 0, LABELS, None, "latents must be finite"),
        (LATENTS * math.nan, LABELS, None, "latents must be finite"),
        (LATENTS[:1].expand(6, 2, 3), LABELS, None, "the two kinds of latents are the same"),
        (0 * LATENTS, LABELS, None, "the two kinds of latents are the same"),
        (LATENTS, LABELS, (LATENTS * math.nan, LABELS), "latents must be finite"),
        (LATENTS, LABELS, (LATENTS[..., :2], LABELS), r"latents must have shape \(B, 2, 3\), not \(6, 2, 2\)"),
        (LATENTS, LABELS, (LATENTS, LABELS[:5]), "every latent needs a label: 6 of them"),
        (LATENTS, LABELS, (LATENTS[:0], []), "there must be latents held out, or held_out=None"),
    ],
)
def test_no_boundary_is_fitted_to(latents, labels, held_out, match):
    with pytest.raises(UserError, match=match):
        boundary.fit(latents, labels, held_out)


def test_truth_values_and_whole_numbers_are_labels():
    for labels in (torch.tensor([False, True] * 3), np.array(LABELS), [-1, 1] * 3, torch.tensor(LABELS).half()):
        assert torch.equal(boundary.fit(LATENTS, labels).normal, MADE.normal)
    with pytest.raises(UserError, match="penalty must be a finite number, above 0, not 0"):
        boundary.fit(LATENTS, LABELS, penalty=0)


@pytest.mark.parametrize(
    ("latent", "normal", "strength", "match"),
    [
        (LATENTS, MADE.normal, math.nan, "strength must be a finite number, not nan"),
        (LATENTS, MADE.normal, math.inf, "strength must be a finite number, not inf"),
        (LATENTS, MADE.normal, "3", "strength must be a finite number, not '3'"),
        (LATENTS, 2 * MADE.normal, 1.0, "the normal must have length 1, not 2"),
        (LATENTS, math.nan * MADE.normal, 1.0, "the normal must have length 1, not nan"),
        (LATENTS / 0, MADE.normal, 1.0, "latents must be finite"),
    ],
)
@pytest.mark.parametrize("how", ["set", "add"])
def test_no_latent_is_edited_by(latent, normal, strength, how, match):
    with pytest.raises(UserError, match=match):
        boundary.edit(latent, normal, strength, how)


def test_no_trajectory_is_of():
    wide = lambda x, t: torch.zeros(len(x), 2, 4)  # noqa: E731
    for x, epsilon, match in (
        (LATENTS.long(), still, "must be finite floats, not torch.int64"),
        (LATENTS / 0, still, "must be finite floats"),
        (LATENTS, wide, r"epsilon must have the shape of x, \(6, 2, 3\), not \(6, 2, 4\)"),
    ):
        for function in (boundary.invert, boundary.reverse):
            with pytest.raises(UserError, match=match):
                function(epsilon, x, TIMES)
    for eta in (-0.1, 1.1, math.nan, "1"):
        with pytest.raises(UserError, match="eta must be"):
            boundary.reverse(still, LATENTS, TIMES, eta)
    with pytest.raises(UserError, match="noise must have shape"):
        boundary.reverse(still, LATENTS, TIMES, 1.0, torch.zeros(3, 6, 2, 3))
    with pytest.raises(UserError, match="noise must have a draw for each step with noise, more than 1"):
        boundary.reverse(still, LATENTS, TIMES, 1.0, torch.zeros(6, 1, 2, 3))
    for time in (1000, -1, 2.5, math.nan):
        with pytest.raises(UserError, match="a time must be a whole number, at least 0 and below 1000"):
            boundary.invert(still, LATENTS, [0, time])
    assert boundary.invert(still, LATENTS, torch.tensor(TIMES)).shape == LATENTS.shape


def test_no_bottleneck_is_known_of():
    with pytest.raises(UserError, match="a function has no bottleneck: name the torch module inside it by net"):
        boundary.WithBottleneck(still)
    with pytest.raises(UserError, match="a Linear has no bottleneck that is known here"):
        boundary.WithBottleneck(still, nn.Linear(2, 2))


def test_the_bottleneck_of_edm2_is_where_its_way_up_begins():
    from dmcmc_core.nets.edm2 import MagnitudePreservingNet

    net = MagnitudePreservingNet(8, 3, width=16, multipliers=(1, 2), blocks=1, attention=(4,), head=8).eval()
    network = boundary.WithBottleneck(net)
    x, sigma = torch.randn(2, 3, 8, 8), torch.ones(2)
    with torch.no_grad():
        nn.init.ones_(net.unet.out_gain)
        answer = network(x, sigma)
        assert network.seen.shape == (2, 32, 4, 4)
        assert torch.equal(network(x, sigma, bottleneck=network.seen), answer)
        assert not torch.equal(network(x, sigma, bottleneck=-network.seen), answer)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a pickle was run')",))


def test_a_pickle_is_never_run_and_the_way_to_convert_it_is_told(tmp_path):
    (tmp_path / "boundary.sav").write_bytes(pickle.dumps(Evil()))
    torch.save({"normal": MADE.normal}, tmp_path / "boundary.pt")
    for name in ("boundary.sav", "boundary.pt"):
        with pytest.raises(UserError, match="The normal of a pickled scikit-learn SVC is its coef_ over its length"):
            boundary.load(tmp_path / name)


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"intercept": math.nan, "accuracy": 1.0, "card": {}}, "is no boundary"),
        ({"intercept": 0.0, "accuracy": 7.0, "card": {}}, "is no boundary"),
        ({"intercept": 0.0, "accuracy": 1.0, "card": [1]}, "is no boundary"),
        ({"intercept": 0.0, "accuracy": 1.0}, "is no boundary"),
        (None, "is no boundary"),
    ],
)
def test_no_boundary_is_read_of(tmp_path, about, match):
    path = tmp_path / "a.safetensors"
    save_file({"normal": MADE.normal}, path, metadata={} if about is None else {"boundary": json.dumps(about)})
    with pytest.raises(UserError, match=match):
        boundary.load(path)
    save_file({"normal": 2 * MADE.normal}, path, metadata={"boundary": '{"intercept": 0, "accuracy": 1, "card": {}}'})
    with pytest.raises(UserError, match="must have length 1, not 2"):
        boundary.load(path)


def test_a_boundary_knows_its_time_its_level_and_its_network():
    made = boundary.fit(LATENTS, LABELS, card={"time": 500, "level": "z", "network": "0123"})
    made.check(time=500, level="z", network="0123")
    for card, match in (
        ({"time": 400}, "of another time, 500, not 400"),
        ({"level": "h"}, "of another level, 'z', not 'h'"),
        ({"network": "4567"}, "of another network, '0123', not '4567'"),
    ):
        with pytest.raises(UserError, match=match):
            made.check(**card)
    with pytest.raises(UserError, match=r"latents must have shape \(B, 2, 3\)"):
        made.distances(LATENTS.flatten(1))
    with pytest.raises(UserError, match="latents must be finite"):
        made.distances(LATENTS / 0)


def test_a_folder_of_no_name_is_not_the_current_one():
    from dmcmc_core.data import open_images

    with pytest.raises(UserError, match="unknown image set .no folder, .npz or .npy file either. ''"):
        open_images("")
