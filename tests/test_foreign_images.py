"""Images and statistics that no run of ours wrote: folders of pictures, arrays, files of other projects."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dmcmc_core.data import digits, load_images, open_images, to_uint8
from dmcmc_core.errors import LOG, UserError
from dmcmc_core.metrics import evaluate, extract, load_features
from dmcmc_core.workbench import cli

PIXELS = to_uint8(digits("train").images[:90])
HOW = {"features": "digits-cnn", "bootstrap": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same 90 digits as a nested folder with files that do not count, an NPZ, an NPY, and under another name."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(PIXELS):
        path = folder / "pngs" / ("deep" if i % 2 else "") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    (folder / "pngs" / "._000.png").write_bytes(b"not a picture")
    (folder / "pngs" / ".hidden").mkdir()
    (folder / "pngs" / ".hidden" / "a.png").write_bytes(b"nor this")
    (folder / "pngs" / "readme.txt").write_text("a text")
    (folder / "pngs" / "loop").symlink_to(folder / "pngs", target_is_directory=True)
    (folder / "linked").mkdir()
    (folder / "linked" / "there").symlink_to(folder / "pngs", target_is_directory=True)
    np.savez(folder / "samples_90x8x8x1.npz", PIXELS, np.arange(90))
    np.savez(folder / "named.npz", images=PIXELS)
    np.savez(folder / "grey.npz", PIXELS[..., 0])
    np.save(folder / "a.npy", PIXELS)
    return folder


@pytest.mark.parametrize("name", ["pngs", "linked", "samples_90x8x8x1.npz", "named.npz", "grey.npz", "a.npy"])
def test_the_same_images_are_the_same_in_every_form_and_on_both_sides(place, tmp_path, name):
    images = open_images(place / name)
    found = sorted(map(bytes, (to_uint8(block) for block in images[:].split(1))))
    assert found == sorted(bytes(image) for image in PIXELS)
    as_images = evaluate(place / name, "digits-heldout", cache_dir=tmp_path, **HOW)
    right = evaluate(place / "a.npy", "digits-heldout", cache_dir=tmp_path, **HOW)
    assert as_images["frechet"] == pytest.approx(right["frechet"], rel=1e-9)
    assert as_images["images"].startswith("90 images of 1x8x8")
    as_reference = evaluate(place / "a.npy", place / name, cache_dir=tmp_path, **HOW)
    assert as_reference["frechet"] == pytest.approx(0, abs=1e-8)


def test_a_folder_of_pictures_is_compared_at_the_command_line(place, capsys):
    words = [
        "evaluate",
        str(place / "pngs"),
        "--reference",
        str(place / "a.npy"),
        "--features",
        "random-conv",
        "--json",
    ]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 90 and result["images"] == "90 images of 1x8x8, .png files"
    assert result["frechet"] == pytest.approx(0, abs=1e-8)


def test_pictures_of_several_sizes_or_kinds_are_refused_by_name(tmp_path):
    def folder(name, *images):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            image.save(tmp_path / name / f"{i}.png")
        return tmp_path / name

    def wrong(path):
        grey.save(path / "1.png", format="JPEG")
        return path

    def webp(path):
        (path / "1.webp").write_bytes(b"RIFF")
        return path

    grey, colour = Image.new("L", (8, 8), 7), Image.new("RGB", (8, 8), (1, 2, 3))
    mixed = load_images(folder("mixed", grey, colour))
    assert mixed.shape == (2, 3, 8, 8) and (mixed[0] * 255).round().unique().tolist() == [7]
    for path, match in (
        (folder("sizes", grey, Image.new("L", (9, 8))), "1.png is 9x8, 0.png is 8x8: all must be of one size"),
        (folder("alpha", colour, Image.new("RGBA", (8, 8))), "1.png is of Pillow's mode RGBA"),
        (wrong(folder("renamed", grey)), "1.png is JPEG by its content and PNG by its name"),
        (webp(folder("webp", grey)), "1.webp is no PNG or JPEG file"),
        (folder("none"), "holds no shards of sample and no PNG or JPEG files"),
    ):
        with pytest.raises(UserError, match=match):
            open_images(path)
    cut = folder("cut", grey)
    (cut / "0.png").write_bytes((cut / "0.png").read_bytes()[:40])
    with pytest.raises(UserError, match="0.png cannot be read as an image"):
        load_images(cut)


def test_jpeg_on_one_side_is_said(place, tmp_path):
    (tmp_path / "jpgs").mkdir()
    for i, image in enumerate(PIXELS[:70]):
        Image.fromarray(image[..., 0]).save(tmp_path / "jpgs" / f"{i}.jpg")
    with pytest.raises(UserError, match="are jpeg and those of .* are lossless"):
        evaluate(tmp_path / "jpgs", place / "a.npy", cache_dir=tmp_path, **HOW)


def test_images_that_change_under_their_name_are_new_ones(tmp_path):
    found = []
    for pixels in (PIXELS, PIXELS[::-1] // 2):
        np.savez(tmp_path / "a.npz", pixels)
        found.append(evaluate(tmp_path / "a.npz", "digits-heldout", cache_dir=tmp_path / "c", **HOW)["frechet"])
    assert abs(found[0] - found[1]) > 1


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """The statistics of training digits, as other projects name them."""
    folder = tmp_path_factory.mktemp("statistics")
    features = extract(digits("train").images, load_features("digits-cnn")).numpy()
    mu, sigma = features.mean(0, dtype=float), np.cov(features, rowvar=False)
    np.savez(folder / "fid.npz", mu=mu, sigma=sigma)
    np.savez(folder / "row.npz", mu=mu[None], sigma=sigma)
    np.savez(folder / "chainer.npz", mean=mu, cov=sigma)
    np.savez(folder / "score_sde.npz", pool_3=features)
    torch.save({"mu": torch.tensor(mu), "sigma": torch.tensor(sigma)}, folder / "fidelity.pt")
    torch.save({"mu": mu, "sigma": sigma}, folder / "arrays.pt")
    np.savez(folder / "two.npz", mu=mu, sigma=sigma, mean=mu + 1, cov=sigma)
    np.savez(folder / "half.npz", mu=mu)
    np.savez(folder / "several.npz", a=PIXELS, b=PIXELS)
    torch.save({"weights": torch.ones(3)}, folder / "net.pt")
    (folder / "edm2.pkl").write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}))
    return folder


@pytest.mark.parametrize("name", ["row.npz", "chainer.npz", "score_sde.npz", "fidelity.pt", "arrays.pt"])
def test_statistics_are_read_under_every_name(place, statistics, tmp_path, name):
    right, found = (evaluate(place / "a.npy", statistics / n, cache_dir=tmp_path, **HOW) for n in ("fid.npz", name))
    assert found["frechet"] == pytest.approx(right["frechet"], rel=1e-6) and found["reference_n"] is None
    assert found["reference_images"] == "statistics"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("two.npz", "holds cov, mean and mu, sigma|holds mu, sigma and cov, mean"),
        ("half.npz", "holds no array arr_0 but mu: .* or for a reference mu and sigma"),
        ("several.npz", "holds several arrays of images, a, b"),
        ("net.pt", "holds weights: statistics are arrays mu and sigma"),
        ("edm2.pkl", "is a pickle, which is never executed: save its statistics .* under 'fid'"),
    ],
)
def test_what_is_no_reference_is_said_by_what_it_holds(place, statistics, tmp_path, name, match):
    with pytest.raises(UserError, match=match):
        evaluate(place / "a.npy", statistics / name, cache_dir=tmp_path, **HOW)
    with pytest.raises(UserError, match="holds|is no set of images"):
        open_images(statistics / name)


def test_of_images_and_statistics_in_one_file_images_are_taken_and_that_is_said(place, tmp_path, caplog):
    np.savez(tmp_path / "batch.npz", PIXELS, mu=np.zeros(3), sigma=np.eye(3))
    LOG.addHandler(caplog.handler)
    try:
        result = evaluate(place / "a.npy", tmp_path / "batch.npz", cache_dir=tmp_path, **HOW)
    finally:
        LOG.removeHandler(caplog.handler)
    assert result["frechet"] == pytest.approx(0, abs=1e-8)
    assert "holds images (arr_0) and statistics (mu, sigma): the images are taken" in caplog.text


def test_an_array_of_grey_images_is_no_image_of_colour(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((80, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"is uint8 of shape \(80, 8, 3\)"):
        open_images(tmp_path / "a.npy")


def test_statistics_are_no_images(statistics, tmp_path):
    with pytest.raises(UserError, match=r"holds statistics \(mu, sigma\) and no images"):
        evaluate(statistics / "fid.npz", "digits-heldout", cache_dir=tmp_path, **HOW)
