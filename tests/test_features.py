"""Feature extractors: fixed weights, published files, and what they answer to bad input."""

import hashlib
from unittest import mock

import pytest
import torch
from torch import nn

from dmcmc_core.data import glyphs32
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import features, inception_v3, random_features
from dmcmc_core.metrics.features import Extractor

PIXELS = Extractor("pixels", lambda x: x.flatten(1))


def test_only_inception_prints_as_fid():
    assert features.distance_name("inception") == "FID"
    assert features.distance_name("random-conv") == "Fréchet distance (random-conv features)"
    with pytest.raises(UserError, match="did you mean 'inception'"):
        features.load_features("inceptoin")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 9, 17)])
def test_random_conv_is_fixed_and_small(shape):
    images = torch.rand(70, *shape, generator=torch.Generator().manual_seed(0))
    first, again = (features.extract(images, features.load_features("random-conv")) for _ in range(2))
    assert first.shape == (70, 64) and torch.equal(first, again)
    assert torch.equal(first[:3], features.extract(images[:3], features.load_features("random-conv")))
    assert first.std(0).min() > 1e-3, "no dead feature"


PUBLISHED = [-0.289475, 0.122738, 0.066131, 0.818305]


@pytest.mark.parametrize(("channels", "start"), [(1, "0672cb05b4c80c54"), (3, "485e255acccf4a4d")])
def test_random_conv_has_its_weights_and_leaves_the_global_generator_alone(channels, start):
    """The weights are part of every reported distance: their SHA-256 is that of the first release."""
    before = torch.get_rng_state()
    state = random_features.RandomConv(channels).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    weights = b"".join(name.encode() + value.numpy().tobytes() for name, value in state.items())
    assert hashlib.sha256(weights).hexdigest().startswith(start)


def test_random_conv_is_the_one_that_was_published():
    """Its weights come from torch's generator; should that ever change, every published distance changes with it."""
    image = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    rows = features.extract(image, features.load_features("random-conv"))
    torch.testing.assert_close(rows[0, ::16], torch.tensor(PUBLISHED), rtol=1e-4, atol=1e-5)


def test_digits_cnn_features():
    pytest.importorskip("safetensors")
    from dmcmc_core.nets.classifiers import SHIPPED

    if not SHIPPED.is_file():
        pytest.skip(f"{SHIPPED.name} is not trained yet")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    extractor = features.load_features("digits-cnn")
    rows = features.extract(images, extractor)
    assert rows.shape[0] == 5 and rows.shape[1] <= 64
    with pytest.raises(UserError, match="'digits-cnn' do not fit images of shape"):
        features.extract(torch.rand(5, 3, 32, 32), extractor)


def test_glyphs_cnn_features():
    from dmcmc_core.nets.classifiers import load_glyphs_cnn

    glyphs = glyphs32(500, seed=3)  # another seed than those that it was trained on or chosen by
    assert (load_glyphs_cnn().classify(glyphs.images) == glyphs.labels).float().mean() > 0.98
    assert features.extract(glyphs.images, features.load_features("glyphs-cnn")).shape == (500, 64)
    with pytest.raises(UserError, match="'glyphs-cnn' do not fit images of shape"):
        features.extract(torch.rand(5, 1, 8, 8), features.load_features("glyphs-cnn"))


def test_features_must_be_finite_and_fit():
    bad = Extractor("bad", lambda x: x.flatten(1) / 0)
    with pytest.raises(UserError, match="features 'bad' are not finite, first in row 0"):
        features.extract(torch.ones(2, 1, 2, 2), bad)
    with pytest.raises(UserError, match="images hold values that are not finite"):
        features.extract(torch.full((2, 1, 2, 2), float("nan")), PIXELS)
    with pytest.raises(UserError, match="at least 8x8 pixels"):
        features.extract(torch.ones(2, 1, 7, 8), features.load_features("random-conv"))


@pytest.fixture(scope="module")
def inception_state():
    """Random weights under the names of the published file, in the network as pytorch-fid builds it."""
    module = pytest.importorskip("pytorch_fid.inception", exc_type=ImportError)
    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(module.torchvision.models.Inception3, "load_state_dict", lambda *_, **__: None),
    ):
        network = module.fid_inception_v3().eval()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    return network.state_dict()


@pytest.fixture
def inception_folder(inception_state, tmp_path):
    torch.save(inception_state, tmp_path / inception_v3.INCEPTION_FILE)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch, tmp_path_factory):
    monkeypatch.delenv(inception_v3.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path_factory.mktemp("hub")))


@pytest.mark.slow
def test_inception_is_pytorch_fids_network(inception_state, inception_folder):
    from pytorch_fid import inception as module

    extractor = features.load_features("inception", inception_folder, check_hash=False)
    assert features.distance_name(extractor.name) != "FID", "unchecked weights are not the published ones"
    images = glyphs32(2).images
    rows = features.extract(images, extractor, block=2)
    with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: inception_state):
        theirs = module.InceptionV3().eval()(images)[0][:, :, 0, 0]
    assert rows.shape == (2, 2048) and rows.std() > 1e-3
    torch.testing.assert_close(rows, theirs)

    grey = images[:, :1]
    assert torch.equal(extractor.network(grey), extractor.network(grey.repeat(1, 3, 1, 1)))


def test_inception_file_is_found_where_documented(no_weights, monkeypatch, tmp_path):
    for place in ("argument", "variable", "hub"):
        (tmp_path / place).mkdir()
    file = lambda place: tmp_path / place / inception_v3.INCEPTION_FILE  # noqa: E731
    with pytest.raises(UserError, match=f"{inception_v3.INCEPTION_FILE}.*{inception_v3.INCEPTION_SHA256}.*put it at"):
        inception_v3.inception_file()

    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (hub / inception_v3.INCEPTION_FILE).touch()
    assert inception_v3.inception_file() == hub / inception_v3.INCEPTION_FILE
    monkeypatch.setenv(inception_v3.WEIGHTS_VARIABLE, str(tmp_path / "variable"))
    assert inception_v3.inception_file() == hub / inception_v3.INCEPTION_FILE, (
        "a folder of other weights is passed over"
    )
    file("variable").touch()
    assert inception_v3.inception_file() == file("variable")
    monkeypatch.setenv(inception_v3.WEIGHTS_VARIABLE, str(file("variable")))
    assert inception_v3.inception_file() == file("variable")
    file("argument").touch()
    assert inception_v3.inception_file(tmp_path / "argument") == file("argument")
    assert inception_v3.inception_file(file("argument")) == file("argument")
    with pytest.raises(UserError, match="argument weights leads to no Inception weights.*gone"):
        inception_v3.inception_file(tmp_path / "gone")
    monkeypatch.setenv(inception_v3.WEIGHTS_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=f"{inception_v3.WEIGHTS_VARIABLE} leads to no Inception weights.*gone"):
        inception_v3.inception_file()


def test_inception_refuses_other_files(inception_folder, tmp_path, monkeypatch):
    assert inception_v3.INCEPTION_FILE.endswith(f"-{inception_v3.INCEPTION_SHA256[:8]}.pth")
    path = inception_folder / inception_v3.INCEPTION_FILE
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"its SHA-256 is {found}, not {inception_v3.INCEPTION_SHA256}"):
        features.load_features("inception", path)
    monkeypatch.setattr(inception_v3, "INCEPTION_SHA256", found)
    assert features.load_features("inception", path).name == "inception"

    truncated, other = tmp_path / "truncated.pth", tmp_path / "other.pth"
    truncated.write_bytes(path.read_bytes()[:1000])
    torch.save({"weight": torch.zeros(3)}, other)
    for file in (truncated, other):
        with pytest.raises(UserError, match=f"{file.name} does not hold the weights of pytorch-fid's InceptionV3"):
            features.load_features("inception", file, check_hash=False)
