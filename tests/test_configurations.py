"""Configurations of every kind, read by one reader: numbers, switches, keys given twice, what a file contradicts."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dmcmc_core import errors
from dmcmc_core.checkpoints import load_model, published, score_sde
from dmcmc_core.checkpoints.configurations import read_mapping, read_yaml
from dmcmc_core.checkpoints.weights import without_prefix
from dmcmc_core.errors import UserError
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.nets.unet import DenoisingUNet
from dmcmc_core.training import read_config
from dmcmc_core.workbench.cli import sample


def config(sde="vesde", **model):
    """The configuration of a tiny network of score_sde."""
    made = copy.deepcopy(published.CONFIGS["ve_cifar10_ncsnpp_continuous"])
    made["model"] |= {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]} | model
    made["model"]["scale_by_sigma"] = sde == "vesde"
    made["data"]["image_size"], made["training"]["sde"] = 8, sde
    return made


def write(path, made, prefix="module.", sigmas=None):
    """A file of score_sde with random weights for a configuration, and the noise levels that it holds."""
    torch.manual_seed(0)
    net, model = score_sde.build(made)[0].net, made["model"]
    own = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    state = {}
    for e in score_sde.entries(net):
        tensor = own[e.own] if e.part is None else own[e.own].chunk(3)[e.part]
        state[prefix + e.name] = (tensor[:, :, 0, 0].T if e.matrix else tensor).clone()
    averaged = [state[prefix + e.name] for e in score_sde.entries(net) if e.trained]
    ends = math.log(model["sigma_max"]), math.log(model["sigma_min"])
    state[f"{prefix}sigmas"] = torch.linspace(*ends, model["num_scales"]).exp() if sigmas is None else sigmas
    torch.save({"model": state, "ema": {"decay": 0.9, "num_updates": 1, "shadow_params": averaged}, "step": 1}, path)
    return path


# ---- numbers, keys, damage


def every_reader(folder):
    """What reads a configuration by name: one in which a number is 0.125, and (file) -> that number as it is read."""
    made = config(sigma_min=0.125)
    weights = write(folder / "checkpoint.pth", made, sigmas=torch.ones(7))
    net = DenoisingUNet((1, 8, 8), 0.5, channels=[8], blocks=[1], attention=[False])
    save_file(net.state_dict(), folder / "bare.safetensors")
    card = {"architecture": "unet", "config": net.config, "sigma_min": 0.125, "sigma_max": 2, "data_range": [0, 1]}
    run = {"name": "mine", "steps": 2, "lr": 0.125}
    return {
        "score_sde": (made, lambda file: load_model(weights, config=file).sigma_min),
        "card": (card, lambda file: load_model(folder / "bare.safetensors", config=file).sigma_min),
        "training": (run, lambda file: read_config("score", file).lr),
    }


READERS = ("score_sde", "card", "training")


@pytest.mark.parametrize("reader", READERS)
def test_numbers_as_json_writes_them_and_keys_given_twice(tmp_path, reader):
    made, read = every_reader(tmp_path)[reader]
    file = tmp_path / "c.yaml"
    text = json.dumps(made, indent="\t")  # tabs, which YAML refuses
    for number, value in (("1e-05", 1e-5), ("2e-3", 2e-3), ("3E-2", 3e-2), ("0.5", 0.5)):
        file.write_text(text.replace("0.125", number))
        assert read(file) == value
    for twice in ('{"name": "a", "name": "b"}', "name: a\nname: b\n", '{name: a, "name": b}'):
        file.write_text(twice)
        with pytest.raises(UserError, match=r"c.yaml cannot be read: key 'name' is given twice"):
            read(file)


@pytest.mark.parametrize("reader", READERS)
def test_damage_is_one_sentence(tmp_path, reader):
    _, read = every_reader(tmp_path)[reader]
    file = tmp_path / "c.yaml"
    for content, match in (
        (b"{", "cannot be read"),
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: \x00", "cannot be read"),
        (b"[1]", "must hold a mapping of names to values"),
        (b"", "must hold a mapping of names to values"),
        (b"[" * 10**5, "cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"a: !!python/object/apply:os.system [true]", "cannot be read: could not determine a constructor"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=match) as caught:
            read(file)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(UserError):
        read(tmp_path / "absent.yaml")


def test_there_is_one_reader():
    """PyYAML's own loader takes 1e-05 for text and the last of two keys."""
    package = Path(errors.__file__).parent
    loading = {path.name for path in package.rglob("*.py") if re.search(r"yaml\.(safe_)?load", path.read_text())}
    assert loading == {"configurations.py"}


def test_values_are_the_same_in_json_and_yaml():
    assert read_yaml('{"a": 1e-05, "b": [Infinity, -Infinity], "c": "1e-05"}') == {
        "a": 1e-5,
        "b": [math.inf, -math.inf],
        "c": "1e-05",
    }
    assert read_yaml("a: 1e-05\nb: [Infinity, -Infinity]\nc: '1e-05'") == {
        "a": 1e-5,
        "b": [math.inf, -math.inf],
        "c": "1e-05",
    }
    assert math.isnan(read_yaml("NaN")) and math.isnan(read_yaml("[.nan]")[0])
    assert read_yaml("base: &b {x: 1}\nmore: {<<: *b, y: 2}") == {"base": {"x": 1}, "more": {"x": 1, "y": 2}}
    assert read_yaml('"\\ud83d\\ude00"') == "\U0001f600"  # as json.dump writes it
    assert sample.settings(["tol=1e-05", "label=random", "last=null", "step=true"]) == {
        "tol": 1e-5,
        "label": "random",
        "last": None,
        "step": True,
    }


def test_python_is_never_executed_and_the_sentence_tells_how_to_make_json(tmp_path, monkeypatch):
    made = config()
    weights = write(tmp_path / "checkpoint.pth", made)
    script = tmp_path / "ve" / "cifar10_ncsnpp_continuous.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    dump = r"is Python, which is never executed: make JSON of it in its own project: python -c .* > NAME.json"
    monkeypatch.chdir(tmp_path)
    for given in (script, "ve/cifar10_ncsnpp_continuous.py"):  # also where a published one has that name
        with pytest.raises(UserError, match=dump):
            load_model(weights, config=given)
    with pytest.raises(UserError, match=dump):
        read_config("score", script)
    assert not (tmp_path / "ran").exists()
    name = "vp/cifar10_ddpmpp_continuous.py"  # that is not here is the published one
    assert published.config_of(weights, name) == published.CONFIGS["vp_cifar10_ddpmpp_continuous"]
    with pytest.raises(UserError, match="cannot be read"):
        read_mapping(tmp_path, "config")


# ---- switches


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("data", "centered"),
        ("model", "fir"),
        ("model", "skip_rescale"),
        ("model", "scale_by_sigma"),
        ("training", "continuous"),
    ],
)
@pytest.mark.parametrize("value", ["False", "true", 0, None])
def test_switches_of_score_sde_are_true_or_false(section, name, value):
    made = config()
    made[section][name] = value
    with pytest.raises(UserError, match=f"config: {name} in {section} must be true or false, not {value!r}"):
        score_sde.build(made)


@pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "fourier_scale"])
def test_numbers_of_score_sde_are_no_text(name):
    with pytest.raises(UserError, match=f"config: {name} in model must be a number, not '1e-05'"):
        score_sde.build(config() | {"model": config()["model"] | {name: "1e-05"}})
    with pytest.raises(UserError, match="config: beta_min in model must be a number, not '0.1'"):
        score_sde.build(config("vpsde", beta_min="0.1"))


@pytest.mark.parametrize(
    "change",
    [{"centre": "False"}, {"about_mean": "no"}, {"net": {"rescale": "False"}}, {"options": {"by_sigma": "False"}}],
)
def test_switches_of_a_card_are_true_or_false(change):
    net = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 8, "multipliers": [1], "blocks": 1, "attention": []}
    given = {"kind": "ve", "options": {}, "net": net}
    ScaledUNet(**given)
    name, value = next(iter(change.items()))
    change = {name: given[name] | value} if isinstance(value, dict) else change
    with pytest.raises(UserError, match="must be true or false, not '"):
        ScaledUNet(**given | change)
    with pytest.raises(UserError, match="attention must be true or false, not 'False'"):
        DenoisingUNet((1, 8, 8), 0.5, channels=[8], blocks=[1], attention=["False"])


# ---- the levels that a file holds


@pytest.mark.parametrize("kind", ["fourier", "positional"])
def test_a_configuration_whose_levels_contradict_the_file_is_refused(tmp_path, kind):
    """Both are named. The number of levels counts for networks that take an index, the ends for all."""
    own = config(embedding_type=kind, sigma_max=90.0, num_scales=200)
    path = write(tmp_path / "checkpoint.pth", own)
    assert load_model(path, config=own).sigma_max == 90.0
    with pytest.raises(
        UserError,
        match=r"its tensor 'sigmas' is 200 levels from 90 to 0.01, the configuration has 1000 from 50 to 0.01",
    ):
        load_model(path, config=config(embedding_type=kind))
    with pytest.raises(UserError, match="from 90 to 0.01, the configuration has 200 from 90 to 0.02"):
        load_model(path, config=config(embedding_type=kind, sigma_max=90.0, num_scales=200, sigma_min=0.02))
    more = config(embedding_type=kind, sigma_max=90.0, num_scales=1000)
    if kind == "fourier":  # published files disagree about a number that nothing needs
        assert load_model(path, config=more).sigma_max == 90.0
    else:
        with pytest.raises(UserError, match="200 levels from 90 to 0.01, the configuration has 1000 from 90 to 0.01"):
            load_model(path, config=more)


def test_levels_of_nothing_contradict_nothing(tmp_path):
    """A network that preserves variance carries the buffer of its class, and other buffers are no levels."""
    made = config("vpsde", sigma_max=7.0)
    made["data"]["centered"] = True
    load_model(write(tmp_path / "checkpoint.pth", made, sigmas=torch.tensor([90.0, 1.0])), config=made)
    made = config()
    load_model(write(tmp_path / "checkpoint.pth", made, sigmas=torch.ones(7)), config=made)
    load_model(write(tmp_path / "checkpoint.pth", made, sigmas=torch.tensor([0.01, 1.0, 50.0])), config=made)


# ---- names of tensors


@pytest.mark.parametrize(
    "prefix", ["", "module.", "module.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrapped_networks_are_taken_off(tmp_path, prefix):
    made = config()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(2.0)
    wanted = load_model(write(tmp_path / "a.pth", made, ""), config=made)(x, sigma)
    assert torch.equal(load_model(write(tmp_path / "b.pth", made, prefix), config=made)(x, sigma), wanted)


def test_a_tensor_that_is_there_under_two_names_is_refused():
    assert without_prefix({"module.a.module.b": 1, "c._orig_mod.d": 2, "module": 3}) == {
        "a.module.b": 1,
        "c.d": 2,
        "module": 3,
    }
    with pytest.raises(UserError, match="the file holds tensor 'a' twice, once as 'module.a'"):
        without_prefix({"a": 1, "module.a": 2})


# ---- suggestions


@pytest.mark.parametrize(
    ("name", "choices", "wanted"),
    [
        ("flow_prediction", ["epsilon", "v_prediction", "sample"], None),
        ("EDMEulerScheduler", ["PNDMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"], None),
        ("SomeScheduler", ["SASolverScheduler", "DDPMScheduler"], None),
        ("VE", ["VP", "CLD"], None),
        ("guidence", ["guidance", "label"], "guidance"),
        ("Heun", ["heun", "euler"], "heun"),
        ("DDPScheduler", ["DDPMScheduler", "PNDMScheduler"], "DDPMScheduler"),
        ("rotation", ["rotate", "scale"], "rotate"),
    ],
)
def test_a_suggestion_is_near_or_absent(name, choices, wanted):
    said = str(errors.unknown("thing", name, choices))
    assert f"did you mean {wanted!r}? " in said if wanted else "did you mean" not in said
    assert "did you mean" not in str(errors.unknown("thing", name, choices, guess=False))
