"""``boundary``: from images of two kinds to pictures on both sides of what separates them."""

import numpy as np
import pytest
import torch

from dmcmc_core import boundary, load_model
from dmcmc_core.errors import UserError
from dmcmc_core.nets.classifiers import classify
from dmcmc_core.workbench import cli
from dmcmc_core.workbench.studies import boundary as study

FIT = "boundary fit --model digits --positive digits-train:3 --negative digits-train:7 --time 400 --steps 12".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A boundary between sevens and threes on either level."""
    folder = tmp_path_factory.mktemp("boundary")
    for level in ("z", "h"):
        assert cli.main([*FIT, "--level", level, "--out", str(folder / f"{level}.safetensors")]) == 0
    return folder


def test_edits_cross_the_boundary_and_random_directions_do_not(files):
    """Sevens become what the classifier takes for threes; as strong an edit in a direction without meaning does not."""
    model, sevens = load_model("digits"), study.images_of("digits-heldout:7")[:40]
    found = boundary.load(files / "z.safetensors")
    assert found.accuracy > 0.8 and found.card["time"] == 400
    z = study.latents(model, sevens, boundary.grid(400, 12))
    direction = torch.randn(found.normal.shape, generator=torch.Generator().manual_seed(0))
    control = boundary.Boundary(direction / direction.norm(), 0.0, 0.5, found.card)
    shares = []
    for one in (found, control):
        images = study.edited(model, z, [one], 5.0)
        shares.append((classify(images) == 3).double().mean().item())
    assert shares[0] > 0.4 and shares[1] < 0.2


def test_both_levels_are_edited_from_images_and_from_noise(files, capsys):
    paths = [str(files / f"{level}.safetensors") for level in ("z", "h")]
    common = ["boundary", "edit", "--model", "digits", "--boundary", *paths, "--num", "3", "--strength", "-2", "2"]
    assert cli.main([*common, "--image", "digits-heldout:7", "--out", str(files / "a")]) == 0
    assert "columns image, unedited, -2, 2" in capsys.readouterr().out
    with np.load(files / "a" / "edited.npz") as arrays:
        images = {name: arrays[name] for name in ("image", "unedited", "-2", "2")}
    assert images["2"].shape == (3, 8, 8, 1) and not np.array_equal(images["2"], images["-2"])
    for out in ("b", "c"):
        assert cli.main([*common, "--seed", "4", "--steps", "10", "--out", str(files / out)]) == 0
    assert (files / "b" / "strip.png").read_bytes() == (files / "c" / "strip.png").read_bytes()


def test_a_search_tells_the_mixing_time(files, capsys):
    words = ["boundary", "search", "--model", "digits", "--images", "digits-train", "--num", "40", "--steps", "20"]
    assert cli.main([*words, "--out", str(files / "radii")]) == 0
    assert "within one width of the shell" in capsys.readouterr().out
    assert {p.suffix for p in (files / "radii").iterdir()} >= {".csv", ".png"}


def test_what_cannot_be_edited_is_one_sentence(files, tmp_path, capsys):
    edit = ["boundary", "edit", "--out", str(tmp_path / "x"), "--num", "2", "--boundary"]
    torch.save({}, tmp_path / "a.pkl")
    for words, match in (
        ([*edit, str(files / "z.safetensors"), "--model", "glyphs32"], "boundary is of another network"),
        ([*edit, str(tmp_path / "a.pkl"), "--model", "digits"], "is no boundary"),
        ([*edit, str(files / "z.safetensors"), "--model", "digits", "--eta", "2"], "eta must be"),
        ([*edit, str(files / "z.safetensors"), "--model", "digits", "--how", "push"], "how must be one of"),
        ([*FIT, "--level", "x", "--out", str(tmp_path / "b.safetensors")], "level must be one of"),
        ([*FIT, "--num", "0", "--out", str(tmp_path / "b.safetensors")], "--num must be at least 1"),
        ([*FIT, "--out", str(tmp_path / "b.pkl")], "must end in .safetensors"),
        ([*FIT, "--num", "1", "--out", str(tmp_path / "b.safetensors")], "each kind needs 2 latents"),
    ):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert match in said and said.count("\n") == 1
    assert not (tmp_path / "b.safetensors").exists() and not (tmp_path / "x").exists()


def test_images_of_a_kind_are_named():
    assert study.images_of("digits-heldout:7").shape[1:] == (1, 8, 8)
    assert study.images_of("glyphs32:weight=700").shape[1:] == (3, 32, 32)
    for name, match in (
        ("digits-train:ten", "no image of digits-train is of the kind 'ten': known are 0, 1"),
        ("glyphs32:wheight=700", "did you mean 'weight'"),
        ("glyphs32:weight=500", "known are 400, 700"),
    ):
        with pytest.raises(UserError, match=match):
            study.images_of(name)
