"""Images of other channels than grey and colour have, and latents: what cannot be done is told before the first."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import load_model
from dmcmc_core.checkpoints.safetensors import save
from dmcmc_core.data import open_images, to_uint8
from dmcmc_core.errors import LOG, TooFew, UserError
from dmcmc_core.metrics import evaluate, extract, frechet_distance, load_features, statistics
from dmcmc_core.nets.unet import DenoisingUNet
from dmcmc_core.report import plots
from dmcmc_core.runs.make import run
from dmcmc_core.runs.pictures import write_grid, write_pngs
from dmcmc_core.workbench import cli
from dmcmc_core.workbench.experiments import read_cells

ROOT = Path(__file__).resolve().parents[1]
CARD = {"name": "tiny", "data_range": [0.0, 1.0], "sigma_min": 0.01, "sigma_max": 10.0}
LATENTS = {"encoder": "StabilityVAEEncoder"}


def network(folder, channels, **card):
    torch.manual_seed(0)
    net = DenoisingUNet((channels, 8, 8), 0.3, channels=(8, 16), blocks=(1, 1), embedding=16)
    save(net, folder / "net.safetensors", CARD | card)
    return str(folder / "net.safetensors")


def sample(model, out, *more, sampler="euler"):
    words = ["sample", "--model", model, "--sampler", sampler, "--nfe", "3", "--num", "70", "--out", str(out)]
    return cli.main([*words, *more])


def folder_of(path, batch, **manifest):
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"num": len(batch)} | manifest))
    np.savez(path / "shard-00000.npz", arr_0=to_uint8(batch))
    return path


def images(n, channels, seed=0):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


REFUSED = [(2, {}, "not 2"), (4, LATENTS, "latents of StabilityVAEEncoder are no pictures")]


@pytest.mark.parametrize(("channels", "card", "words"), REFUSED, ids=["two channels", "latents"])
@pytest.mark.parametrize("picture", ["--png", "--grid"])
@pytest.mark.parametrize("sampler", ["euler", "dlg+auto"])
def test_pictures_that_cannot_be_are_refused_before_the_first_image(
    channels, card, words, picture, sampler, tmp_path, capsys
):
    assert sample(network(tmp_path, channels, **card), tmp_path / "s", picture, sampler=sampler) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_two_channels_are_sampled_with_a_word_on_what_cannot_be_done_and_compared(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(LOG, "warning", said.append)
    assert sample(network(tmp_path, 2), tmp_path / "s") == 0
    assert "images of 2 channels" in said[0] and "random-conv alone" in said[0]
    assert len(said) == 2 and "lie outside the data range" in said[1]  # the network knows nothing
    for write in (write_pngs, write_grid):
        with pytest.raises(UserError, match="1, 3 or 4 channels, not 2"):
            write(tmp_path / "s")
    other = folder_of(tmp_path / "other", images(80, 2))
    found = evaluate(tmp_path / "s", other / "shard-00000.npz", "random-conv", cache_dir=tmp_path / "cache")
    shards = sorted((tmp_path / "s").glob("shard-*.npz"))
    ours = torch.cat([open_images(file)[:] for file in shards])
    rows = [extract(x, load_features("random-conv")) for x in (ours, images(80, 2))]
    assert found["frechet"] == pytest.approx(frechet_distance(*statistics(rows[0]), *statistics(rows[1])), rel=1e-6)


def test_latents_are_sampled_and_their_folder_knows_what_they_are(tmp_path):
    model = network(tmp_path, 4, **LATENTS)
    assert sample(model, tmp_path / "s") == 0
    for write in (write_pngs, write_grid):
        with pytest.raises(UserError, match="latents of StabilityVAEEncoder are no pictures"):
            write(tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.png"))
    with pytest.raises(
        UserError, match=r"\(4, 8, 8\).*\(1, 8, 8\): they are latents of StabilityVAEEncoder, to be dec"
    ):
        evaluate(tmp_path / "s", "given", "random-conv", reference_images=images(80, 1))


def test_four_channels_that_are_no_latents_are_written(tmp_path):
    pytest.importorskip("PIL")
    assert sample(network(tmp_path, 4), tmp_path / "s", "--png", "--grid") == 0
    assert len(list((tmp_path / "s" / "png").iterdir())) == 70 and (tmp_path / "s" / "grid.png").is_file()


@pytest.mark.parametrize(("channels", "card", "words"), REFUSED, ids=["two channels", "latents"])
def test_demo_tells_before_the_first_image(channels, card, words, tmp_path, monkeypatch):
    """Its first cell after the parameters ends there, though a reference of that shape is named."""
    monkeypatch.chdir(tmp_path)
    path, given = network(tmp_path, channels, **card), {}
    first, second = [c["source"] for c in read_cells(ROOT / "notebooks" / "Demo.ipynb") if c["type"] == "code"][:2]
    exec(first, given)
    given |= {"model": path, "features": "random-conv", "reference": ""}
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    with pytest.raises(
        UserError, match=r"1 or 3 channels, and this model makes .*" + ("latents" if card else "images")
    ):
        exec(second, given)
    exec(second, given | {"model": "digits"})
    with pytest.raises(TooFew, match="which needs at least .* per image: .* more images or fewer chains"):
        exec(second, given | {"model": "digits", "nfe": 3})
    names = {node.id for node in ast.walk(ast.parse(second)) if isinstance(node, ast.Name)}
    assert not names & {"cached", "dmcmc"}, "no image is made in that cell"


def test_figures_take_grey_and_colour():
    for shape in ((1, 8, 8), (3, 8, 8)):
        plots.check_shown(load_model("digits") if shape[0] == 1 else load_model("glyphs32-exact"))


def test_images_are_channels_last_of_any_number_below_their_sides(tmp_path):
    for shape in ((5, 8, 8, 2), (5, 8, 8, 7), (5, 2, 2, 4)):
        np.savez(tmp_path / "a.npz", arr_0=np.zeros(shape, np.uint8))
        assert open_images(tmp_path / "a.npz").shape == (shape[0], shape[3], *shape[1:3])
    for shape in ((5, 3, 32, 32), (5, 1, 28, 28), (5, 3, 32, 16), (5, 8, 8, 0)):
        np.savez(tmp_path / "a.npz", arr_0=np.zeros(shape, np.uint8))
        with pytest.raises(UserError, match=r"uint8 \(N, H, W, C\) is needed, channels last"):
            open_images(tmp_path / "a.npz")


def test_other_features_and_protocols_name_what_they_take(tmp_path):
    ours = folder_of(tmp_path / "s", images(80, 2))
    with pytest.raises(UserError, match=r"'digits-cnn' do not fit .* \(2, 8, 8\): images of \(1, 8, 8\) are needed"):
        evaluate(ours, "given", "digits-cnn", reference_images=images(80, 2), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="JPEG, which holds 1 or 3 channels, not the 2"):
        evaluate(ours, "given", "random-conv", reference_images=images(80, 2), protocol="dmcmc")


def test_inception_names_the_channels_that_it_takes():
    from dmcmc_core.metrics.inception_v3 import _Inception

    with pytest.raises(UserError, match="'inception' are of images of 1 or 3 channels, not 2"):
        _Inception(torch.nn.Identity())(images(3, 2))


@pytest.mark.parametrize("ours, theirs", [((1, 8, 8), (3, 8, 8)), ((3, 8, 8), (1, 8, 8)), ((1, 8, 8), (1, 8, 9))])
def test_grey_and_colour_and_other_sizes_are_refused_with_both_shapes(ours, theirs, tmp_path):
    folder, other = folder_of(tmp_path / "s", torch.rand(80, *ours)), folder_of(tmp_path / "r", torch.rand(80, *theirs))
    with pytest.raises(UserError) as refused:
        evaluate(folder, other / "shard-00000.npz", "random-conv", cache_dir=tmp_path / "cache")
    assert str(ours) in str(refused.value) and str(theirs) in str(refused.value)
    assert not (tmp_path / "cache").exists(), "before any features"


def test_a_run_asked_for_pictures_of_a_model_in_memory_is_refused(tmp_path):
    with pytest.raises(UserError, match="not 2"):
        run(load_model(network(tmp_path, 2)), "euler", 3, 4, 0, tmp_path / "s", pictures=True)
    assert not (tmp_path / "s").exists()
