"""The data sets are fixed: the same split, the same glyphs, whatever the number asked for."""

import numpy as np
import pytest
import torch

from dmcmc_core.data import CHARACTERS, digits, from_uint8, glyphs32, load_images, to_uint8
from dmcmc_core.errors import UserError


def test_digits_split_is_a_partition_stratified_by_class():
    train, held_out, both = (digits(split) for split in ("train", "heldout", "all"))
    assert train.images.shape == (1197, 1, 8, 8) and held_out.images.shape == (600, 1, 8, 8)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert torch.equal(both.images, torch.cat([train.images, held_out.images]))
    share = held_out.labels.bincount() / both.labels.bincount()
    assert (share - 600 / 1797).abs().max() < 0.004  # at most one image of about 180 away from the common share
    assert train.labels[:100].bincount(minlength=10).min() > 0, "shuffled, not sorted by class"

    sklearn_digits = pytest.importorskip("sklearn.datasets").load_digits().images
    ours = sorted(image.tobytes() for image in (both.images[:, 0] * 16).double().numpy())
    assert ours == sorted(image.tobytes() for image in sklearn_digits)


def test_glyph_does_not_depend_on_the_number_of_glyphs():
    few, many = glyphs32(5, seed=3), glyphs32(40, seed=3)
    assert few.images.shape == (5, 3, 32, 32) and few.images.dtype == torch.float32
    assert torch.equal(few.images, many.images[:5])
    assert all((few.attributes[name] == many.attributes[name][:5]).all() for name in many.attributes)
    assert not torch.equal(few.images, glyphs32(5, seed=4).images)


def test_glyph_attributes_describe_the_image():
    glyphs = glyphs32(300)
    a = glyphs.attributes
    assert "".join(CHARACTERS[i] for i in glyphs.labels) == "".join(a["character"])
    assert len(set(zip(a["font"], a["weight"], a["slant"], strict=True))) >= 8
    ground = torch.from_numpy(a["background"]).float()[:, :, None, None]
    ink = (glyphs.images - ground).abs().sum(1)  # 0 where there is background alone
    ink = ink / ink.sum((1, 2), keepdim=True)
    pixel = torch.arange(32) + 0.5 - 16
    x, y = (ink.sum(1) * pixel).sum(1).numpy(), (ink.sum(2) * pixel).sum(1).numpy()
    assert np.corrcoef(x, a["x"])[0, 1] > 0.9 and np.corrcoef(y, a["y"])[0, 1] > 0.9
    corner = np.abs(glyphs.images[:, :, 0, 0].numpy() - a["background"]).max(1)
    assert (corner < 1 / 255).mean() > 0.95  # the very corner is background, but for the largest glyphs
    strongest = (glyphs.images - torch.from_numpy(a["foreground"]).float()[:, :, None, None]).abs().amax(1)
    assert strongest.amin((1, 2)).median() < 0.1  # somewhere in the image stands the foreground colour


def test_uint8_rounds_and_comes_back():
    images = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0, 1.3, 0.5]).reshape(1, 1, 2, 4)
    array = to_uint8(images)
    assert array.shape == (1, 2, 4, 1) and array.flatten().tolist() == [0, 0, 0, 1, 255, 255, 255, 128]
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (to_uint8(from_uint8(every)) == every).all()
    assert (to_uint8(from_uint8(every, (-1, 1)), (-1, 1)) == every).all()


def test_load_images_by_name_and_from_npz(tmp_path):
    assert torch.equal(load_images("digits-heldout"), digits("heldout").images)
    array = to_uint8(glyphs32(6).images)
    np.savez(tmp_path / "six.npz", arr_0=array)
    assert torch.equal(load_images(tmp_path / "six.npz"), glyphs32(6).images)


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="did you mean 'digits-heldout'"):
        load_images("digits-heldouts")
    with pytest.raises(UserError, match="no such file"):
        load_images(tmp_path / "none.npz")
    np.savez(tmp_path / "good.npz", arr_0=np.zeros((9, 8, 8, 1), np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 8, 8, 1)))
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "pickled.npz", arr_0=np.array([{}]))
    for name, words in {"cut": "truncated", "float": "float64", "other": "arr_0", "pickled": "cannot be read"}.items():
        with pytest.raises(UserError, match=words):
            load_images(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        digits("held-out")
    with pytest.raises(UserError, match="n >= 1"):
        glyphs32(0)
