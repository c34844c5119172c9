"""Training on pictures: score embedding and its baselines, their profiles, and the report of a run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dmcmc_core import load_model, score_embedding, training
from dmcmc_core.errors import UserError
from dmcmc_core.files import read_npz
from dmcmc_core.metrics import crossings, mse, ssim
from dmcmc_core.report import training_report
from dmcmc_core.training import diffusion, embedded, loop, pictures, profile
from dmcmc_core.workbench import cli

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs lie beside a checkout only")
NET = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.2, "min_group": 4}
COMMON = {
    "pictures": "few",
    "images": 2,
    "size": 8,
    "net": NET,
    "steps": 9,
    "batch": 6,
    "lr": 1.0e-3,
    "log_every": 1,
    "save_every": 0.0,
    "profile_steps": 4,
}
EMBEDDED = {"name": "tiny", **COMMON, "sigma": 2.0, "times": 4, "tol": 1.0e-6}
BASELINE = {"name": "tiny", **COMMON, "times": 10, "beta_max": 0.3, "warmup": 4, "ema": 0.9}
KINDS = {"embedded": EMBEDDED, "ddpm": BASELINE, "ddim": BASELINE}


def smooth(count, size, seed=0, channels=3):
    """Pictures as the reference outputs have them: smooth, random, each from 0 to 1."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=rng)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "load_pictures", lambda name, count, size, seed: smooth(count, size, seed))


def write(folder, config):
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_rows(folder):
    with (folder / "tiny.profile.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of each kind, profiled, and its folder."""
    folders = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "load_pictures", lambda name, count, size, seed: smooth(count, size, seed))
        for kind, config in KINDS.items():
            folders[kind] = tmp_path_factory.mktemp(kind)
            training.train(kind, write(folders[kind], config), progress=False, profile=True)
    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_denoiser_its_profile_and_its_samples(finished, kind):
    folder = finished[kind]
    ends = ["log", "profile.csv", "safetensors", "samples.npz", "yaml", *["fields.safetensors"] * (kind == "embedded")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"tiny.{end}" for end in ends)
    model = load_model(folder / "tiny.safetensors")
    low, high = (0, 1) if kind == "embedded" else (-1, 1)
    assert model.data_range == (low, high) and model.card["data"] == "few"
    assert model(torch.zeros(3, 3, 8, 8), torch.ones(())).isfinite().all()
    rows = read_rows(folder)
    assert [int(row["step"]) for row in rows] == [4, 8, 9], "every four steps, and at the end"
    assert [int(row["images_seen"]) for row in rows] == [24, 48, 54]
    left = read_npz(folder / "tiny.samples.npz")
    images, samples = (torch.from_numpy(left[name]) for name in ("images", "samples"))
    assert left["frames"].shape == (5, 2, 3, 8, 8) and np.array_equal(left["frames"][-1], left["samples"])
    for i in (0, 1):
        assert float(rows[-1][f"mse_{i + 1}"]) == pytest.approx(mse(images[i], samples[i]), abs=1e-6)
        assert float(rows[-1][f"ssim_{i + 1}"]) == pytest.approx(ssim(images[i], samples[i]), abs=1e-6)
    assert float(rows[-1]["ssim"]) == pytest.approx((float(rows[-1]["ssim_1"]) + float(rows[-1]["ssim_2"])) / 2)
    seconds = [float(row["train_seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert (float(rows[0]["solve_seconds"]) > 0) == (kind == "embedded")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_of_a_run_answers_as_its_sampler_asks(finished, kind):
    """The first picture's score at t = 0.4, and the noise at the fourth of ten times."""
    model, x = load_model(finished[kind] / "tiny.safetensors"), torch.rand(2, 3, 8, 8)
    if kind == "embedded":
        t = torch.full((2,), 0.4)
        sigma = score_embedding.std(t[0], 2.0)
        time = score_embedding.network_time(t, 0, 2, embedding="linear", multiplier=1.0, sampling=True)
        wanted = x + sigma**2 * pictures.raw(model.net, x, time)
    else:
        bar = diffusion.ddpm.alpha_bars(diffusion.ddpm.linear_betas(1e-4, 0.3, 10))[3].float()
        sigma = (1 / bar - 1).sqrt()
        wanted = x - sigma * pictures.raw(model.net, bar.sqrt() * x, torch.full((2,), 3.0))
    assert torch.allclose(model(x, sigma), wanted, atol=1e-5)


def test_fields_are_those_of_the_solve(finished):
    fields = load_file(finished["embedded"] / "tiny.fields.safetensors")
    images = smooth(2, 8)
    for i in (0, 1):
        m0 = score_embedding.initial_field(images[i])
        field = score_embedding.solve(m0, sigma=2.0, steps=4, tol=1e-6)
        assert torch.allclose(fields["m"][i], field.m, atol=1e-9) and torch.allclose(fields["t"], field.t)
        assert torch.allclose(fields["score"][i], field.score, atol=1e-9) and fields["passes"][i] == field.passes


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_changes_no_weight(finished, tmp_path, kind):
    result = training.train(kind, write(tmp_path, KINDS[kind]), progress=False)
    assert same(load_file(result), load_file(finished[kind] / "tiny.safetensors"))
    assert not (tmp_path / "tiny.profile.csv").exists() and (tmp_path / "tiny.samples.npz").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_continues_to_the_same_weights_and_the_same_profile(finished, tmp_path, monkeypatch, kind):
    path, row = write(tmp_path, KINDS[kind]), profile._row

    def crash_at_the_second(config, run, *rest):
        if run.step == 8:
            raise RuntimeError("the machine stops")
        return row(config, run, *rest)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stops"):
        patched.setattr(profile, "_row", crash_at_the_second)
        training.train(kind, path, progress=False, profile=True)
    state = torch.load(tmp_path / "tiny.state", weights_only=True)
    assert state["step"] == 7 and [row["step"] for row in state["profile"]] == [4]
    assert not (tmp_path / "tiny.safetensors").exists() and not (tmp_path / "tiny.samples.npz").exists()
    if kind == "embedded":
        monkeypatch.setattr(score_embedding, "solve_many", None)  # it has solved, and does not again
    result = training.train(kind, path, progress=False, profile=True)
    assert same(load_file(result), load_file(finished[kind] / "tiny.safetensors"))
    assert without_seconds(read_rows(tmp_path)) == without_seconds(read_rows(finished[kind]))
    ours, theirs = (read_npz(folder / "tiny.samples.npz")["samples"] for folder in (tmp_path, finished[kind]))
    assert np.array_equal(ours, theirs)


def test_another_config_leaves_state_and_fields_alone(tmp_path, monkeypatch):
    path = write(tmp_path, EMBEDDED)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(profile, "_row", lambda *_: (_ for _ in ()).throw(RuntimeError()))
        training.train("embedded", path, progress=False, profile=True)
    before = (tmp_path / "tiny.fields.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"belongs to a run with sigma = 2.0, not 3.0"):
        training.train("embedded", write(tmp_path, {**EMBEDDED, "sigma": 3.0}), progress=False)
    assert (tmp_path / "tiny.fields.safetensors").read_bytes() == before


def test_sampling_takes_no_training_time(tmp_path, monkeypatch):
    """On a clock that sampling alone moves, by 1,000 seconds a picture, training takes none."""
    clock, draws, draw = [0.0], [], diffusion.sampler

    def sampler(*arguments):
        def drawn(*more):
            draws.append(1)
            clock[0] += 1000.0
            return draw(*arguments)(*more)

        return drawn

    monkeypatch.setattr(diffusion, "sampler", sampler)
    monkeypatch.setattr("dmcmc_core.training.loop.time.monotonic", lambda: clock[0])
    training.train("ddim", write(tmp_path, BASELINE), progress=False, profile=True)
    assert len(draws) == 3 and float(read_rows(tmp_path)[-1]["train_seconds"]) == 0


def test_a_profile_by_seconds_waits_for_the_seconds_and_the_last_picture(tmp_path):
    steps = {}
    for every in (1e-9, 1e9):
        config = {**EMBEDDED, "profile_steps": 0, "profile_every": every, "steps": 5}
        training.train("embedded", write(tmp_path, config), progress=False, profile=True)
        steps[every] = [int(row["step"]) for row in read_rows(tmp_path)]
    assert steps == {1e-9: [2, 4, 5], 1e9: [5]}


def test_each_step_trains_on_its_own_picture(tmp_path, monkeypatch):
    """With the published loss of the batch that the generator gives, in the published order and with its times."""
    seen, plain = [], score_embedding.draw_batch

    def noted(image, score, size, **how):
        seen.append(next(i for i, known in enumerate(smooth(2, 8)) if torch.equal(image, known)))
        return plain(image, score, size, **how)

    monkeypatch.setattr(score_embedding, "draw_batch", noted)
    times, inner = [], pictures.raw
    monkeypatch.setattr(embedded, "raw", lambda net, x, t: (times.append((t, net.training)), inner(net, x, t))[1])
    config = {**EMBEDDED, "steps": 4, "multiplier": 3.0}
    training.train("embedded", write(tmp_path, config), progress=False)
    assert seen == [0, 1, 0, 1]
    trained = [t for t, training_mode in times if training_mode]
    assert len(trained) == 4 and all(t.shape == (6,) for t in trained)
    assert all(-3 <= t.min() and t.max() <= 0 for t in trained[::2]), "3 (tau - 1) of the first of two"
    assert all(0 <= t.min() and t.max() <= 3 for t in trained[1::2]), "3 tau of the second"
    first_sample = next(t for t, training_mode in times if not training_mode)
    assert torch.allclose(first_sample, torch.tensor([1.0 - 3.0, 1.0])), "t - 3 and t, as released"


def test_baselines_are_noised_copies_of_every_picture_at_whole_times(tmp_path, monkeypatch):
    seen, plain = [], diffusion.ddpm.noised

    def noted(x0, t, z, betas):
        seen.append((x0, t, z, plain(x0, t, z, betas)))
        return seen[-1][-1]

    monkeypatch.setattr(diffusion.ddpm, "noised", noted)
    monkeypatch.setattr(diffusion, "raw", lambda net, x, t: 0 * x + sum(p.sum() for p in net.parameters()) * 0)
    config = {**BASELINE, "steps": 20, "times": 5, "batch": 40}
    training.train("ddpm", write(tmp_path, config), progress=False)
    signed = 2 * smooth(2, 8) - 1
    drawn = torch.stack([torch.stack([(x0 == known).flatten(1).all(1) for known in signed], 1) for x0, *_ in seen])
    assert (drawn.sum(-1) == 1).all() and 0.4 < drawn[..., 0].float().mean() < 0.6
    counts = drawn[..., 0].sum(1).float()
    assert counts.std() < 40**0.5 / 2 * 0.8, "40 of 40 copies each, without replacement: less spread than coins"
    t = torch.cat([t for _, t, *_ in seen])
    assert not t.is_floating_point() and sorted(t.unique().tolist()) == [0, 1, 2, 3, 4]
    rows = [json.loads(line) for line in (tmp_path / "tiny.log").read_text().splitlines()[1:]]
    for row, (_, _, z, _) in zip(rows, seen, strict=True):
        assert row["loss"] == pytest.approx(float(z.square().mean()), rel=1e-5), "the answer was 0"


def test_without_an_embedding_it_is_plain_score_matching(tmp_path):
    training.train("embedded", write(tmp_path, {**EMBEDDED, "mode": "none"}), progress=False)
    fields = load_file(tmp_path / "tiny.fields.safetensors")
    assert fields["score"].shape == (2, 4, 3, 8, 8) and not fields["score"].any() and not fields["passes"].any()


@pytest.mark.parametrize("kind", ["embedded", "ddim"])
def test_a_conditional_start_begins_near_the_picture(finished, tmp_path, kind):
    config = {**KINDS[kind], "start": "conditional", "weight": 1.0, "steps": 1}
    training.train(kind, write(tmp_path, config), progress=False)
    left = read_npz(tmp_path / "tiny.samples.npz")
    start = left["frames"][0] if kind == "embedded" else 2 * left["frames"][0] - 1  # published: [0, 1] in [-1, 1]
    assert np.allclose(start, left["images"], atol=1e-6)


@pytest.mark.slow
def test_training_brings_samples_to_the_picture(tmp_path):
    more = {
        "images": 1,
        "steps": 150,
        "lr": 3e-3,
        "batch": 16,
        "profile_steps": 150,
        "log_every": 100,
        "save_every": 1e9,
    }
    more["net"] = {**NET, "width": 16, "dropout": 0.0}
    training.train("embedded", write(tmp_path, {**EMBEDDED, **more, "times": 10}), progress=False, profile=True)
    assert float(read_rows(tmp_path)[-1]["ssim"]) > 0.7


@needs_parity
@pytest.mark.parametrize("name", ["cifar1_ddpm", "cifar1_ddim", "celeb1_ddpm", "cifar3_ddim"])
def test_the_rate_rises_as_published(name):
    known = np.load(PARITY / "score_embedding_baseline_schedules.npz")
    given = json.loads((PARITY / "score_embedding_baseline_configs.json").read_text())[name]["training"]
    lr = known[f"{name}.lr"]
    more = {"lr": float(given["lr"]), "warmup": given["warmup"], "steps": len(lr)}
    config = training.make_config("ddpm", {**BASELINE, **more})
    ours = np.array([training.rise(config, step) for step in range(len(lr))])
    assert ours[0] == 0 and np.abs(ours - lr).max() <= 2e-6 * lr.max()


def test_the_rate_stays_without_warm_up_and_other_kinds_keep_their_cosine():
    config = training.make_config("embedded", EMBEDDED)
    assert {training.rise(config, step) for step in range(9)} == {1e-3}
    assert training.learning_rate(config, 8) < 1e-4


def test_what_is_off_does_nothing(monkeypatch):
    """Neither clipping nor averaging: the averaged weights are those of now."""
    config = training.make_config("embedded", EMBEDDED)
    assert config.clip == config.ema == 0
    net = torch.nn.Linear(3, 3)
    run = loop.Run(net, config, {})
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", None)
    for _ in range(2):
        run.update(net(torch.ones(2, 3)).square().sum(), 0.1)
        assert torch.equal(run.averaged().weight, net.weight) and not run.averaged().training


def test_first_weights_are_as_published():
    torch.manual_seed(0)
    net = pictures.make_net(training.make_config("ddpm", {**BASELINE, "net": {}}), smooth(1, 16), "ddpm", {})
    block = net.net.up[0].blocks[0]
    spread = lambda w: w.pow(2).mean().sqrt().item()  # noqa: E731
    fan = 9 * (block.conv0.in_channels + block.conv0.out_channels) / 2
    assert spread(block.conv0.weight) == pytest.approx(fan**-0.5, rel=0.01) and not block.conv0.bias.any()
    assert spread(block.skip.weight) == pytest.approx((0.1 / ((512 + 256) / 2)) ** 0.5, rel=0.02)
    attention = next(b.attention for b in net.net.middle if b.attention is not None)
    assert spread(attention.qkv.weight[:256]) == pytest.approx((0.1 / 256) ** 0.5, rel=0.02)
    assert not attention.proj.weight.any() and not block.conv1.weight.any() and not net.net.up[-1].out[-1].weight.any()


@needs_parity
@pytest.mark.parametrize(("name", "size", "net"), [("cifar1", 32, {}), ("celeb1", 64, {"plain": True})])
def test_a_net_is_as_large_as_the_published_one(name, size, net):
    known = json.loads((PARITY / f"score_embedding_net_{name}.shapes.json").read_text())["num_parameters"]
    config = training.make_config("embedded", {**EMBEDDED, "net": net})
    with torch.device("meta"):
        made = pictures.ScaledUNet(
            "ddpm", {}, pictures.arguments(config, smooth(1, size), waves="constant"), centre=True
        )
    assert sum(p.numel() for p in made.parameters()) == known


@needs_parity
def test_metrics_agree_with_the_published_ones():
    known = np.load(PARITY / "score_embedding_metrics.npz")
    pairs = len([name for name in known if name.startswith("truth")])
    assert pairs and len(known["mse"]) == pairs
    for k in range(pairs):
        truth, sample = (torch.from_numpy(known[f"{name}{k}"]) for name in ("truth", "sample"))
        assert mse(truth, sample) == pytest.approx(float(known["mse"][k]), abs=1e-6)
        assert ssim(truth, sample) == pytest.approx(float(known["ssim"][k]), abs=1e-6)


def test_metrics_do_not_see_the_scale_of_a_sample_unless_clipped():
    truth, other = smooth(2, 16)
    assert ssim(truth, 3 * other - 7) == pytest.approx(ssim(truth, other), abs=1e-6)
    assert mse(truth, truth * 5) == pytest.approx(0, abs=1e-12) and ssim(truth, truth) == pytest.approx(1)
    assert mse(truth, truth + 1, "clip") == pytest.approx(float((1 - truth).square().mean()), abs=1e-6)
    assert mse(truth, torch.full_like(truth, 4.0)) == pytest.approx(float(truth.square().mean()), abs=1e-6)
    with pytest.raises(UserError, match="at least 7x7 pixels, not 6x6"):
        ssim(truth[:, :6, :6], other[:, :6, :6])
    with pytest.raises(UserError, match="one shape"):
        mse(truth, other[:, :8])
    with pytest.raises(UserError, match="scaled must be one of"):
        mse(truth, other, "minmix")


def test_crossings_are_where_the_line_between_two_profiles_meets_the_level():
    x, y = [0, 10, 20, 30, 40, 50, 60], [0.0, 1.0, 0.2, 0.8, 0.9, 1.0, 1.0]
    assert crossings(x, y, 0.5) == pytest.approx((5.0, 25.0))
    assert crossings(x, y, 0.95) == pytest.approx((9.5, None)), "two profiles at the end are not three"
    assert crossings(x, y, 0.95, sustained=2) == pytest.approx((9.5, 45.0))
    assert crossings(x, y, 1.01) == (None, None) and crossings([], [], 0.5) == (None, None)
    assert crossings([3, 4], [0.7, 0.9], 0.5) == (3, None), "it began above the level"
    assert crossings([3, 4], [float("nan"), 0.9], 0.5) == (4, None)
    with pytest.raises(UserError, match="as many x as values, not 2 and 3"):
        crossings([1, 2], [1, 2, 3], 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_configs_are_one_sentence_and_leave_nothing(tmp_path, kind):
    cases = [
        ({"pictuers": "few"}, "did you mean 'pictures'"),
        ({"size": 6}, "size must be a whole number, at least 7, not 6"),
        ({"images": 0}, "images must be a whole number, at least 1"),
        ({"start": "middle"}, "start must be one of 'unconditional', 'conditional'"),
        ({"weight": 1.5}, "weight must be"),
        ({"profile_every": 0.0}, "profile_every must be"),
        ({"clip": -1.0}, "clip must be"),
        ({"data": "digits"}, "data is not for training on pictures"),
        ({"net": {"widht": 8}}, "widht"),
        ({"device": "abacus"}, "abacus"),
        ({"images": "two"}, f"images in the {kind} config must be int"),
    ]
    if kind == "embedded":
        cases += [
            ({"sigma": -2.0}, "sigma must be a finite number, above 0 and at most 1e\\+06, not -2"),
            ({"sigma": 1.0}, "sigma must not be 1"),
            ({"mode": "publishd"}, "mode must be one of"),
            ({"time_embedding": "linaer"}, "time_embedding must be one of"),
            ({"density": "kde"}, "density must be one of"),
            ({"tol": 0.0}, "tol must be"),
            ({"times": 1}, "steps must be|times must be"),
            ({"released": 1}, "released in the embedded config must be bool"),
        ]
    else:
        cases += [({"beta_max": 1.5}, "beta_max must be"), ({"beta_min": 0.0}, "beta_min must be")]
    for change, words in cases:
        folder = tmp_path / "bad"
        path = write(folder, {**KINDS[kind], **change})
        with pytest.raises(UserError, match=words):
            training.train(kind, path, progress=False)
        assert [p.name for p in folder.iterdir()] == ["tiny.yaml"], change
    with pytest.raises(UserError, match="lacks pictures"):
        training.make_config(kind, {"name": "x", "steps": 1})


def test_a_profile_is_of_kinds_on_pictures_alone(tmp_path):
    path = write(tmp_path, {"name": "x", "steps": 1})
    with pytest.raises(UserError, match="a profile is of embedded, ddpm, ddim"):
        training.train("score", path, profile=True)


def test_the_command_line_trains_reports_and_reports_again(tmp_path, capsys):
    path = write(tmp_path, EMBEDDED)
    train = ["train", "embedded", "--config", str(path)]
    assert cli.main([*train, "--no-train"]) == 2
    error = capsys.readouterr().err
    assert "lacks tiny.safetensors, tiny.log, tiny.samples.npz, tiny.fields.safetensors" in error
    assert error.count("\n") == 1 and not (tmp_path / "tiny.report.pdf").exists()
    assert cli.main(train) == 0
    report = tmp_path / "tiny.report.pdf"
    assert str(report) in capsys.readouterr().out and report.read_bytes().startswith(b"%PDF")
    assert cli.main([*train, "--no-train", "--profile"]) == 2
    assert "lacks tiny.profile.csv" in capsys.readouterr().err
    weights = (tmp_path / "tiny.safetensors").read_bytes()
    report.unlink()
    assert cli.main([*train, "--no-train"]) == 0
    assert report.is_file() and (tmp_path / "tiny.safetensors").read_bytes() == weights
    write(tmp_path, {**EMBEDDED, "sigma": 3.0})
    assert cli.main([*train, "--no-train"]) == 2 and "sigma = 2.0, not 3.0" in capsys.readouterr().err
    for option in ("--profile", "--no-train"):
        assert cli.main(["train", "score", "--config", str(path), option]) == 2
        assert f"{option} is for embedded, ddpm, ddim" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_tells_what_the_files_hold(finished, kind):
    config = training.read_config(kind, finished[kind] / "tiny.yaml")
    left = training_report.read(kind, config, finished[kind], profile=True)
    told = training_report.parameters(kind, config, left)
    assert told["pictures"] == "2 of few, 8 x 8" and told["steps"].endswith("54 in all")
    assert ("solve" in told) == (kind == "embedded") and ("betas" in told) == (kind != "embedded")
    final = training_report.final_metrics(left)
    assert final[1]["ssim"] == pytest.approx(left.profile[-1]["ssim_2"], abs=1e-6)
    report = training_report.write(kind, config, finished[kind])
    content = report.read_bytes()
    assert content.startswith(b"%PDF") and b"/Count 3" in content and b"CreationDate" not in content
    report.unlink()


def test_crossings_of_a_report_count_the_solve_and_do_not():
    row = lambda s, q: {"train_seconds": s, "solve_seconds": 7.0, "step": 10 * s, "images_seen": 200 * s, "ssim": q}  # noqa: E731
    rows = [{**row(s, q), "mse": 1 - q} for s, q in ((1, 0.8), (2, 1.0), (3, 0.96), (4, 0.97))]
    found = {row["level"]: row for row in training_report.crossing_rows(rows)}
    assert found[0.9]["first_seconds"] == 1.5 and found[0.9]["first_seconds_with_solve"] == 8.5
    assert found[0.9]["first_step"] == 15 and found[0.9]["first_images_seen"] == 300
    assert found[0.9]["first_mse"] == pytest.approx(0.1) and found[0.9]["sustained_seconds"] == 1.5
    assert found[0.98]["first_seconds"] == pytest.approx(1.9) and found[0.98]["sustained_seconds"] is None
