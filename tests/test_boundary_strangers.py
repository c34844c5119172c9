"""The verb ``boundary`` in the hands of someone who has read one page: every fault is told early, in one sentence."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dmcmc_core import boundary, load_model
from dmcmc_core.checkpoints import NETS, save
from dmcmc_core.denoiser import Adapter, InBlocks
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.nets.scalings import ScaledUNet
from dmcmc_core.workbench import cli
from dmcmc_core.workbench.studies import boundary as study

KINDS = "--positive digits-train:3 --negative digits-train:7".split()
FIT = ["boundary", "fit", "--model", "digits", *KINDS, "--num", "6", "--steps", "4", "--time", "300"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    for level in ("z", "h"):
        assert cli.main([*FIT, "--level", level, "--out", str(folder / f"{level}.safetensors")]) == 0
    return folder


def refused(words, match, capsys):
    """Tell whether a command ends with status 2 and one sentence, and nothing else is said."""
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return status == 2 and said.err.count("\n") == 1 and match in said.err and said.out == ""


def pictures(folder, count=3, size=(8, 8), mode="L"):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new(mode, size, i).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--time", "0"], "--time must be a whole number, at least 1 and below 1000, not 0"),
        (["--time", "1000"], "--time must be a whole number, at least 1 and below 1000, not 1000"),
        (["--time", "999"], "the noise of time 999 is beyond the model's sigma_max: its last time is 768"),
        (["--time", "2"], "--steps must be a whole number, at least 2 and at most 3, not 4"),
        (["--steps", "1"], "--steps must be a whole number, at least 2 and at most 301, not 1"),
        (["--level", "x"], "--level must be one of 'z', 'h', not 'x'"),
        (["--num", "0"], "--num must be at least 1, not 0"),
        (["--num", "1"], "each kind needs 2 latents, of digits-train:7 there is 1"),
        (["--negative", "digits-train:3"], "--positive and --negative are both digits-train:3"),
        (["--negative", "glyphs32:weight=700"], "those of glyphs32:weight=700 are (3, 32, 32)"),
        (["--negative", ""], "unknown image set"),
        (["--negative", "digits-train:"], "no image of digits-train is of the kind ''"),
        (["--negative", "digits-train:weight=3"], "digits-train has no attributes, only classes: not 'weight'"),
        (["--negative", "glyphs32:foreground=1"], "unknown attribute of glyphs32 'foreground'"),
        (["--label", "3"], "this model has no classes"),
        (["--model", "digits-vp"], "is no score network"),
        (["--model", "digits-vp.safetensors"], "no such file"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_no_boundary_is_fitted(more, match, tmp_path, capsys):
    assert refused([*FIT, "--out", tmp_path / "a" / "b.safetensors", *more], match, capsys)
    assert not list(tmp_path.iterdir())


def test_folders_that_do_not_fit_are_told_by_name(tmp_path, capsys):
    good = pictures(tmp_path / "good folder ü")
    out = ["--out", tmp_path / "out" / "b.safetensors"]
    for name, how, match in (
        ("colour", {"mode": "RGB"}, "are (3, 8, 8)"),
        ("large", {"size": (16, 8)}, "are (1, 8, 16)"),
        ("one", {"count": 1}, "each kind needs 2 latents, of"),
        ("none", {"count": 0}, "no PNG or JPEG images"),
    ):
        other = pictures(tmp_path / name, **how)
        for sides in (("--positive", good, "--negative", other), ("--positive", other, "--negative", good)):
            assert refused([*FIT, *sides, *out], match, capsys)
    mixed = pictures(tmp_path / "mixed")
    Image.new("L", (9, 9)).save(tmp_path / "mixed" / "other.png")
    assert refused([*FIT, "--positive", mixed, *out], "different sizes", capsys)
    assert not (tmp_path / "out").exists()
    assert cli.main([*FIT, "--positive", good, "--out", str(tmp_path / "a b ü.safetensors")]) == 0


def test_what_lies_where_a_result_should_go_stays(files, tmp_path, capsys):
    net = tmp_path / "net.safetensors"
    shutil.copy(NETS / "digits.safetensors", net)
    (tmp_path / "folder.safetensors").mkdir()
    for out, match in (
        (net, "is there and is no boundary: choose another name"),
        (tmp_path / "folder.safetensors", "is there and is no boundary"),
        (net / "b.safetensors", "is no folder: choose another --out"),
    ):
        assert refused([*FIT, "--model", net, "--out", out], match, capsys)
    assert net.read_bytes() == (NETS / "digits.safetensors").read_bytes()
    edit = ["boundary", "edit", "--model", "digits", "--boundary", files / "z.safetensors", "--num", "2"]
    search = ["boundary", "search", "--model", "digits", "--images", "digits-train", "--num", "2"]
    for words in (edit, search):
        assert refused([*words, "--out", net], "is no folder: choose another --out", capsys)
    again = tmp_path / "again.safetensors"
    for _ in range(2):
        assert cli.main([*FIT, "--out", str(again)]) == 0
    assert boundary.load(again).card["time"] == 300


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--strength", "nan"], "--strength must be a finite number, not nan"),
        (["--strength", "1", "1.00000001"], "every --strength must be another one"),
        (["--eta", "-1"], "--eta must be"),
        (["--eta", "nan"], "--eta must be"),
        (["--how", "push"], "--how must be one of 'set', 'add'"),
        (["--injection", "late"], "--injection must be one of 'lagged', 'first'"),
        (["--image", "digits-heldout", "--steps", "9"], "the way of --image is that of the boundary"),
        (["--image", "digits-heldout", "--num", "0"], "--num must be at least 1"),
        (["--image", ""], "unknown image set"),
        (["--image", "glyphs32"], "those of glyphs32 are (3, 32, 32)"),
        (["--model", "glyphs32"], "this boundary is of another network"),
        (["--model", "glyphs32-exact"], "this boundary is of another network"),
        (["--label", "1"], "this model has no classes"),
    ],
)
def test_no_image_is_edited(files, more, match, tmp_path, capsys):
    words = ["boundary", "edit", "--model", "digits", "--boundary", files / "z.safetensors", "--num", "2"]
    assert refused([*words, "--out", tmp_path / "out", *more], match, capsys)
    assert not (tmp_path / "out").exists()


def changed(path, made, **card):
    boundary.Boundary(made.normal, made.intercept, made.accuracy, made.card | card).save(path)
    return path


def test_boundaries_that_do_not_go_together_are_refused(files, tmp_path, capsys):
    z = boundary.load(files / "z.safetensors")
    save_file({"weights": torch.ones(3)}, tmp_path / "other.safetensors")
    for paths, match in (
        ([files / "z.safetensors"] * 2, "normal 1 lies in the span"),
        ([files / "z.safetensors", changed(tmp_path / "t.safetensors", z, time=200)], "of another time, 200, not 300"),
        ([files / "z.safetensors", changed(tmp_path / "c.safetensors", z, count=9)], "of another count, 9, not 4"),
        (
            [changed(tmp_path / "l.safetensors", z, level="y")],
            "level of a boundary must be one of 'z', 'h', not 'y'",
        ),
        ([changed(tmp_path / "s.safetensors", z, time="soon")], "must be a whole number"),
        ([changed(tmp_path / "f.safetensors", z, time=999)], "the noise of time 999 is beyond"),
        ([tmp_path / "other.safetensors"], "is no boundary"),
        ([NETS / "digits.safetensors"], "is no boundary"),
        ([tmp_path], "no such file"),
        ([""], "no such file"),
    ):
        words = ["boundary", "edit", "--model", "digits", "--num", "2", "--out", tmp_path / "out", "--boundary", *paths]
        assert refused(words, match, capsys), match
    bare = boundary.fit(torch.randn(6, 1, 8, 8), [0, 1] * 3)
    bare.save(tmp_path / "bare.safetensors")
    words = ["boundary", "edit", "--model", "digits", "--out", tmp_path / "out", "--boundary"]
    assert refused([*words, tmp_path / "bare.safetensors"], "a boundary does not tell its time", capsys)
    changed(tmp_path / "shape.safetensors", bare, **z.card)
    assert not (tmp_path / "out").exists()


def test_few_images_are_not_held_out_and_said_to_be(files, tmp_path, capsys):
    out = str(tmp_path / "a.safetensors")
    assert cli.main([*FIT, "--num", "3", "--out", out]) == 0
    assert "of the 6 images it was fitted to are on their side" in capsys.readouterr().out
    assert cli.main([*FIT, "--num", "10", "--out", out]) == 0
    assert "of 6 images held out are on their side" in capsys.readouterr().out


def test_one_image_and_every_time_of_the_model_are_enough(files, tmp_path):
    last = study.last_time(load_model("digits"))
    for time in (1, last):
        one, out = str(tmp_path / f"{time}.safetensors"), tmp_path / str(time)
        assert cli.main([*FIT, "--time", str(time), "--steps", "2", "--out", one]) == 0
        words = ["boundary", "edit", "--model", "digits", "--boundary", one, "--num", "1", "--strength", "-10", "2"]
        assert cli.main([*words, "--out", str(out)]) == 0
        with np.load(out / "edited.npz") as arrays:
            assert arrays["unedited"].shape == (1, 8, 8, 1)


def test_an_edit_of_many_images_is_that_of_each_block(files):
    """More rows than a block, on both levels: the noise of an image and its bottleneck stay its own."""
    model, images = load_model("digits"), study.images_of("digits-heldout")[:70]
    boundaries = [boundary.load(files / f"{level}.safetensors") for level in ("z", "h")]
    times = study.times_of(model, boundaries)
    z = study.latents(model, images, times)
    h = study.bottleneck(model, z, times)
    whole = study.edited(model, z, boundaries, 2.0, h)
    assert torch.allclose(study.edited(model, z[:8], boundaries, 2.0, h[:8]), whole[:8], atol=1e-5)
    assert not torch.allclose(whole[64:], study.edited(model, z[64:], boundaries, 2.0, h[64:]), atol=1e-3)


def test_the_bottleneck_of_images_that_is_edited_is_the_one_that_is_fitted_to(files, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(study, "edited", lambda model, z, b, strength, h, way: given.append((z, h)) or z.clamp(0, 1))
    words = ["boundary", "edit", "--model", "digits", "--boundary", files / "h.safetensors", "--num", "3"]
    assert cli.main([str(word) for word in [*words, "--image", "digits-heldout", "--out", tmp_path / "out"]]) == 0
    model, images, times = load_model("digits"), study.images_of("digits-heldout")[:3], boundary.grid(300, 4)
    for level, found in zip(study.LEVELS, given[0], strict=True):
        assert torch.allclose(found, study.latents(model, images, times, level), atol=1e-4)


def test_an_interrupted_fit_leaves_nothing(files, tmp_path, monkeypatch, capsys):
    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "fit", stop)
    assert cli.main([*FIT, "--out", str(tmp_path / "a.safetensors")]) == 130
    assert "interrupted: nothing is left half-written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory):
    """A network of EDM's kind with ten classes, of random weights."""
    torch.manual_seed(0)
    net = {"size": 8, "in_channels": 1, "out_channels": 1, "width": 16, "multipliers": [1, 2], "blocks": 1}
    return ScaledUNet("edm", {}, net | {"labels": 10}), tmp_path_factory.mktemp("classes")


def test_a_network_with_classes_is_held_to_one(with_classes, capsys):
    net, folder = with_classes
    path, out = folder / "net.safetensors", folder / "b.safetensors"
    card = {"name": "classes", "architecture": "ScaledUNet", "sigma_min": 0.002, "sigma_max": 80.0}
    save(net, path, card | {"data_range": [0.0, 1.0]})
    words = [*FIT, "--model", str(path), "--level", "h", "--out", str(out)]
    assert refused(words, "this model has classes and was never trained without: choose one by label, 0 to 9", capsys)
    assert cli.main([*words, "--label", "3"]) == 0
    edit = ["boundary", "edit", "--model", path, "--boundary", out, "--num", "2", "--out", folder / "out"]
    assert refused([*edit, "--label", "4"], "this boundary is of another network", capsys)
    assert refused([*edit, "--label", "10"], "label", capsys)
    assert cli.main([str(word) for word in [*edit, "--label", "3"]]) == 0


def test_a_model_without_a_network_has_no_bottleneck(tmp_path, capsys):
    words = [*FIT, "--model", "glyphs32-exact", "--level", "h", "--positive", "glyphs32:weight=700"]
    out = ["--negative", "glyphs32:weight=400", "--out", tmp_path / "b.safetensors"]
    assert refused([*words, *out], "has no network, and so no bottleneck: use level z", capsys)
    odd = InBlocks(Adapter(torch.nn.Conv2d(1, 1, 1), (1, 8, 8)))
    assert fingerprint(odd)
    with pytest.raises(UserError, match="a Conv2d has no bottleneck that is known here"):
        study.network_of(odd)
