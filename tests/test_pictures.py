"""Pictures to train on: as published, from files in their real format, and stand-ins of libraries."""

import pickle

import numpy as np
import pytest
import torch

from dmcmc_core.data import pictures
from dmcmc_core.data.pictures import RAW, load_pictures
from dmcmc_core.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A place for raw pictures, and what writes a pickle there."""
    monkeypatch.setenv("DMCMC_DATA", str(tmp_path))

    def write(content, name="celeba-raw", protocol=4):
        path = tmp_path / RAW[name]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        return path

    return write


@pytest.mark.parametrize(("name", "count"), [("skimage", 3), ("sklearn", 2)])
def test_stand_ins_fill_their_range(name, count):
    pytest.importorskip("skimage" if name == "skimage" else "sklearn")
    found = load_pictures(name, count, 16)
    assert found.shape == (count, 3, 16, 16) and found.dtype == torch.float32
    assert (found.amin((1, 2, 3)) == 0).all() and (found.amax((1, 2, 3)) == 1).all()
    assert torch.equal(load_pictures(name, 1, 16, 1)[0], found[1])


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("whole", [True, False])
def test_raw_pictures_as_published(raw, protocol, whole):
    some = RNG.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    raw(some if whole else list(some), protocol=protocol)
    found = load_pictures("celeba-raw", 2, 20, 3)
    wanted = some[3:5].transpose(0, 3, 1, 2).astype(np.float32) / 255
    low, high = (wanted.reshape(2, -1).__getattribute__(f)(1)[:, None, None, None] for f in ("min", "max"))
    np.testing.assert_allclose(found, (wanted - low) / (high - low), atol=1e-6)


def test_pictures_are_resized_by_every_pixel(raw):
    board = np.indices((32, 32)).sum(0) % 2 * np.uint8(200)
    board[:16] = board[:16] // 2
    raw([np.repeat(board[..., None], 3, 2).astype(np.uint8)])
    found = load_pictures("celeba-raw", 1, 8)[0]
    assert found[:, :3].std() < 0.05 and found[:, 5:].std() < 0.05  # a board becomes grey


def test_the_published_dogs_are_drawn(monkeypatch):
    class Set:
        labels = np.repeat(np.arange(10), 5000)

        def __getitem__(self, rows):
            self.rows = np.asarray(rows)
            return torch.rand(len(self.rows), 3, 32, 32, generator=torch.Generator().manual_seed(0))

    one = Set()
    monkeypatch.setattr(pictures, "open_images", lambda name: one)
    load_pictures("cifar10-dog", 1, 32, 9)
    assert (one.rows - 25_000).tolist() == [1081]
    load_pictures("cifar10-dog", 3, 32, 56)
    assert (one.rows - 25_000).tolist() == [3296, 4860, 389]


class Harmless:
    def __reduce__(self):
        return print, ("this ran",)


def test_nothing_of_a_pickle_is_run(raw, capsys):
    raw([Harmless()])
    with pytest.raises(UserError, match="builtins.print, which no data needs: it was not executed"):
        load_pictures("celeba-raw", 1, 16)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.zeros((20, 16, 3), np.uint8)], "is 20x16: score embedding needs square ones"),
        ([np.zeros((5, 5, 3), np.uint8)], "has 5 pixels a side: at least 7"),
        ([np.zeros((16, 16, 3), np.uint8)], "has one value everywhere"),
        ([np.zeros((16, 16, 3), np.float32)], "an array that is not of uint8"),
        ([np.zeros((16, 16), np.uint8)], r"it does not hold pictures \(H, W, 3\)"),
        ({"a": 1}, "cannot be read as raw pictures"),
        ([], r"it does not hold pictures"),
    ],
)
def test_raw_pictures_that_are_none(raw, content, message):
    raw(content)
    with pytest.raises(UserError, match=message):
        load_pictures("celeba-raw", 1, 16)


def test_what_is_refused(raw):
    for arguments, message in (
        (("skimages", 1, 16), "unknown set of pictures 'skimages': did you mean 'skimage'"),
        (("skimage", 0, 16), "count must be a whole number, at least 1"),
        (("skimage", 1, 6), "size must be a whole number, at least 7"),
        (("sklearn", 3, 16), "sklearn has 2 pictures: 3 from number 0 on are not there"),
        (
            ("imagenet-raw", 1, 16),
            "imagenet_raw.pkl, and comes from the data folder of the repository",
        ),
        (("cifar10-dog", 1, 32), "cifar10-train .* is not here"),
    ):
        with pytest.raises(UserError, match=message):
            load_pictures(*arguments)
    path = raw([np.zeros((16, 16, 3), np.uint8)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read as raw pictures"):
        load_pictures("celeba-raw", 1, 16)
