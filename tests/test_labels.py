"""A class for every image of a run: the same in any division, saved beside the images, or refused with a sentence."""

import numpy as np
import pytest
import torch
from exact import classes, images_mixture

from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.guidance import Conditioned, of_images
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.make import run
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.tuning import slow_images
from dmcmc_core.streams import Streams
from dmcmc_core.workbench.cli import main

CHAINS = {"chains": 6, "n_skip": 2, "warmup_levels": 2, "warmup_steps": 2}
SAMPLERS = {"heun": {}, "euler_maruyama": {}, "dlg+heun": CHAINS, "gddim": {"sde": "VP"}}
RANDOM = [s for s in SAMPLERS if not s.startswith("dlg")]


def made(sampler, out, label, num=20, model=None, nfe=60, seed=3, **options):
    """Return the manifest, the images and the labels in the shards."""
    options["settings"] = SAMPLERS[sampler] | {"label": label} | options.pop("settings", {})
    manifest = run(model or classes(), sampler, nfe, num, seed, out, progress=False, **options)
    shards = [np.load(path) for path in sorted(out.glob("shard-*.npz"))]
    return manifest, load_images(out), np.concatenate([shard["labels"] for shard in shards])


def nearest(images):
    return torch.cdist(images.flatten(1), classes().net.means).argmin(1).tolist()


CASES = [(s, label) for s in SAMPLERS for label in ("random", "each", [2, 0, 2]) if s in RANDOM or label != "random"]


@pytest.mark.parametrize("guidance", [1, 2])
@pytest.mark.parametrize(("sampler", "label"), CASES)
def test_every_image_is_of_the_class_that_its_shard_tells(sampler, label, guidance, tmp_path):
    """The classes' means are five standard deviations apart and more."""
    manifest, images, labels = made(sampler, tmp_path / "a", label, settings={"guidance": guidance})
    assert nearest(images) == labels.tolist() and len(set(labels)) == (2 if label == [2, 0, 2] else 3)
    assert manifest["plan"]["held_to"]["label"] == label == manifest["asked"]["settings"]["label"]
    if label != "random":
        turn = [0, 1, 2] if label == "each" else label
        assert labels.tolist() == [turn[i % 3] for i in range(20)]


@pytest.mark.parametrize(
    ("sampler", "label"), [("euler_maruyama", "random"), ("dlg+heun", [2, 0, 1]), ("gddim", "random")]
)
def test_classes_and_images_are_the_same_in_any_division(sampler, label, tmp_path):
    """In shards, in shares, with more images added later, and beside a run of the same one class."""
    _, whole, labels = made(sampler, tmp_path / "a", label)
    made(sampler, tmp_path / "b", label, 12, shard=6)
    _, images, again = made(sampler, tmp_path / "b", label, shard=6) if sampler != "dlg+heun" else (0, whole, labels)
    assert torch.equal(images, whole) and (again == labels).all()
    for i in (1, 0):
        manifest, images, again = made_or_none(sampler, tmp_path / "c", label, i)
    assert manifest["complete"] and torch.equal(images, whole) and (again == labels).all()
    if sampler != "dlg+heun":
        for one in range(3):
            settings = SAMPLERS[sampler] | {"label": one}
            run(classes(), sampler, 60, 20, 3, tmp_path / str(one), settings, progress=False)
            of_one = load_images(tmp_path / str(one))
            assert torch.equal(whole[labels == one], of_one[labels == one])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shards_tell_one_class_as_they_tell_many(sampler, tmp_path):
    _, images, labels = made(sampler, tmp_path / "a", 1)
    assert nearest(images) == labels.tolist() == [1] * 20 and labels.dtype == np.int64
    run(images_mixture(), sampler, 60, 8, 3, tmp_path / "b", SAMPLERS[sampler], progress=False)
    assert "labels" not in np.load(tmp_path / "b" / "shard-00000000.npz")


def made_or_none(sampler, out, label, i):
    settings = SAMPLERS[sampler] | {"label": label}
    manifest = run(classes(), sampler, 60, 20, 3, out, settings, progress=False, shard=6, share=(i, 2))
    return made(sampler, out, label, shard=6) if manifest["complete"] else (manifest, None, None)


def test_random_classes_are_uniform_and_of_the_seed():
    draws = [of_images(Conditioned(classes(), "random"), Streams(s, "image", range(3000))).labels for s in (0, 1)]
    for labels in draws:
        assert (torch.bincount(labels, minlength=3) - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5
    assert not torch.equal(*draws)
    some = of_images(Conditioned(classes(), "random"), Streams(0, "chain", [7, 2999, 0])).labels
    assert torch.equal(some, draws[0][[7, 2999, 0]])


def test_chains_are_calibrated_counted_and_integrated_in_their_classes(tmp_path):
    """Windows that are integrated together have more rows than chains; all that is evaluated is in the count."""
    settings = {"chains": 3, "posterior": "residual"}
    manifest, images, labels = made("dlg+heun", tmp_path / "a", "each", settings=settings)
    assert nearest(images) == labels.tolist() == [i % 3 for i in range(20)]
    the = plan(classes(), "dlg+heun", 60, 20, SAMPLERS["dlg+heun"] | settings | {"label": "each"})
    assert manifest["rows"]["chains"] + manifest["rows"]["warmup"] == round(20 * the.chain_cost(20))


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        ("heun", {"label": [0, 3]}, "label must be a whole number from 0 to 2, not 3"),
        ("heun", {"label": [0, True]}, "label must be a whole number from 0 to 2, not True"),
        ("heun", {"label": []}, r"a list of such numbers, random or each, not \[\]"),
        ("heun", {"label": "rondom"}, "label must be .* random or each, not 'rondom'"),
        ("heun", {"label": {"a": 1}}, "label must be a whole number from 0 to 2"),
        ("rk45", {"label": "each"}, "rk45 takes images in steps of their own, and so of one class"),
        ("dlg+heun", {"label": "random"}, "a chain keeps its class, and few chains would draw few"),
        ("dlg+heun", {"label": "each", "chains": 8}, "must be a multiple of the 3 of label, such as 9, not 8"),
    ],
)
def test_classes_that_images_cannot_have_leave_no_folder(sampler, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(classes(), sampler, 60, 20, 0, tmp_path / "a", SAMPLERS.get(sampler, {}) | settings, progress=False)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="this model has no classes: leave label out"):
        plan(images_mixture(), "heun", 12, 8, {"label": settings["label"]})


def test_rows_without_their_classes_are_refused():
    model, x = Conditioned(classes(), "each"), torch.zeros(4, 1, 2, 2)
    with pytest.raises(UserError, match="every row needs a class of its own: .* has told 0, not 4"):
        model(x, torch.tensor(1.0))
    with pytest.raises(UserError, match="has told 3, not 4"):
        of_images(model, Streams(0, "image", range(3)))(x, torch.tensor(1.0))
    plain = Conditioned(classes(), 1)
    assert of_images(plain, Streams(0, "image", range(3))) is plain
    prints = {fingerprint(Conditioned(classes(), label)) for label in (0, [0, 1], "each", "random")}
    assert len(prints) == 4


def test_slow_images_of_a_search_have_the_classes_too():
    images, _ = slow_images(Conditioned(classes(), "each"), 9)
    assert nearest(images) == [0, 1, 2] * 3


@pytest.mark.parametrize("label", ["random", "[0,1,2]", "each"])
def test_the_command_line_takes_classes_of_images(label, tmp_path, monkeypatch):
    monkeypatch.setattr("dmcmc_core.checkpoints.load", lambda name, device: classes())
    asked = [
        "sample",
        "--model",
        "any",
        "--sampler",
        "euler",
        "--nfe",
        "2",
        "--num",
        "12",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main([*asked, "--set", f"label={label}"]) == 0
    assert np.load(tmp_path / "a" / "shard-00000000.npz")["labels"].shape == (12,)
