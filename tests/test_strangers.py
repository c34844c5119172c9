"""What a stranger with networks of their own met in an hour: each was silent, or a traceback."""

import argparse
import logging

import pytest
import torch

import dmcmc_core
from dmcmc_core import UserError
from dmcmc_core.denoiser import Adapter
from dmcmc_core.runs.make import run
from dmcmc_core.workbench import cli

SHAPE = (1, 4, 4)
KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0)


class Net(torch.nn.Module):
    """A denoiser with dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Dropout(0.5)

    def forward(self, x, sigma):
        return self.dropout(self.layer(x / (1 + sigma[:, None, None, None])))


def adapted(net):
    return Adapter(net, SHAPE)


def made(net, **how):
    return torch.as_tensor(dmcmc_core.sample(net, "euler", nfe=2, n=2, shape=SHAPE, **how))


class Ensemble:
    """An object of one's own that keeps its networks in a container."""

    def __init__(self, nets):
        self.nets = nets

    def __call__(self, x, sigma):
        nets = self.nets.values() if isinstance(self.nets, dict) else self.nets
        return sum(net(x, sigma) for net in nets) / len(nets)


def default(net):
    return lambda x, sigma, nets=((net,),): nets[0][0](x, sigma)


GLOBAL = []


def inner(net):
    """A function whose inner one alone names the network."""
    GLOBAL[:] = [net]

    def outer(x, sigma):
        return (lambda: GLOBAL[0](x, sigma))()

    return outer


WAYS = {
    "inner function": inner,
    "list": lambda net: Ensemble([net]),
    "tuple": lambda net: Ensemble((net,)),
    "dictionary": lambda net: Ensemble({"ema": net}),
    "default": default,
}


@pytest.mark.parametrize("way", WAYS)
def test_networks_in_a_container_are_switched_to_evaluation(way, caplog):
    net = Net()
    function = WAYS[way](net)
    with caplog.at_level(logging.WARNING):
        first = made(function)
    assert not net.training and "training mode" in caplog.text
    assert torch.equal(first, made(function))


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_makes_another_network(hook, tmp_path):
    run(adapted(Net().eval()), "euler", 2, 2, out=tmp_path / "run")
    net = Net().eval()
    change = (lambda module, given: (given[0] / 2,)) if "pre" in hook else (lambda module, given, answer: answer / 2)
    getattr(net.layer, hook)(change)
    with pytest.raises(UserError, match="holds another run"):
        run(adapted(net), "euler", 2, 4, out=tmp_path / "run")


class Training(Net):
    """A network whose weights someone changes meanwhile."""

    def forward(self, x, sigma):
        with torch.no_grad():
            self.layer.weight.mul_(1.01)
        return super().forward(x, sigma)


def test_weights_that_change_while_images_are_made_are_said(tmp_path):
    with pytest.raises(UserError, match="weights changed while it made images"):
        run(adapted(Training().eval()), "euler", 2, 2, out=tmp_path / "run")
    assert not list(tmp_path.glob("run/shard-*"))


class Embedded(Net):
    """A network of whole times, which it looks up."""

    def __init__(self, how):
        super().__init__()
        self.how, self.table = how, torch.nn.Embedding(100, 1)

    def forward(self, x, t):
        at = {
            "embedding": lambda: self.table(t)[:, 0],
            "index": lambda: KEPT[t],
            "one_hot": lambda: torch.nn.functional.one_hot(t, 100)[:, 0].to(x),
        }[self.how]()
        return self.layer(x) * at[:, None, None, None]


@pytest.mark.parametrize("how", ["embedding", "index", "one_hot"])
def test_a_network_of_whole_times_says_what_it_needs(how):
    net = Embedded(how).eval()
    with pytest.raises(UserError, match="give quantize=True"):
        dmcmc_core.sample(Adapter.from_ddpm(net, KEPT, shape=SHAPE), "ddim", nfe=2, n=2)
    whole = dmcmc_core.sample(Adapter.from_ddpm(net, KEPT, shape=SHAPE, quantize=True), "ddim", nfe=2, n=2)
    assert whole.shape == (2, *SHAPE)


def test_a_fault_of_the_network_itself_stays_its_own():
    def broken(x, t):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Adapter.from_ddpm(broken, KEPT, shape=SHAPE)(torch.zeros(1, *SHAPE), torch.tensor(1.0))


def test_a_network_in_another_format_has_a_name_and_one_without_numbers_is_refused(tmp_path):
    assert run(adapted(Net().eval().bfloat16()), "euler", 2, 2, out=tmp_path / "a")["complete"]
    with pytest.raises(UserError, match="device meta"):
        run(adapted(Net().eval().to("meta")), "euler", 2, 2, out=tmp_path / "b")


@pytest.mark.parametrize("below", ["", "/sub", "/sub/run"])
def test_a_file_is_no_folder_of_a_run(below, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file: name a folder"):
        run(adapted(Net().eval()), "euler", 2, 2, out=f"{tmp_path}/file{below}")


def test_no_argument_of_a_verb_is_called_unknown():
    for name in cli.VERBS:
        verb, parser = cli.load(name), argparse.ArgumentParser()
        verb.arguments(parser)
        known = {option for action in parser._actions for option in action.option_strings}
        assert not known & set(verb.elsewhere), name


def test_the_number_format_is_an_argument(tmp_path):
    words = "sample --model digits --sampler euler --nfe 2 --num 2 --dtype float32 --out".split()
    assert cli.main([*words, str(tmp_path / "run")]) == 0


def unet_and_pipeline():
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    return unet, diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())


def test_a_pipeline_in_memory_is_called_by_its_class_each_time():
    _, pipeline = unet_and_pipeline()
    assert dmcmc_core.sample(pipeline, "euler", nfe=2, n=1).recipe["model"] == "DDPMPipeline"


@pytest.mark.parametrize("how", [{}, {"shape": (1, 8, 8)}])
def test_a_unet_without_its_scheduler_is_no_denoiser(how):
    unet, _ = unet_and_pipeline()
    with pytest.raises(UserError, match="give its pipeline"):
        dmcmc_core.sample(unet, "euler", nfe=2, n=1, **how)
