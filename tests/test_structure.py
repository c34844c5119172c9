"""A network of one's own is known by its weights and by what is made of them: no other's images are taken for its."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dmcmc_core import load_model
from dmcmc_core.checkpoints import load_epsilon
from dmcmc_core.denoiser import Adapter
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.sampling_run import run
from dmcmc_core.structure import structure

SHAPE = (1, 4, 4)
NETS = Path(__file__).parents[1] / "exp" / "nets"


class Own(nn.Module):
    """A network whose settings are no weights."""

    def __init__(self, activation=torch.tanh, gain=1.0, layer=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer = nn.Conv2d(1, 1, 3, padding=1), layer()
        self.activation, self.gain, self._calls, self.seen = activation, gain, 0, []

    def forward(self, x, sigma):
        """Return an answer, and count itself."""
        self._calls += 1
        self.seen.append(sigma)
        return self.gain * self.activation(self.layer(self.conv(x)))


class Other(Own):
    """The same weights, other code."""

    def forward(self, x, sigma):
        """Return the answer of the other sign."""
        return -super().forward(x, sigma)


def name(net, **facts):
    """Return the name of a network's model."""
    return fingerprint(Adapter(net, SHAPE, **facts))


def around(net, function):
    """Return the model of a function around a network."""
    model = Adapter(function, SHAPE)
    model.net = net
    return model


def test_networks_of_the_same_weights_are_told_apart():
    nets = Own(), Own(torch.sin), Own(gain=0.5), Own(layer=nn.GELU), Other(), nn.Sequential(Own()), Own(lambda x: x)
    assert len({name(net) for net in nets}) == len(nets)
    assert name(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())) != name(nn.Sequential(nn.Conv2d(1, 1, 1), nn.SiLU()))


def test_functions_around_a_network_are_told_apart():
    net, two = Own(), 2.0
    functions = [lambda x, s: net(x, s), lambda x, s: net(2 * x, s), lambda x, s: net(two * x, s), net.forward]
    names = [fingerprint(around(net, f)) for f in functions]
    two = 3.0
    names.append(fingerprint(around(net, functions[2])))
    assert len(set(names)) == len(names)
    alphas = torch.linspace(0.99, 0.01, 9)
    made = [Adapter.from_ddpm(net, alphas, predicts=predicts, shape=SHAPE) for predicts in ("epsilon", "v")]
    assert len({fingerprint(around(net, model.function)) for model in made}) == 2


def test_the_name_is_that_of_the_network_not_of_the_day():
    net = Own()
    before = name(net)
    net(torch.zeros(2, *SHAPE), torch.ones(2))
    net.train()
    assert name(net) == before == name(Own())


def test_another_process_has_the_same_name():
    """Sets of words are ordered anew in each process; bytecode is not."""
    code = (
        "import torch\nfrom torch import nn\nfrom dmcmc_core.structure import structure\n"
        "def act(x):\n    return x if str(x) in {'a', 'b', 'c', 'd'} else -x\n"
        "net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.SiLU())\nprint(structure(net, act))"
    )
    asked = {"stdout": subprocess.PIPE, "cwd": NETS.parents[1]}
    both = [subprocess.Popen([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, **asked) for seed in "12"]
    first, second = (process.communicate()[0].strip() for process in both)
    assert first == second and len(first) == 64


SHIPPED = ["digits", "glyphs32", "digits-ddpm", "digits-mixture", NETS / "digits-cld.safetensors"]


@pytest.mark.parametrize("shipped", SHIPPED)
def test_networks_that_ship_keep_the_names_that_were_published(shipped):
    model = load_model(shipped) if isinstance(shipped, str) else load_epsilon(shipped)
    assert structure(getattr(model, "net", None), getattr(model, "function", None), model) == ""


def test_a_folder_of_one_network_is_not_taken_for_another(tmp_path):
    run(Adapter(Own(), SHAPE), "euler", 2, 1, out=tmp_path, settings={"block": 1})
    with pytest.raises(UserError, match="model"):
        run(Adapter(Own(layer=nn.GELU), SHAPE), "euler", 2, 1, out=tmp_path, settings={"block": 1})
