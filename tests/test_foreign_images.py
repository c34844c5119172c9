"""Images and statistics that other programs wrote, on both sides of evaluate: the right numbers, or what is wrong."""

import functools
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

from dmcmc_core.data import glyphs32, open_generated, open_images, to_uint8
from dmcmc_core.errors import UserError
from dmcmc_core.files import write_npz
from dmcmc_core.metrics import Extractor, evaluation, extract, statistics
from dmcmc_core.metrics.statistics_files import read_published
from dmcmc_core.workbench import cli

IMAGE = pytest.importorskip("PIL.Image")
PIXELS = Extractor("pixels", lambda x: x.flatten(1), "no weights")
MEANS = Extractor("means", lambda x: x.mean((2, 3)), "no weights")


@functools.cache
def grey(n: int, seed: int) -> np.ndarray:
    """(n, 5, 5, 1) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 1), np.uint8)


def folder_of(folder, pixels, ending="png"):
    """A folder with an image file of each, at three depths, in the order of their names."""
    for i, image in enumerate(pixels):
        path = folder / ("abc"[i * 3 // len(pixels)]) / f"{i:04d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        IMAGE.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return folder


def run_of(folder, pixels):
    """A folder as ``sample`` writes it."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"num": len(pixels)}))
    np.savez(folder / "shard-0.npz", arr_0=pixels)
    return folder


def forms(place, pixels):
    """The same images in every form, by what evaluate calls it."""
    place.mkdir()
    n = len(pixels)
    np.savez(place / f"samples_{n}x5x5x1.npz", pixels, np.arange(n) % 10)
    np.savez(place / "grey.npz", pixels[..., 0])
    np.savez_compressed(place / "small.npz", arr_0=pixels)
    np.save(place / "images.npy", pixels)
    np.save(place / "grey.npy", pixels[..., 0])
    arrays = (f"samples_{n}x5x5x1.npz", "grey.npz", "small.npz", "images.npy", "grey.npy")
    return {place / name: f"{n} images" for name in arrays} | {
        run_of(place / "run", pixels): f"{n} images in 1 shard",
        folder_of(place / "pngs", pixels): f"{n} PNG files",
    }


def test_every_form_of_the_same_images_gives_the_same_numbers_on_both_sides(tmp_path):
    x, y = forms(tmp_path / "x", grey(40, 0)), forms(tmp_path / "y", grey(50, 1))
    evaluate = functools.partial(evaluation.evaluate, features=PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
    told = ("reference", "images_source", "reference_source", "reference_content")
    numbers = lambda result: {name: value for name, value in result.items() if name not in told}  # noqa: E731
    first = evaluate(next(iter(x)), next(iter(y)))
    assert first["frechet"] > 0 and (first["n"], first["reference_n"]) == (40, 50)
    for path, source in x.items():
        result = evaluate(path, next(iter(y)))
        assert numbers(result) == numbers(first) and result["images_source"] == source
    for path, source in y.items():
        result = evaluate(next(iter(x)), path)
        assert numbers(result) == numbers(first) and result["reference_source"] == source


def test_evaluate_of_two_folders_prints_json_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "root", lambda: tmp_path)
    colour = to_uint8(glyphs32(140).images)
    folder_of(tmp_path / "a", colour[:70])
    np.savez(tmp_path / "b.npz", colour[70:])
    words = ["evaluate", str(tmp_path / "a"), "--reference", str(tmp_path / "b.npz"), "--features", "random-conv"]
    assert cli.main([*words, "--bootstrap", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["reference_n"], result["images_source"]) == (70, 70, "70 PNG files")
    assert cli.main([*words, "--bootstrap", "0"]) == 0
    assert ["images_source", "70 PNG files"] in [line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n")]


def test_the_protocol_of_the_paper_takes_png_files_as_it_takes_shards(tmp_path):
    colour = to_uint8(glyphs32(40).images)
    evaluate = functools.partial(
        evaluation.evaluate, features=MEANS, bootstrap=0, cache_dir=tmp_path / "cache", protocol="dmcmc"
    )
    np.savez(tmp_path / "y.npz", to_uint8(glyphs32(40).images)[:, ::-1])
    shards, files = (make(tmp_path / make.__name__, colour) for make in (run_of, folder_of))
    one, two = evaluate(shards, tmp_path / "y.npz"), evaluate(files, tmp_path / "y.npz")
    assert one["frechet"] == two["frechet"] != evaluate(files, tmp_path / "y.npz", protocol="lossless")["frechet"]
    assert two["encoding"] == "jpeg (quality 75, 4:2:0) of given levels"


def test_the_encoding_of_a_run_is_that_of_its_manifest_as_a_reference_too(tmp_path):
    run = run_of(tmp_path / "run", grey(40, 0))
    (run / "manifest.json").write_text('{"num": 40, "encoding": "jpeg (quality 90)"}')
    np.savez(tmp_path / "y.npz", grey(40, 1))
    evaluate = functools.partial(evaluation.evaluate, features=PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
    for sides in ((run, tmp_path / "y.npz"), (tmp_path / "y.npz", run)):
        with pytest.raises(UserError, match="distances would show the encoding"):
            evaluate(*sides)
    assert not evaluate(run, run)["mixed_encodings"]


def test_hidden_files_do_not_count_and_links_are_followed_once(tmp_path):
    folder, pixels = folder_of(tmp_path / "pngs", grey(9, 0)), grey(12, 0)
    for name in ("._0000.png", ".hidden.png", ".cache/0000.png", "a/._0001.png", "__MACOSX/._x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7")
    (folder / "notes.txt").write_text("no image")
    other = folder_of(tmp_path / "elsewhere", pixels[9:])
    (folder / "z").symlink_to(other)
    (folder / "again").symlink_to(folder / "a")
    (folder / "b" / "up").symlink_to(folder)
    (other / "back").symlink_to(folder)
    images = open_generated(folder).images
    assert images.source == "12 PNG files" and (images.uint8(slice(None)).permute(0, 2, 3, 1).numpy() == pixels).all()
    (tmp_path / "link").symlink_to(folder)
    assert len(open_images(tmp_path / "link")) == 12
    (folder / "c" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="gone.png cannot be read as a PNG or JPEG image"):
        open_images(folder)


def test_a_folder_is_grey_where_all_of_its_images_are(tmp_path):
    pixels = grey(4, 0)
    folder_of(tmp_path / "grey", pixels)
    assert open_images(tmp_path / "grey").shape == (4, 1, 5, 5)
    IMAGE.fromarray(np.repeat(pixels[1], 3, -1)).save(tmp_path / "grey" / "a" / "0001.png")
    mixed = open_images(tmp_path / "grey")
    assert mixed.shape == (4, 3, 5, 5)
    assert (mixed.uint8(slice(None)).numpy() == np.repeat(pixels, 3, -1).transpose(0, 3, 1, 2)).all()


def test_the_encoding_is_that_of_the_content_and_not_of_the_name(tmp_path):
    folder = folder_of(tmp_path / "jpegs", to_uint8(glyphs32(40).images), "jpg")
    images = open_generated(folder)
    assert (images.encoding, images.images.source) == ("jpeg", "40 JPEG files")
    evaluate = functools.partial(evaluation.evaluate, features=MEANS, bootstrap=0, cache_dir=tmp_path / "cache")
    np.savez(tmp_path / "y.npz", to_uint8(glyphs32(40).images))
    with pytest.raises(UserError, match="are jpeg and those of .* are lossless.*allow_mixed_encodings"):
        evaluate(folder, tmp_path / "y.npz")
    assert evaluate(folder, folder)["frechet"] < 1e-9
    assert evaluate(folder, tmp_path / "y.npz", allow_mixed_encodings=True)["mixed_encodings"]
    with pytest.raises(UserError, match="holds JPEG files: protocol 'dmcmc' would send them through JPEG twice"):
        evaluate(folder, tmp_path / "y.npz", protocol="dmcmc")
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_suffix(".png"))
    assert open_generated(folder).encoding == "jpeg"


def _png(width, height, rows=None):
    """A PNG file of black RGB pixels of 16 bits, with all its rows or so many."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    rows = zlib.compress(bytes(1 + 6 * width) * (height if rows is None else rows))
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_what_is_no_set_of_images_is_refused_by_name(tmp_path):
    def refused(change, words):
        folder = folder_of(tmp_path / str(len(list(tmp_path.iterdir()))), grey(3, 0))
        change(folder)
        with pytest.raises(UserError, match=words):
            open_generated(folder)

    save = lambda image, name: lambda folder: image.save(folder / name)  # noqa: E731
    small = IMAGE.new("L", (5, 5))
    refused(save(IMAGE.new("L", (4, 3)), "c/x.png"), "different sizes, .*png of 5x5 and c/x.png of 4x3: one size")
    refused(save(small.convert("RGBA"), "x.png"), "x.png is of Pillow's mode RGBA")
    deep = bytearray(_png(3, 3))
    refused(lambda folder: (folder / "x.png").write_bytes(deep), "x.png is a PNG of 16 bits: 8 bits are needed")
    refused(save(small, "x.webp"), "x.webp is of a format that is not read: PNG or JPEG files are needed")
    refused(lambda folder: small.save(folder / "x.png", format="webp"), "x.png cannot be read as a PNG or JPEG image")
    giant = bytes(_png(12_000, 12_000, 1))  # more pixels than Pillow takes without a warning
    refused(lambda folder: (folder / "x.png").write_bytes(giant), "x.png cannot be read .* exceeds limit of")
    bare = bytearray(_png(700, 700, 1))
    bare[24] = 8  # bits; what Pillow then finds of 700 rows is two
    bare[29:33] = struct.pack(">I", zlib.crc32(bare[12:29]))
    refused(lambda folder: (folder / "x.png").write_bytes(bare), "x.png is too short for its 700x700 pixels")
    refused(lambda folder: (folder / "x.jpg").write_bytes(b""), "x.jpg cannot be read as a PNG or JPEG image")
    cut = folder_of(tmp_path / "cut", grey(3, 0))
    (cut / "a" / "0000.png").write_bytes((cut / "a" / "0000.png").read_bytes()[:50])
    with pytest.raises(UserError, match="0000.png cannot be read as an image, it may be truncated"):
        open_images(cut)[:]
    (tmp_path / "zipped").mkdir()
    np.savez(tmp_path / "zipped" / "samples_3x5x5x1.npz", grey(3, 0))
    with pytest.raises(UserError, match=r"holds no shards.* \(it holds samples_3x5x5x1.npz: give the path"):
        open_images(tmp_path / "zipped")
    (tmp_path / "images.zip").write_bytes(b"PK")
    for read in (open_images, open_generated):
        with pytest.raises(UserError, match="images.zip is no folder of images, nor an NPZ or NPY file"):
            read(tmp_path / "images.zip")
    with pytest.raises(UserError, match="unknown image set .*: did you mean 'digits-train'"):
        open_images("digits-trian")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros((3, 1, 9, 9), np.uint8)}, r"uint8 of shape \(3, 1, 9, 9\).*channels last"),
        ({"arr_0": np.zeros((9, 9, 3), np.uint8)}, r"uint8 of shape \(9, 9, 3\)"),
        ({"arr_0": np.zeros((0, 9, 9, 3), np.uint8)}, r"uint8 of shape \(0, 9, 9, 3\)"),
        ({"arr_0": np.zeros((2, 9, 9, 1))}, "float64 of shape"),
        ({"arr_0": np.zeros(3), "arr_1": np.eye(3)}, r"float64 of shape \(3,\).* may also be statistics, mu"),
        ({"arr_0": grey(3, 0), "arr_1": np.arange(2)}, "2 classes arr_1 of 3 images arr_0"),
        ({"arr_0": grey(3, 0), "arr_1": grey(3, 1)}, "several arrays of images, arr_0, arr_1: arr_0 alone is needed"),
        ({"x": grey(3, 0)}, r"holds no array arr_0 but x uint8 \(3, 5, 5, 1\)"),
        ({"pool_4": np.zeros((9, 3), "f4")}, r"no array arr_0 but pool_4 float32 \(9, 3\): .*mu .*sigma .*pool_3"),
    ],
)  # fmt: skip
def test_arrays_of_anything_else_are_named(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    as_reference = functools.partial(evaluation.evaluate, run_of(tmp_path / "run", grey(9, 0)), features=PIXELS)
    for side in (open_generated, open_images, as_reference):
        with pytest.raises(UserError, match=words):
            side(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", arrays.get("arr_0", np.zeros((9, 3), "f4")))
    if len(arrays) == 1:
        with pytest.raises(UserError, match="x.npy is .*(uint8|float)"):
            open_images(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:70])
    with pytest.raises(UserError, match="x.npy cannot be read as an NPY file"):
        open_images(tmp_path / "x.npy")


def test_arrays_that_claim_more_than_they_hold_are_told_in_one_line(tmp_path):
    """Nothing is allocated for them; nor for members that hold a gigabyte and say that it is three numbers."""
    np.savez(tmp_path / "sound.npz", mu=np.zeros(3), sigma=np.eye(3))

    def refused(words, header=lambda text: text, numbers=lambda content: content):
        with zipfile.ZipFile(tmp_path / "sound.npz") as sound, zipfile.ZipFile(tmp_path / "a.npz", "w", 8) as broken:
            for member in sound.namelist():
                content = sound.read(member)
                length = len(header(content[10:128]))
                begin = b"\x93NUMPY\2\0" + length.to_bytes(4, "little")
                broken.writestr(member, begin + header(content[10:128]) + numbers(content[128:]))
        tracemalloc.start()
        with pytest.raises(UserError, match=words) as error:
            read_published(tmp_path / "a.npz")
        assert "\n" not in str(error.value) and len(str(error.value).replace(str(tmp_path), "")) < 300
        assert tracemalloc.get_traced_memory()[1] < 10**7
        tracemalloc.stop()

    for shape in (b"(3000000,)", b"(10**12,)", b"(-1,)"):
        refused("cannot be read as an NPZ", lambda text, shape=shape: text.replace(b"(3,)", shape))
    refused("does not hold the numbers of an array of shape", lambda text: text.replace(b"(3,)", b"(1000000000000,)"))
    refused("does not hold the numbers of an array", numbers=lambda content: content + bytes(2**25))
    refused("Header info length", lambda text: text + b" " * 10**5)
    torch.save({"mu": [0]}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    giant = b"\x80\x02}X\xff\xff\xff\xffmu"  # a name of four gigabytes
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:137] + giant)
    tracemalloc.start()
    with pytest.raises(UserError, match="a.pt cannot be read as a PyTorch file"):
        read_published(tmp_path / "a.pt")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"num": [1] * 10**4}))
    np.savez(tmp_path / "run" / "shard-0.npz", arr_0=grey(3, 0))
    with pytest.raises(UserError, match=r"how many images belong here, not \[1, 1, .{,60}$"):
        open_generated(tmp_path / "run")


def test_classes_beside_images_are_labels(tmp_path):
    np.savez(tmp_path / "x.npz", grey(5, 0), np.array([3, 1, 4, 1, 5]))
    assert open_images(tmp_path / "x.npz").labels.tolist() == [3, 1, 4, 1, 5]


def test_of_two_things_that_could_be_meant_the_result_says_which(tmp_path):
    x, y = grey(40, 0), grey(50, 1)
    evaluate = functools.partial(evaluation.evaluate, features=PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
    run = run_of(tmp_path / "run", x)
    np.savez(tmp_path / "y.npz", arr_0=y)
    alone = evaluate(run, tmp_path / "y.npz")
    np.savez(tmp_path / "both.npz", arr_0=y, mu=np.zeros(9), sigma=np.eye(9))  # as guided-diffusion's references
    both = evaluate(run, tmp_path / "both.npz")
    assert both["frechet"] == alone["frechet"] and both["kid"] == alone["kid"]
    assert both["reference_source"] == "50 images, arr_0; not used: mu, sigma"
    folder_of(run / "png", grey(7, 3))
    beside = evaluate(run, tmp_path / "y.npz")
    assert beside["frechet"] == alone["frechet"]
    assert beside["images_source"] == "40 images in 1 shard; not counted: 7 PNG and JPEG files beside them"
    assert evaluate(run / "png" / "..", tmp_path / "y.npz")["frechet"] == alone["frechet"]


def test_a_file_that_changes_under_its_name_gives_new_numbers(tmp_path):
    evaluate = functools.partial(evaluation.evaluate, features=PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
    for path in forms(tmp_path / "x", grey(40, 0)):
        run = run_of(tmp_path / f"run-{path.name}", grey(45, 2))
        before, changed = (evaluate(run, path), evaluate(path, run)), tmp_path / f"y-{path.name}"
        (tmp_path / "earlier.json").write_text(json.dumps(before[0]))
        assert evaluate(run, path, against=tmp_path / "earlier.json")["against"]["frechet"] == 0
        times = [(file, file.stat()) for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
        other = next(form for form in forms(changed, grey(40, 1)) if form.name == path.name)
        for file, stat in times:
            new = other if path.is_file() else other / file.relative_to(path)
            file.write_bytes(new.read_bytes())
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        after = evaluate(run, path), evaluate(path, run)
        for one, two in zip(before, after, strict=True):
            assert one["frechet"] != two["frechet"] and one["kid"] != two["kid"], path.name
        with pytest.raises(UserError, match=r"has changed since .*earlier.json was made"):
            evaluate(run, path, against=tmp_path / "earlier.json")


# ---- statistics


@pytest.fixture
def recorded(tmp_path):
    """A folder of samples, features of a reference, their mean and covariance, and the result against it."""
    run, y = run_of(tmp_path / "run", grey(40, 0)), torch.from_numpy(grey(50, 1)).permute(0, 3, 1, 2) / 255
    features = extract(y, PIXELS)
    mu, sigma = (value.numpy() for value in statistics(features))
    np.savez(tmp_path / "y.npz", grey(50, 1))
    whole = evaluation.evaluate(run, tmp_path / "y.npz", PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
    return run, features.numpy(), mu, sigma, whole


def test_statistics_under_every_published_name_give_the_distance_of_the_images(recorded, tmp_path):
    run, features, mu, sigma, whole = recorded
    np.savez(tmp_path / "pytorch-fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "chainer.npz", mean=mu, cov=sigma)
    np.savez(tmp_path / "row.npz", mu=mu[None], sigma=sigma)
    torch.save({"mu": torch.tensor(mu), "sigma": torch.tensor(sigma)}, tmp_path / "tensors.pt")
    torch.save({"mu": mu, "sigma": sigma}, tmp_path / "torch-fidelity.pt")  # as it saves them: NumPy's arrays
    for name in ("tensors", "torch-fidelity"):  # of torch before 1.6
        whole_file = torch.load(tmp_path / f"{name}.pt", weights_only=False)
        torch.save(whole_file, tmp_path / f"legacy-{name}.pt", _use_new_zipfile_serialization=False)
    for protocol in range(2, 6):
        both = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu[:2], "sigma": sigma[:2, :2]}}
        (tmp_path / f"edm2-{protocol}.pkl").write_bytes(pickle.dumps(both, protocol=protocol))
    big = {"mu": mu.astype(">f8"), "sigma": np.asfortranarray(sigma.astype(">f8"))}
    (tmp_path / "big-endian.pkl").write_bytes(pickle.dumps(big))
    sources = {
        "pytorch-fid.npz": "mu and sigma",
        "chainer.npz": "mean and cov",
        "row.npz": "mu and sigma",
        "tensors.pt": "mu and sigma",
        "torch-fidelity.pt": "mu and sigma",
        "legacy-tensors.pt": "mu and sigma",
        "legacy-torch-fidelity.pt": "mu and sigma",
        "big-endian.pkl": "mu and sigma",
    } | {f"edm2-{p}.pkl": "mu and sigma of fid; not used: fd_dinov2" for p in range(2, 6)}
    for name, source in sources.items():
        result = evaluation.evaluate(run, tmp_path / name, PIXELS, bootstrap=0, cache_dir=tmp_path / "cache")
        assert result["frechet"] == pytest.approx(whole["frechet"], rel=1e-12), name
        assert result["reference_source"] == source and result["kid"] is None and "precision" in result["missing"]


def test_features_themselves_serve_for_every_distance(recorded, tmp_path):
    run, features, mu, sigma, whole = recorded
    np.savez(tmp_path / "score_sde.npz", pool_3=features, logits=np.zeros((50, 4), "f4"))
    evaluate = functools.partial(evaluation.evaluate, run, bootstrap=0, cache_dir=tmp_path / "cache")
    result = evaluate(tmp_path / "score_sde.npz", PIXELS)
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage", "reference_n"):
        assert result[name] == pytest.approx(whole[name], rel=1e-12)
    assert result["reference_source"] == "50 features pool_3; not used: logits"
    with pytest.raises(UserError, match="score_sde.npz' is of 25 features, means has 1"):
        evaluate(tmp_path / "score_sde.npz", MEANS)
    np.savez(tmp_path / "few.npz", pool_3=features[:25])
    with pytest.raises(UserError, match="few.npz': 25 images are fewer than the 25 pixels features need"):
        evaluate(tmp_path / "few.npz", PIXELS)
    np.savez(tmp_path / "whole.npz", pool_3=np.zeros((50, 9), int))
    with pytest.raises(UserError, match=r"pool_3 of .*whole.npz is int64 .*floats \(n, d\) are needed"):
        evaluate(tmp_path / "whole.npz", PIXELS)


def test_what_holds_no_statistics_is_named_and_no_pickle_is_executed(recorded, tmp_path):
    run, features, mu, sigma, _ = recorded
    mark = tmp_path / "mark"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps({"mu": mu, "sigma": Harmful()}))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"fid_x": {"mu": mu}}))
    (tmp_path / "two.pkl").write_bytes(pickle.dumps({n: {"mu": mu, "sigma": sigma} for n in "ab"}))
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"mu": mu, "sigma": sigma})[:400])
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "text.pkl").write_bytes(pickle.dumps({"mu": "0", "sigma": sigma}))
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps({"mu": np.arange(9), "sigma": sigma}))
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "network.pt")
    torch.save(torch.zeros(3, 1, 3, 3), tmp_path / "tensor.pt")
    torch.save({"mu": Harmful(), "sigma": sigma}, tmp_path / "harmful.pt")
    for name, content in {"harmful": {"mu": Harmful(), "sigma": sigma}, "whole": {"mu": 3 * [0], "sigma": mu}}.items():
        torch.save(content, tmp_path / f"legacy-{name}.pt", _use_new_zipfile_serialization=False)
    for name, odd in {"expanded": torch.zeros(1).expand(10**6, 10**6), "complex": torch.zeros(2, 2).cfloat()}.items():
        torch.save({"mu": torch.zeros(2), "sigma": odd}, tmp_path / f"{name}.pt")
    np.savez(tmp_path / "twice.npz", mu=mu, sigma=sigma, mean=mu, cov=sigma)
    words = {
        "harmful.pkl": "posix.mkdir, which no data needs: it was not executed",
        "other.pkl": r"holds no statistics, but fid_x: mu \(d,\) and sigma",
        "two.pkl": "several statistics and none under 'fid', but a, b",
        "cut.pkl": "cannot be read as a pickle of plain values and arrays",
        "list.pkl": "holds a list and no statistics",
        "text.pkl": "mu of .* is a str: an array or a tensor",
        "whole.pkl": "an array that is not of float64 or float32",
        "network.pt": "holds no statistics, but conv.weight",
        "tensor.pt": "holds a tensor and no statistics",
        "harmful.pt": "posix.mkdir, which no checkpoint needs: it was not executed",
        "expanded.pt": r"a tensor of .*, torch.float32 of shape \(1000000, 1000000\), is no dense array",
        "complex.pt": "a tensor of .*, torch.complex64 of shape .* is no dense array",
        "legacy-harmful.pt": "which are never executed",
        "legacy-whole.pt": "mu of .* is a list: an array or a tensor",
        "twice.npz": "holds both mu and sigma and mean and cov",
        "nowhere.pt": "no such file",
    }
    for name, said in words.items():
        with pytest.raises(UserError, match=said) as error:
            evaluation.evaluate(run, tmp_path / name, PIXELS)
        assert "\n" not in str(error.value) and "image" not in str(error.value).replace(str(tmp_path), "")
    assert not mark.exists()
    pickle.loads((tmp_path / "harmful.pkl").read_bytes())
    assert mark.exists(), "the attack is a real one"
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    with pytest.raises(UserError, match="no array arr_0 but mu float64 .*, sigma float64 .*a reference may also be"):
        evaluation.evaluate(tmp_path / "stats.npz", tmp_path / "y.npz", PIXELS)


def test_mutated_files_of_statistics_and_images_are_refused_or_read(recorded, tmp_path):
    _, _, mu, sigma, _ = recorded
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}))
    torch.save({"mu": mu, "sigma": sigma}, tmp_path / "a.pt")
    write_npz(tmp_path / "a.npz", pool_3=np.float32(sigma))
    np.save(tmp_path / "a.npy", grey(3, 0))
    folder_of(tmp_path / "a", grey(3, 0))
    generator = np.random.default_rng(0)
    image = tmp_path / "a" / "a" / "0000.png"
    for path in (*(tmp_path / f"a.{ending}" for ending in ("pkl", "pt", "npz", "npy")), image):
        sound, seen = path.read_bytes(), 0
        for _ in range(250):
            broken = bytearray(sound)
            for place in generator.integers(0, min(len(sound), 400), 3):
                broken[place] = generator.integers(256)
            path.write_bytes(broken[: generator.integers(1, len(sound) + 1)] if generator.random() < 0.3 else broken)
            try:
                if path.suffix in (".npy", ".png"):
                    open_images(tmp_path / "a" if path == image else path)[:]
                else:
                    read_published(path)
            except UserError as error:
                seen += 1
                assert str(path.name) in str(error)
        assert seen > 50
        path.write_bytes(sound)
