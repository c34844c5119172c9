"""Published sets in their real formats: read lazily and exactly, refused in one sentence, never executed."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcmc_core import data, training
from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.data import from_uint8, load_images, open_images, to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.metrics import (
    evaluation,
    features,
    make_reference,
    measure,
    memorisation,
    published_statistics,
    random_features,
)
from dmcmc_core.report import testbed
from dmcmc_core.training import datasets
from dmcmc_core.workbench import doctor
from dmcmc_core.workbench.experiments import keys

CIFAR_TRAIN, CIFAR_TEST = 20, 6


def text(value: bytes) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(value)]) + value


def python2_batch(pixels: np.ndarray, labels: list[int], dtype: bytes = b"u1") -> bytes:
    """A file of CIFAR-10 as Python 2 wrote it: protocol 2, byte strings, the array rebuilt by numpy's own functions."""
    rows = pixels.reshape(len(pixels), -1)
    shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape) + b"\x86"
    raw = b"T" + struct.pack("<i", rows.nbytes) + rows.tobytes()
    kind = b"cnumpy\ndtype\n" + text(dtype) + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + shape + kind + b"K\x00tb\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    names = b"](" + b"".join(text(b"a_s_%06d.png" % n) for n in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers
    return b"\x80\x02}(" + entries + text(b"data") + array + text(b"filenames") + names + b"u."


def write_batch(path: Path, content: bytes, monkeypatch) -> None:
    path.write_bytes(content)
    monkeypatch.setitem(data.CIFAR10_MD5, path.name, hashlib.md5(content).hexdigest())


def shrink(monkeypatch, name: str, *shape: int) -> None:
    monkeypatch.setitem(data.DATASETS, name, data.DATASETS[name]._replace(shape=shape))


@pytest.fixture
def no_data(monkeypatch, tmp_path) -> Path:
    """An empty DMCMC_DATA, and a checkout without exp/paper."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv(data.VARIABLE, str(place))
    for module in (data.published, evaluation):
        monkeypatch.setattr(module, "root", lambda: tmp_path)
    return place


@pytest.fixture
def cifar(no_data, monkeypatch) -> tuple[Path, np.ndarray, np.ndarray]:
    """cifar-10-batches-py with 20 + 6 images; its folder, all pixels, all labels."""
    folder = no_data / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (CIFAR_TRAIN + CIFAR_TEST, 3, 32, 32), np.uint8)
    labels = np.arange(len(pixels)) * 7 % 10
    parts = np.split(np.arange(len(pixels)), range(4, CIFAR_TRAIN + 1, 4))
    for name, part in zip(data.CIFAR10_MD5, parts, strict=True):
        write_batch(folder / name, python2_batch(pixels[part], labels[part].tolist()), monkeypatch)
    shrink(monkeypatch, "cifar10-train", CIFAR_TRAIN, 3, 32, 32)
    shrink(monkeypatch, "cifar10-test", CIFAR_TEST, 3, 32, 32)
    return folder, pixels, labels


@pytest.fixture
def faces(no_data, monkeypatch) -> tuple[Path, np.ndarray]:
    """celebahq-256 with five PNG images of 8x8 in nested folders; the folder, pixels in the order of the names."""
    image = pytest.importorskip("PIL.Image")
    folder = no_data / "celebahq-256"
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 8, 8), np.uint8)
    for name, values in zip(["00/a.png", "00/b.PNG", "01/deep/a.png", "c.png", "d.png"], pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(values.transpose(1, 2, 0)).save(folder / name, format="png")
    (folder / "README.txt").write_text("no image")
    shrink(monkeypatch, "celebahq-256", 5, 3, 8, 8)
    return folder, pixels


def test_cifar10_is_read_exactly(cifar):
    folder, pixels, labels = cifar
    train, test = open_images("cifar10-train"), open_images("cifar10-test")
    assert train.shape == (20, 3, 32, 32) and len(test) == 6
    blocks = list(train.blocks(8))
    assert [len(b) for b in blocks] == [8, 8, 4] and blocks[0].dtype == torch.uint8
    assert (torch.cat(blocks).numpy() == pixels[:CIFAR_TRAIN]).all() and (
        test.uint8(slice(None)).numpy() == pixels[20:]
    ).all()
    assert train.labels.tolist() == labels[:CIFAR_TRAIN].tolist() and train.labels.dtype == torch.int64
    some = torch.tensor([19, 0, 3, 3])
    assert torch.equal(train[some], torch.from_numpy(pixels[[19, 0, 3, 3]]).float() / 255)
    assert torch.equal(load_images("cifar10-test"), test[:]) and torch.equal(torch.cat([*test.split(4)]), test[:])
    centred = train.in_range(-1, 1)[:]
    assert centred.min() == -1 and centred.max() == 1
    assert (to_uint8(centred, (-1, 1)) == pixels[:CIFAR_TRAIN].transpose(0, 2, 3, 1)).all()


def test_torchvision_reads_the_same(cifar, monkeypatch):
    theirs = pytest.importorskip("torchvision.datasets").CIFAR10
    folder, pixels, labels = cifar
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for name, train in (("cifar10-train", True), ("cifar10-test", False)):
        read, ours = theirs(folder.parent, train=train, download=False), open_images(name)
        assert (read.data == to_uint8(ours[:])).all() and read.targets == ours.labels.tolist()


def test_no_pickle_is_executed(cifar, tmp_path, monkeypatch):
    folder, pixels, labels = cifar
    mark = tmp_path / "mark"
    whole = python2_batch(pixels[:4], [0, 1, 2, 3])
    system = b"cos\nsystem\n(U" + bytes([len(f"touch {mark}")]) + f"touch {mark}".encode() + b"tR0"
    bad = {
        "it names os.system": whole[:2] + system + whole[2:],
        "not of uint8": python2_batch(pixels[:4], [0, 1, 2, 3], b"O8"),
        "cannot be read as a batch": whole[:-400],
        "labels are not": python2_batch(pixels[:4], [0, 1, 2]),
        "holds 19 images, cifar10-train has 20": python2_batch(pixels[:3], [0, 1, 2]),
    }
    for words, content in bad.items():
        write_batch(folder / "data_batch_3", content, monkeypatch)
        images = open_images("cifar10-train")
        with pytest.raises(UserError, match=words) as error:
            images[:1]
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists()
    assert pickle.loads(bad["it names os.system"], encoding="bytes") and mark.exists(), "the attack is a real one"


def test_other_or_missing_batches_are_refused(cifar):
    folder, *_ = cifar
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match="data_batch_2 is not the published file of CIFAR-10, it may be truncated: its MD5"
    ):
        load_images("cifar10-train")
    path.unlink()
    with pytest.raises(UserError, match="lacks data_batch_2 of cifar10-train"):
        open_images("cifar10-train")
    assert len(open_images("cifar10-test")) == 6


def test_image_files_are_read_in_the_order_of_their_names(faces):
    folder, pixels = faces
    images = open_images("celebahq-256")
    assert (images.uint8(slice(None)).numpy() == pixels).all() and images.shape == (5, 3, 8, 8)
    (folder / "d.png").unlink()
    with pytest.raises(UserError, match="holds 4 PNG and JPEG images, celebahq-256 has 5"):
        open_images("celebahq-256")
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes()[:60])
    images = open_images("celebahq-256")
    assert images[:4].shape == (4, 3, 8, 8), "the broken one is not asked for"
    with pytest.raises(UserError, match="d.png cannot be read as an image, it may be truncated"):
        images[:]
    with pytest.raises(UserError, match="has no labels"):
        images.labels  # noqa: B018


def test_images_are_resized_only_if_asked(faces):
    from PIL import Image

    folder, pixels = faces
    large = Image.fromarray(pixels[0].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.NEAREST)
    large.save(folder / "00/a.png")
    with pytest.raises(UserError, match="a.png is 16x16, celebahq-256 is 8x8: celebahq-256:FILTER resizes.*lanczos"):
        open_images("celebahq-256")
    resized = open_images("celebahq-256:box")
    assert (resized.uint8(slice(None)).numpy() == pixels).all(), "the mean of four equal pixels"
    assert resized.recipe()["resize"] == "box" and resized.name == "celebahq-256:box"
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        open_images("celebahq-256:bilinea")
    with pytest.raises(UserError, match="cifar10-train is never resized"):
        open_images("cifar10-train:box")
    Image.fromarray(pixels[0].transpose(1, 2, 0)).resize((16, 8)).save(folder / "00/a.png")
    with pytest.raises(UserError, match="16x8.*distort"):
        open_images("celebahq-256:box")
    Image.fromarray(pixels[0, 0]).convert("RGBA").save(folder / "00/a.png")
    with pytest.raises(UserError, match="mode RGBA"):
        open_images("celebahq-256")


@pytest.mark.parametrize("name", data.DATASETS)
def test_a_missing_set_is_one_sentence(no_data, name, monkeypatch):
    about = data.DATASETS[name]
    with pytest.raises(UserError) as error:
        load_images(name)
    told = str(error.value)
    for part in (
        about.folder,
        str(no_data),
        str(no_data.parent / "exp" / "paper"),
        about.source,
        about.fetch,
        data.VARIABLE,
    ):
        assert part in told
    assert "\n" not in told and list(no_data.iterdir()) == []
    found = {f.name: f for f in doctor._published()}
    assert not found[name].found and found[name].detail == told and name in found[name].cost


def test_sets_are_found_in_either_place(faces, monkeypatch):
    folder, pixels = faces
    paper = folder.parent.parent / "exp" / "paper"
    paper.mkdir(parents=True)
    folder.rename(paper / folder.name)
    assert open_images("celebahq-256").files[0] == paper / folder.name
    monkeypatch.delenv(data.VARIABLE)
    assert (open_images("celebahq-256").uint8(slice(None)).numpy() == pixels).all()
    found = {f.name: f for f in doctor._published()}["celebahq-256"]
    assert found.found and found.detail.startswith(f"5 images in {paper / folder.name}; from https://")


def test_a_set_is_known_by_its_content_where_that_is_cheap(faces, monkeypatch):
    """Other pixels in files of the same names and sizes are another set; of a large set none are read."""
    path = sorted(faces[0].rglob("*.png"))[0]
    sound, cheap = path.read_bytes(), keys.set_key("celebahq-256")
    with monkeypatch.context() as patch:
        patch.setattr(keys, "CHEAP", 100)
        large = keys.set_key("celebahq-256")
        path.write_bytes(sound[:-1] + b"x")  # at the end of the file, which no reader looks at
        assert keys.set_key("celebahq-256") == large and large.endswith("of the names and sizes of its files alone")
    assert len(cheap) == 64 and keys.set_key("celebahq-256") != cheap
    path.write_bytes(sound)
    assert keys.set_key("celebahq-256") == cheap


def test_download_leaves_all_or_nothing(no_data, monkeypatch):
    utils = pytest.importorskip("torchvision.datasets.utils")

    def fails(url, root, filename, md5):
        (root_ := Path(root) / "cifar-10-batches-py").mkdir()
        (root_ / "data_batch_1").write_text("half")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_and_extract_archive", fails)
    with pytest.raises(UserError, match="cifar-10-python.tar.gz could not be fetched.*corrupted"):
        data.download_cifar10()
    assert list(no_data.iterdir()) == []
    monkeypatch.setattr(
        utils, "download_and_extract_archive", lambda url, root, **_: (Path(root) / "cifar-10-batches-py").mkdir()
    )
    assert data.download_cifar10() == no_data / "cifar-10-batches-py"
    assert [p.name for p in no_data.iterdir()] == ["cifar-10-batches-py"]
    monkeypatch.setattr(utils, "download_and_extract_archive", fails)
    assert data.download_cifar10().is_dir(), "what is there is not fetched again"


# ---- references


MEANS = features.Extractor("means", lambda x: x.mean((2, 3)), "hash of no weights")


def test_a_reference_is_computed_once_per_recipe(cifar, tmp_path, monkeypatch):
    folder, pixels, _ = cifar
    cache = tmp_path / "cache"
    calls = []
    means = MEANS._replace(network=lambda x: calls.append(1) or x.mean((2, 3)))
    make = lambda **more: make_reference(  # noqa: E731
        open_images("cifar10-train"), more.pop("features", means), "x", **more
    )
    plain, first, again = make(), make(cache_dir=cache), make(cache_dir=cache)
    assert len(calls) == 2 and len(list(cache.iterdir())) == 1
    in_memory = make_reference(load_images("cifar10-train"), MEANS, "x")
    for reference in (first, again, in_memory):
        assert torch.equal(reference.features[:], plain.features)
        for a, b in zip(plain[4:], reference[4:], strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
    kept = next(cache.iterdir())
    recipe = (kept / "recipe.json").read_text()
    for part in ("cifar10-train", "means", "hash of no weights", open_images("cifar10-train").recipe()["sha256"]):
        assert part in recipe
    with np.load(kept / "statistics.npz") as file:  # in the form that pytorch-fid writes and reads
        assert (file["mu"] == plain.mu.numpy()).all() and (file["sigma"] == plain.cov.numpy()).all()

    for name in ("features.npy", "statistics.npz", "radii-5.npz", "within.npz"):
        calls.clear()
        (kept / name).write_bytes((kept / name).read_bytes()[:-100])
        made = make(cache_dir=cache)
        assert torch.equal(made.features[:], plain.features) and made.within == plain.within
        assert torch.equal(made.cov, plain.cov) and torch.equal(made.radii, plain.radii)
        assert len(calls) == (name == "features.npy"), "a broken file is not believed"
    calls.clear()
    assert not torch.equal(make(cache_dir=cache, k=3).radii, plain.radii) and not calls
    make(features=means._replace(weights="others"), cache_dir=cache)
    write_batch(folder / "data_batch_1", python2_batch(pixels[4:8], [0, 0, 0, 0]), monkeypatch)
    assert not torch.equal(make(cache_dir=cache).features[:], plain.features)
    assert len(calls) == 2 and len(list(cache.iterdir())) == 3
    make(features=means._replace(weights=""), cache_dir=cache)
    assert len(list(cache.iterdir())) == 3, "features of unknown weights are not kept"


def test_evaluate_and_testbed_take_the_names(cifar, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"num": 9}')
    images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "shard-0.npz", arr_0=to_uint8(images))
    result = evaluation.evaluate(folder, "cifar10-test", MEANS)
    assert result["reference"] == "cifar10-test" and result["reference_n"] == 6
    assert len(list((tmp_path / "exp" / "cache").iterdir())) == 2
    reference = make_reference(load_images("cifar10-test"), MEANS, "cifar10-test")
    assert result.items() >= measure(images, reference).items()
    seen = memorisation(from_uint8(to_uint8(images)), load_images("cifar10-train"), load_images("cifar10-test"))
    assert result["memorisation"] == seen._asdict()

    model = EmpiricalData(load_images("cifar10-test"))
    bed = testbed.load(model, MEANS, "cifar10-test", "cifar10-train", tmp_path / "bed")
    assert torch.equal(bed.heldout, load_images("cifar10-test")) and len(bed.train) == 20
    assert bed.floor(9, [0, 1]).mean > 0 and bed.copies(bed.train[:5])["copies"] == 1


def test_encodings_are_not_mixed_unawares(faces, tmp_path):
    folder, pixels = faces
    image = pytest.importorskip("PIL.Image")
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"num": 9}')
    np.savez(run / "shard-0.npz", arr_0=np.random.default_rng(2).integers(0, 256, (9, 8, 8, 3), np.uint8))
    evaluate = lambda **more: evaluation.evaluate(run, "celebahq-256", TWO, **more)  # noqa: E731
    TWO = features.Extractor("two", lambda x: x.mean((2, 3))[:, :2], "no weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(make_reference.__kwdefaults__, "k", 2)
        pure = evaluate()
        assert (pure["encoding"], pure["reference_encoding"], pure["mixed_encodings"]) == (*["lossless"] * 2, False)
        published = evaluate(protocol="dmcmc")
        assert published["encoding"] == "jpeg (quality 75, 4:2:0) of rounded levels" and published["mixed_encodings"]
        assert published["frechet"] != pure["frechet"] and published["reference_encoding"] == "lossless"

        (run / "manifest.json").write_text('{"num": 9, "encoding": "jpeg"}')
        with pytest.raises(UserError, match="are jpeg and those of 'celebahq-256' are lossless.*--allow-mixed"):
            evaluate()
        (run / "manifest.json").write_text('{"num": 9, "plan": {"cast": "truncate"}}')
        (folder / "d.png").unlink()
        image.fromarray(pixels[4].transpose(1, 2, 0)).save(folder / "d.jpg")
        with pytest.raises(UserError, match="are lossless and those of 'celebahq-256' are jpeg and lossless"):
            evaluate()
        for path in folder.rglob("*.[pP][nN][gG]"):
            image.open(path).save(path.with_suffix(".jpeg"))
            path.unlink()
        with pytest.raises(UserError, match="are lossless and those of 'celebahq-256' are jpeg:"):
            evaluate()
        mixed, same = evaluate(allow_mixed_encodings=True), evaluate(protocol="dmcmc")
        assert mixed["mixed_encodings"] and mixed["reference_encoding"] == "jpeg"
        assert same["encoding"] == "jpeg (quality 75, 4:2:0) of truncated levels" and not same["mixed_encodings"]


def test_a_large_reference_stays_on_disk(faces, tmp_path, monkeypatch):
    model = EmpiricalData(torch.zeros(2, 3, 8, 8))
    mean = features.Extractor("mean", lambda x: x.mean((1, 2, 3))[:, None])
    monkeypatch.setitem(make_reference.__kwdefaults__, "k", 2)
    small = testbed.load(model, mean, "celebahq-256", cache_dir=tmp_path)._replace(model=None)
    monkeypatch.setattr(testbed, "IN_MEMORY", 100)
    large = testbed.load(model, mean, "celebahq-256", cache_dir=tmp_path)._replace(model=None)
    assert isinstance(small.heldout, torch.Tensor) and isinstance(large.heldout, data.ImageSet)
    assert large.floor(9, [0]) == small.floor(9, [0])


def test_statistics_alone_serve_for_the_frechet_distance(tmp_path):
    y = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    reference = make_reference(y, MEANS)
    path = tmp_path / "stats.npz"
    np.savez(path, mu=reference.mu, sigma=reference.cov)
    published = measure(x, published_statistics(path, MEANS))
    whole = measure(x, reference)
    assert published["frechet"] == whole["frechet"] and published["n"] == 20 and published["reference_n"] is None
    others = {"kid", "precision", "recall", "density", "coverage"}
    assert all(published[name] is None and name in published["missing"] for name in others)
    assert published.keys() == whole.keys() | {"missing"}

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"num": 20}')
    np.savez(folder / "shard-0.npz", arr_0=to_uint8(x))
    result = evaluation.evaluate(folder, path, MEANS)
    assert result.items() >= published.items() and result["reference_encoding"] is None
    assert result["blocks"]["frechet"]["mean"] > 0 and result["blocks"]["kid"] is result["classes"] is None
    with pytest.raises(UserError, match="stats.npz' is of 3 features, random-conv has 64"):
        evaluation.evaluate(folder, path, "random-conv")
    np.savez(path, mu=reference.mu, sigma=reference.cov[:2])
    with pytest.raises(UserError, match=r"sigma of .*stats.npz must have the shape \(3, 3\)"):
        evaluation.evaluate(folder, path, MEANS)
    np.savez(path, mu=reference.mu)
    with pytest.raises(UserError, match="holds no array arr_0"):
        evaluation.evaluate(folder, path, MEANS)


def test_weights_of_named_features_are_part_of_the_recipe():
    a, b = features.load_features("random-conv"), features.load_features("random-conv")
    assert a.weights == b.weights and len(a.weights) == 64
    assert (
        features.weights_sha256(random_features.RandomConv(3, seed=1))
        != a.weights
        == features.weights_sha256(random_features.RandomConv(3))
    )


def test_cifar10_can_be_trained_on(cifar):
    config = training.make_config("score", {"name": "x", "steps": 1, "data": "cifar10-train"})
    seen, unseen = datasets.seen_and_unseen(config)
    assert torch.equal(seen.images, load_images("cifar10-train")) and len(seen.labels) == 20 and len(unseen.images) == 6
