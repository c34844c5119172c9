"""Pictures to train on one by one: the published choice, formats, sizes, and what is not there or no picture."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import data
from dmcmc_core.data import load_pictures, pictures
from dmcmc_core.errors import UserError


@pytest.fixture
def no_data(monkeypatch, tmp_path) -> Path:
    """An empty DMCMC_DATA, and a checkout without exp/paper."""
    place = tmp_path / "place"
    (place / "score-embedding").mkdir(parents=True)
    monkeypatch.setenv(data.VARIABLE, str(place))
    monkeypatch.setattr(data.published, "root", lambda: tmp_path)
    return place


def raw(count: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Pictures of several sizes, as those that were published."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (20 + i, 16 + 2 * i, 3), np.uint8) for i in range(count)]


def write(place: Path, content: object, name: str = "celeba-raw", protocol: int = 4) -> Path:
    path = place / pictures.RAW[name]
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def stretched(picture: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()
    return (image - image.min()) / (image.max() - image.min())


# ---- the published choice


def test_dogs_are_drawn_as_published():
    """Numbers in the list of 5,000 dogs of CIFAR-10's training images, by the seeds of the published configurations."""
    assert pictures.draw(5000, 1, 9).tolist() == [1081]
    assert pictures.draw(5000, 3, 56).tolist() == [3296, 4860, 389]


def test_dogs_come_from_their_class(no_data, monkeypatch):
    folder = no_data / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3072), np.uint8)
    labels = np.arange(40) * 3 % 10
    for i, name in enumerate(list(data.CIFAR10_MD5)[:5]):
        part = slice(8 * i, 8 * i + 8)
        batch = {b"data": pixels[part], b"labels": labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
        monkeypatch.setitem(data.CIFAR10_MD5, name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    about = data.DATASETS["cifar10-train"]
    monkeypatch.setitem(data.DATASETS, "cifar10-train", about._replace(shape=(40, 3, 32, 32)))
    dogs = pixels[labels == 5].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    chosen = dogs[pictures.draw(len(dogs), 2, 7)]
    assert torch.equal(load_pictures("cifar10-dog", 2, 32, 7), torch.stack([stretched(dog) for dog in chosen]))
    with pytest.raises(UserError, match="there are 4 pictures to draw from, not 5"):
        load_pictures("cifar10-dog", 5, 32)


@pytest.mark.parametrize("name", sorted(pictures.RAW))
def test_raw_pictures_are_taken_from_a_number_on(no_data, name):
    """At its own size a picture is stretched to [0, 1] and no more."""
    given = [picture[:16, :16] for picture in raw()]
    write(no_data, given, name)
    assert torch.equal(load_pictures(name, 1, 16, 3), stretched(given[3])[None])
    assert torch.equal(load_pictures(name, 3, 16), torch.stack([stretched(picture) for picture in given[:3]]))
    with pytest.raises(UserError, match=f"{name} has 6 pictures: 3 from number 4 on are not there"):
        load_pictures(name, 3, 16, 4)


# ---- files of raw pictures


@pytest.mark.parametrize("protocol", range(2, 6))
def test_raw_pictures_are_read_of_every_protocol(no_data, protocol):
    """A list of arrays of several sizes, one in columns; an array of arrays, and one array of all."""
    given = raw()
    given[1] = np.asfortranarray(given[1])
    ragged = np.empty(6, object)
    ragged[:] = given
    for content in (given, tuple(given), ragged):
        path = write(no_data, content, protocol=protocol)
        assert all(np.array_equal(a, b) for a, b in zip(pictures._raw(path), given, strict=True))
    whole = np.stack([picture[:16, :16] for picture in given])
    assert np.array_equal(pictures._raw(write(no_data, whole, protocol=protocol)), whole)


def test_a_file_that_is_not_here_says_where_it_goes_and_comes_from(no_data):
    with pytest.raises(UserError) as error:
        load_pictures("imagenet-raw", 1, 16)
    for word in ("score-embedding/imagenet_data.pkl", str(no_data), "exp/paper", "DMCMC_DATA", pictures.AUTHORS):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cifar10-train .* is not here"):
        load_pictures("cifar10-dog", 1, 32)


class Evil:
    """A pickle of it makes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_file_is_run(no_data, tmp_path):
    path = write(no_data, [*raw(), Evil(tmp_path / "mark")])
    with pytest.raises(UserError, match="it names pathlib.*was not executed"):
        load_pictures("celeba-raw", 1, 16)
    assert not (tmp_path / "mark").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "mark").exists(), "the attack is a real one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"does not hold pictures \(H, W, 3\)"),
        (raw()[:2] + [np.zeros((5, 16, 3), np.uint8)], "is 5x16: sides of at least 7 pixels are needed"),
        ([picture.astype(np.float32) for picture in raw()], "not of uint8"),
        ([picture[:, :, 0] for picture in raw()], "does not hold pictures"),
        ([picture[:0] for picture in raw()], "sides of at least 7 pixels"),
        ({"a": 1}, "does not hold pictures"),
        (3, "cannot be read as raw pictures"),
        ([np.full((9, 9, 3), 7, np.uint8)] * 6, "one value everywhere"),
    ],
)
def test_files_of_no_pictures_are_refused(no_data, content, message):
    write(no_data, content)
    with pytest.raises(UserError, match=message) as error:
        load_pictures("celeba-raw", 1, 8)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(no_data):
    path = write(no_data, raw())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as raw pictures"):
        load_pictures("celeba-raw", 1, 16)


# ---- sizes


def test_pictures_are_resized_as_the_published_ones(no_data):
    """As torchvision does it with pixels of 256 levels, to one level; pictures that are not square are stretched."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    given = raw()
    write(no_data, given)
    resize = v2.Resize((9, 9), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    for own, picture in zip(load_pictures("celeba-raw", 4, 9), given, strict=False):
        theirs = resize(torch.from_numpy(picture.transpose(2, 0, 1).copy()))
        theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
        assert (own - theirs).abs().max() < 4 / 255
        assert own.min() == 0 and own.max() == 1


@pytest.mark.parametrize("name", sorted(pictures.SHIPPED))
def test_photographs_of_libraries_are_cut_square_and_not_fetched(name, monkeypatch):
    """They are read where they lie in the package, and the library is not asked for them."""
    pytest.importorskip(name)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was asked for"))
    n = len(pictures.SHIPPED[name].files)
    found = load_pictures(name, n, 16)
    assert found.shape == (n, 3, 16, 16) and found.dtype == torch.float32
    assert found.amin((1, 2, 3)).eq(0).all() and found.amax((1, 2, 3)).eq(1).all()
    assert torch.equal(load_pictures(name, n - 1, 16, seed=1), found[1:])
    assert len({picture.numpy().tobytes() for picture in found}) == n


def test_a_square_is_cut_from_the_middle():
    picture = np.arange(4 * 7).reshape(4, 7, 1)
    assert pictures._square(picture)[..., 0].tolist() == [[7 * i + j for j in range(1, 5)] for i in range(4)]
    assert pictures._square(picture.transpose(1, 0, 2))[..., 0].tolist() == [
        [7 * j + i for j in range(4)] for i in range(1, 5)
    ]


def test_own_pictures_come_from_an_npz_file(tmp_path):
    own = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "own.npz", arr_0=own)
    found = load_pictures(str(tmp_path / "own.npz"), 2, 8, seed=1)
    assert torch.equal(found, torch.stack([stretched(own[1]), stretched(own[2])]))
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((1, 8, 9, 3), np.uint8))
    with pytest.raises(UserError, match="is 8x9: score embedding needs square ones"):
        load_pictures(str(tmp_path / "wide.npz"), 1, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 6}, "size must be a whole number, at least 7"),
        ({"size": 16.0}, "size must be a whole number"),
        ({"count": 0}, "count must be a whole number, at least 1"),
        ({"count": 99}, "skimage has 6 pictures: 99 from number 0 on are not there"),
        ({"seed": -1}, "seed must be a whole number, at least 0"),
        ({"name": "skimages"}, "did you mean 'skimage'"),
    ],
)
def test_what_makes_no_pictures_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load_pictures(**({"name": "skimage", "count": 1, "size": 16} | arguments))


def test_a_library_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setitem(pictures.SHIPPED, "skimage", pictures.SHIPPED["skimage"]._replace(package="no_such_package"))
    with pytest.raises(UserError, match="are inside scikit-image, which is not installed: pip install scikit-image"):
        load_pictures("skimage", 1, 16)
    monkeypatch.setitem(
        pictures.SHIPPED, "sklearn", pictures.SHIPPED["sklearn"]._replace(files=("no_such_picture.jpg",))
    )
    with pytest.raises(UserError, match="lacks its picture no_such_picture.jpg"):
        load_pictures("sklearn", 1, 16)
