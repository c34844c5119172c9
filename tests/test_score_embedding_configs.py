"""The configurations of exp/score_embedding: each makes its run, and the published ones have the published numbers."""

import json
import re
from pathlib import Path

import pytest
import torch

from dmcmc_core.data import PICTURES
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.score_embedding.ddpm import alpha_bars, linear_betas
from dmcmc_core.training import pictures, read_config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "exp" / "score_embedding"
PARITY = ROOT.parent / "shared" / "parity"
METHOD = ("cifar1", "celeb1", "cifar3_unconditional", "cifar3_conditional", "inet3_conditional", "celeb3_unconditional")
BASELINES = ("cifar1_ddpm", "cifar1_ddim", "celeb1_ddpm", "celeb1_ddim", "cifar3_ddpm", "cifar3_ddim", "inet3_ddpm")
STAND_INS = [f"{name}{kind}" for name in ("picture16", "picture32", "pictures16") for kind in ("", "-ddpm", "-ddim")]
SETS = {"cifar": "cifar10-dog", "celeb": "celeba-raw", "imagenet": "imagenet-raw"}


def config(name: str):
    """The config of a file, as the command in its first line reads it."""
    path = FOLDER / f"{name}.yaml"
    kind, named = re.search(r"train (\w+) --config (\S+)", path.read_text().splitlines()[0]).groups()
    assert named == f"exp/score_embedding/{name}.yaml"
    found = read_config(kind, path)
    assert found.name == name and found.pictures in PICTURES and found.seed == 0
    assert kind == (re.split("[-_]", name)[1] if re.search("dd[pi]m$", name) else "embedded")
    return found


def parameters(found, waves: str) -> int:
    with torch.device("meta"):
        images = torch.empty(found.images, 3, found.size, found.size)
        net = ScaledUNet("ddpm", {}, pictures.arguments(found, images, waves=waves), centre=True)
    return sum(p.numel() for p in net.parameters())


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*METHOD, *BASELINES, *STAND_INS}


@pytest.mark.parametrize("name", METHOD)
def test_the_method_is_trained_as_published(name):
    """One step is one picture of an epoch; networks have the published sizes."""
    found = config(name)
    epochs = {"cifar10-dog": 300, "celeba-raw": 750, "imagenet-raw": 750}[found.pictures]
    assert found.steps == epochs * found.images and found.images == int(re.search(r"[13]", name)[0])
    assert found.mode == "as_published" and found.released and not found.matched_start
    assert found.ema == found.warmup == found.profile_steps == 0
    waves = "constant" if found.time_embedding == "linear" else "positional"
    assert parameters(found, waves) == (35_218_947 if found.pictures == "cifar10-dog" else 32_120_963)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_trained_as_published(name):
    found = config(name)
    assert (found.batch, found.times, found.ema) == (20, 1000, 0.9999)
    assert found.start == ("conditional" if found.images == 3 else "unconditional")
    assert found.weight == 0.3 or found.images == 1
    assert parameters(found, "positional") == 35_218_947


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("cifar1_ddpm", 4e-5),
        ("cifar1_ddim", 0.017),
        ("celeb1_ddpm", 0.35),
        ("celeb1_ddim", 0.017),
        ("cifar3_ddpm", 0.105),
        ("cifar3_ddim", 0.47),
        ("inet3_ddpm", 0.017),
    ],
)
def test_betas_leave_as_much_of_the_picture_as_published(name, share):
    found = config(name)
    left = alpha_bars(linear_betas(found.beta_min, found.beta_max, found.times))[-1].item()
    assert left == pytest.approx(share, rel=0.05)


def published() -> dict[str, dict]:
    if not PARITY.is_dir():
        return {}
    known = json.loads((PARITY / "score_embedding_baseline_configs.json").read_text())
    for name in ("cifar1", "celeb1"):
        known[name] = json.loads((PARITY / f"score_embedding_net_{name}.shapes.json").read_text())["config"]
    return known


@pytest.mark.parametrize(("name", "theirs"), published().items())
def test_numbers_are_those_of_the_published_files(name, theirs):
    found, data, training, diffusion = config(name), *(theirs[k] for k in ("data_loader", "training", "diffusion"))
    assert (found.pictures, found.images, found.size) == (
        SETS[data["dataset"]], data["num_images"], data["image_size"],
    )  # fmt: skip
    if found.pictures == "cifar10-dog":  # the others are a fixed choice
        assert found.picture_seed == data["seed"]
    assert found.batch == data["batch_size"] and found.lr == float(training["lr"])
    assert found.clip == float(training["grad_clip"]) and found.profile_every == theirs["misc"]["profile_freq"]
    assert found.steps == training["epochs"] * (found.images if "sigma" in diffusion else 1)
    if "sigma" in diffusion:
        numbers = ("sigma", "dh", "num_timesteps", "solve_tolerance")
        assert [found.sigma, found.dh, found.times, found.tol] == [float(diffusion[key]) for key in numbers]
        assert (found.time_embedding, found.multiplier) == (
            theirs["model"]["embedding_method"], training["timestep_multiplier"],
        )  # fmt: skip
        assert found.start == theirs["sample"]["type"]
    else:
        assert [found.beta_min, found.beta_max, found.times] == list(diffusion.values())
        assert (found.warmup, found.ema) == (training["warmup"], training["ema"])
        assert found.weight == theirs.get("sample", {}).get("conditional_weight", 0.3)


def test_the_single_raw_picture_is_the_published_one():
    """The last but two of six."""
    assert [config(name).picture_seed for name in ("celeb1", "celeb1_ddpm", "celeb1_ddim")] == [3] * 3
    assert {config(name).picture_seed for name in ("celeb3_unconditional", "inet3_conditional", "inet3_ddpm")} == {0}


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_differ_from_their_baselines_in_the_method_alone(name):
    found, own = config(name), config(name.partition("-")[0])
    same = ("pictures", "images", "size", "picture_seed", "net", "batch")
    assert all(getattr(found, key) == getattr(own, key) for key in same)
    assert found.profile_steps and found.pictures == "skimage"
    assert parameters(found, "positional") < 2.5e6, "minutes on two cores"
    if found is not own and "-" in name:
        assert found.lr / own.lr == pytest.approx(2e-4 / 8e-5), "rates are to each other as published"
        left = alpha_bars(linear_betas(found.beta_min, found.beta_max, found.times))[-1]
        published = alpha_bars(linear_betas(1e-4, found.beta_max / 10, 1000))[-1]
        assert 0.3 < left / published < 3, "as much of the picture is left at the end as published"
