"""Runs that several processes share, folders that are damaged or in use, full disks; see also benchmarks/faults.py."""

import errno
import itertools
import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import classes, images_mixture
from torch.distributed import HashStore

from dmcmc_core.data import load_samples, open_samples
from dmcmc_core.denoiser import Adapter, InBlocks
from dmcmc_core.errors import UserError
from dmcmc_core.runs import folder, ranks
from dmcmc_core.runs import make as make_run
from dmcmc_core.runs.folder import Damaged, finished, held, load_images, read_manifest, read_whole
from dmcmc_core.runs.layout import dealt, layout
from dmcmc_core.runs.make import run
from dmcmc_core.runs.plan import plan
from dmcmc_core.runs.ranks import Ended, Ranks
from dmcmc_core.workbench import cli

ROOT = Path(__file__).resolve().parents[1]
CHAINS = {"chains": 6, "warmup_levels": 2, "warmup_steps": 2, "n_skip": 2, "levels": 2}


def make(sampler, out, num=20, seed=0, settings=None, model=None, **options):
    settings = settings or (CHAINS if sampler.startswith("dlg") else {})
    return run(model or images_mixture(), sampler, 20, num, seed, out, settings, progress=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The images of one process, and what they cost."""
    out = tmp_path_factory.mktemp("whole") / "run"
    manifest = make("dlg+heun_churn", out, shard=6)
    return load_images(out), manifest["rows"]


# Who makes what


@pytest.mark.parametrize("chains", [None, 1, 6, 64, 65, 200])
@pytest.mark.parametrize(("num", "size"), [(1, 64), (20, 7), (150, 64), (700, 512)])
def test_every_image_is_in_one_shard_and_every_shard_with_one_rank(num, size, chains):
    lists = layout(num, size, 64, chains)
    every = list(itertools.chain(*lists))
    assert sorted(i for shard in every for i in shard.images) == list(range(num))
    assert len({shard.name for shard in every}) == len(every)
    if chains:  # as many images as the windows begin
        for shard in every:
            begun = len(shard.windows) * len(shard.group)
            assert len(shard.images) == begun or (shard.images.stop == num and len(shard.images) < begun)
    for world in (1, 2, 3, 5, 8):
        shares = [list(dealt(lists, rank, world)) for rank in range(world)]
        assert sorted(s.name for share in shares for s in share) == sorted(s.name for s in every)
        if chains in (None, 1, 6, 64):  # one group, or none: nobody has two shards more than another
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_large_shards_of_several_groups_of_chains(tmp_path):
    settings = {"chains": 70, "n_skip": 1, "warmup_levels": 1, "levels": 1}
    make("dlg+euler", tmp_path / "a", 150, settings=settings, shard=512)
    make("dlg+euler", tmp_path / "b", 150, settings=settings)
    assert torch.equal(load_images(tmp_path / "a"), load_images(tmp_path / "b"))


def test_shares_of_one_group_of_chains(whole, tmp_path):
    """In any order; the last one completes the manifest, and what all walked through is counted once."""
    for i in (2, 0, 1):
        manifest = make("dlg+heun_churn", tmp_path, shard=6, share=(i, 3))
        assert manifest["complete"] == (i == 1)
    assert torch.equal(load_images(tmp_path), whole[0]) and manifest["rows"] == whole[1]


@pytest.mark.slow
def test_the_same_however_they_are_made(tmp_path, monkeypatch):
    """The small version of what the README claims: shards, ranks of torchrun, an array, kills.

    Images are two shards, so that a third rank would have nothing to make.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from faults import same_images

    found = {way: equal for _, way, equal in same_images(70, 10, 2, ["dlg+heun"], tmp_path, ranks=2)}
    assert list(found) == [
        "shards of 100",
        "shards of 512",
        "2 ranks under torchrun",
        "an array of three jobs",
        "killed 2 times",
    ]
    assert all(found.values()), found


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_torchruns_own_parser_hands_on_every_option(verb):
    """Beside --num, which it takes for the beginning of its own --numa-binding, so that there is -n."""
    from torch.distributed.run import get_args_parser

    parser = cli.Parser()
    cli.load(verb).arguments(parser)
    options = parser._option_string_actions.keys() - {"--num"}
    assert verb == "evaluate" or {"-n", "--nfe", "--shard"} <= options
    for option in sorted(options):
        for words in ([verb, option, "4"], [verb, f"{option}=4"]):
            handed = get_args_parser().parse_args(["--nproc-per-node=3", "-m", "dmcmc_core", *words])
            assert handed.module and [handed.training_script, *handed.training_script_args] == ["dmcmc_core", *words]


def test_ranks_wait_for_each_other_and_end_together():
    store = HashStore()
    one, two = Ranks(0, 2, store), Ranks(1, 2, store)
    assert one.leads and not two.leads and Ranks(1, 2).leads
    with pytest.raises(UserError, match="first"), two.together():
        raise UserError("first")
    with pytest.raises(Ended) as ended, one.together():
        raise UserError("second")
    assert ended.value.code == 2
    with pytest.raises(Ended):
        one.barrier()
    for stopped in (one, two):
        with pytest.raises(Ended), stopped.together():
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be from 0 to WORLD_SIZE - 1 = 1, not 2"),
        ({"RANK": "one"}, "RANK must be a whole number, at least 0, not 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "a share i/n is for runs that nobody splits already"),
    ],
)
def test_ranks_that_cannot_be(environment, message, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        make("heun", tmp_path / "a", share=(0, 2))
    assert not (tmp_path / "a").exists()


# What is believed


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def test_no_shard_that_is_damaged_is_believed(tmp_path):
    """Any byte flipped, any length: either it is noticed, or nothing that is read has changed."""
    make("dlg+heun", tmp_path, 6)
    (path,) = tmp_path.glob("shard-*.npz")
    content, whole = path.read_bytes(), read_whole(path)
    assert whole["arr_0"].shape == (6, 2, 2, 1) and whole["start_sigma"].shape == (6,)
    noticed = 0
    for at in range(len(content)):
        path.write_bytes(flipped(content, at))
        data = read_whole(path)
        noticed += data is None
        assert data is None or all(np.array_equal(data[name], whole[name]) for name in whole), at
        path.write_bytes(content[:at])
        assert read_whole(path) is None
    assert noticed > len(content) / 2


def test_no_manifest_that_is_damaged_is_believed(tmp_path, capsys):
    """It is made again, and no image is."""
    manifest = make("heun", tmp_path, shard=8)
    path = tmp_path / "manifest.json"
    content, before = path.read_bytes(), {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    for at in range(len(content)):
        path.write_bytes(flipped(content, at))
        with pytest.raises(Damaged):
            read_manifest(tmp_path)
        with suppress(UserError):  # evaluate takes folders without a checksum too: the name of ours may be what broke
            told = open_samples(tmp_path).manifest
            assert manifest.items() <= told.items() and "checksum" not in told
    for broken in (content[:-30], b"", b"[]", json.dumps(manifest).encode(), None):
        path.write_bytes(broken) if broken is not None else path.unlink()
        assert make("heun", tmp_path, shard=8) == manifest == read_manifest(tmp_path)
        assert ("is damaged: it is made again" in capsys.readouterr().err) == (broken is not None)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")} == before


def test_shards_of_another_run_or_place_are_not_believed(tmp_path):
    for name, options in (("a", {}), ("b", {"seed": 1}), ("c", {"settings": {"s_churn": 3.0}})):
        make("heun_churn", tmp_path / name, shard=8, **options)
    right, first = load_images(tmp_path / "a"), "shard-00000000.npz"
    for other in (tmp_path / "b" / first, tmp_path / "c" / first, tmp_path / "a" / "shard-00000008.npz"):
        (tmp_path / "a" / first).write_bytes(other.read_bytes())
        assert not finished(tmp_path / "a", 20)
        for read in (load_images, load_samples):
            with pytest.raises(UserError, match="shard-00000000.npz is .*of another run.*same sample command again"):
                read(tmp_path / "a")
        make("heun_churn", tmp_path / "a", shard=8)
        assert torch.equal(load_images(tmp_path / "a"), right)
        assert torch.equal(load_samples(tmp_path / "a"), right)
    (tmp_path / "a" / "manifest.json").unlink()
    before = sorted(os.listdir(tmp_path / "a"))
    for message, options in (
        ("has lost its manifest, and shard-00000000.npz is of another run", {"seed": 1}),
        ("has lost its manifest, and shard-00000000.npz is of another run", {"shard": 7}),
        ("already holds images up to 16: num=9 would take some away", {"num": 9}),
    ):
        with pytest.raises(UserError, match=message):
            make("heun_churn", tmp_path / "a", **{"shard": 8} | options)
        assert sorted(os.listdir(tmp_path / "a")) == before


def test_a_chain_that_is_lost_is_walked_again(whole, tmp_path):
    """From the nearest window before that is there, however far back."""
    make("dlg+heun_churn", tmp_path, shard=6)
    for path in [*tmp_path.rglob("window-*.npz"), max(tmp_path.glob("shard-*"))]:
        path.unlink()
    manifest = make("dlg+heun_churn", tmp_path, shard=6)
    assert torch.equal(load_images(tmp_path), whole[0]) and manifest["rows"] == whole[1]


# Who holds a folder


def test_a_folder_that_is_in_use_is_refused_by_name(tmp_path):
    who = rf"in use by process {os.getpid()} on \S+ since \d{{4}}-"
    with held(tmp_path):
        for share in (None, (0, 2)):
            with pytest.raises(UserError, match=who):
                make("heun", tmp_path, share=share)
    with held(tmp_path, 0, 2):
        for share in (None, (0, 2)):
            with pytest.raises(UserError, match=who):
                make("heun", tmp_path, share=share)
        assert not make("heun", tmp_path, num=80, share=(1, 2))["complete"]
    assert make("heun", tmp_path, num=80)["complete"]
    with held(tmp_path):  # nothing has to be written
        assert make("heun", tmp_path, num=80)["complete"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "is full, or its quota is: 8 of 20 images are safe in it; free some space"),
        (errno.EROFS, "cannot be written to .*: 8 of 20 images are safe in it; make it writable"),
    ],
)
def test_a_disk_that_takes_no_more_loses_nothing(code, message, tmp_path, monkeypatch):
    replace, left = os.replace, [3]  # the manifest, and two shards of four

    def failing(a, b):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        replace(a, b)

    make("heun", tmp_path / "whole", shard=4)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match=message):
        make("heun", tmp_path / "a", shard=4)
    monkeypatch.undo()
    assert not list((tmp_path / "a").glob("*.part"))
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("shard-*")}
    make("heun", tmp_path / "a", shard=4)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match=message.replace("8 of 20", "20 of 30")):  # at the manifest, before all shards
        make("heun", tmp_path / "a", num=30, shard=4)
    monkeypatch.undo()
    assert len(kept) == 2 and all(p.stat().st_mtime_ns == at for p, at in kept.items())
    assert torch.equal(load_images(tmp_path / "a"), load_images(tmp_path / "whole"))


# Values that are not finite


def test_where_a_value_stops_being_finite_is_told(tmp_path):
    where = r"not finite from image 0 on: heun_churn, image 0 in step (\d+) of \d+, to sigma = "
    with pytest.raises(UserError, match=where):
        make("heun_churn", tmp_path / "a", settings={"s_noise": 1e300})

    def network(x, sigma):
        return torch.where(sigma[:, None, None, None] > 1, x / 2, torch.nan)

    model = Adapter(network, (1, 2, 2), sigma_max=4.0)
    model.means = torch.zeros(1)
    with pytest.raises(UserError, match=r"at sigma = 0\..* \(euler, images 0 to 19, step (\d+)\)") as told:
        make("euler", tmp_path / "a", model=model, settings={"levels": 5})
    grid = plan(model, "euler", 20, 20, {"levels": 5}).grid(model)
    above = [s for s in grid["sigmas"] if s > 1]
    assert re.search(r"step (\d+)", str(told.value))[1] == str(len(above) + 1)
    assert not (tmp_path / "a").exists()


# block


@pytest.mark.parametrize("make_model", [classes, lambda: InBlocks(Adapter(classes().net, (1, 2, 2), classes=3))])
def test_block_is_the_rows_of_a_network_call(make_model, tmp_path):
    model, seen = make_model(), []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    settings = {"label": 1, "block": 16, "levels": 2}
    manifest = make("heun", tmp_path / "a", model=model, settings=settings)
    assert set(seen) == {16} and manifest["block"] == manifest["plan"]["block"] == 16 and model.block == 64
    assert manifest["shard"] == 64 and "block_halved" not in manifest
    seen.clear()
    make("dlg+heun", tmp_path / "b", model=model, settings=CHAINS | {"label": 1, "block": 4, "posterior": "residual"})
    assert set(seen) == {4} and len(list((tmp_path / "b").glob("shard-*"))) == 7  # groups of 4 and 2 chains
    with pytest.raises(UserError, match="its block is 16, not 64"):
        make("heun", tmp_path / "a", model=model, settings={"label": 1, "levels": 2})
    for value in (0, 4097, 1.5):
        with pytest.raises(UserError, match="block must be a whole number, at least 1 and at most 4096"):
            plan(model, "heun", 20, 20, {"label": 1, "block": value})


# The command line


def digits(out, *more):
    return cli.main([*f"sample --model digits --sampler euler --nfe 1 --num 70 --out {out}".split(), *more])


def test_shares_of_the_command_and_pictures(tmp_path, capsys):
    from PIL import Image

    for i in range(2):
        assert digits(tmp_path / "a", "--shard", f"{i}/2", "--shard-size", "30", "--png", "--grid") == 0
    assert "wrote" in capsys.readouterr().out
    images = load_images(tmp_path / "a").mul(255).round().to(torch.uint8)[:, 0].numpy()
    names = sorted(p.name for p in (tmp_path / "a" / "png").iterdir())
    assert names[0] == "00000000.png" and len(names) == 70
    for i in (0, 29, 30, 69):
        assert np.array_equal(np.array(Image.open(tmp_path / "a" / "png" / names[i])), images[i])
    grid = np.array(Image.open(tmp_path / "a" / "grid.png"))
    assert grid.shape == (8 * 71, 8 * 71) and np.array_equal(grid[::8, ::8][9:17, 18:26], images[10])


@pytest.mark.parametrize("words", ["--shard 2/2", "--shard 1", "--shard=-1/2", "--shard a/b", "--shard-size 0"])
def test_shares_that_cannot_be(words, tmp_path, capsys):
    assert digits(tmp_path / "a", *words.split()) == 2
    assert (
        capsys.readouterr().err.startswith(f"error: {re.match('[a-z-]+', words)[0]} ") and not (tmp_path / "a").exists()
    )


def test_sigterm_ends_like_ctrl_c(tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(make_run, "run", lambda **_: os.kill(os.getpid(), signal.SIGTERM) or signal.pause())
    assert digits(tmp_path / "a") == 130 and signal.getsignal(signal.SIGTERM) == before
    assert "the same command goes on from here" in capsys.readouterr().err


def test_devices_of_ranks(monkeypatch):
    assert ranks.device("cuda:1") == "cuda:1" and ranks.device("cpu") == "cpu"
    monkeypatch.setattr(ranks, "current", lambda: Ranks(3, 4, HashStore()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.device("cpu") == "cpu"
    with pytest.raises(UserError, match="ranks take one device each: choose --device cuda, not cuda:0"):
        ranks.device("cuda:0")
    for devices in (2, 1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        if devices == 2:
            assert ranks.device("cuda") == "cuda:1"
        else:
            with pytest.raises(UserError, match="this is rank 1 of its machine, which has 1 CUDA devices"):
                ranks.device("cuda")


def test_a_manifest_that_another_rank_writes_meanwhile_is_seen(tmp_path, monkeypatch):
    """Between a rank's look for the manifest and its look at the folder another one may begin the run."""
    read, begun = folder.read_manifest, []

    def late(out):
        try:
            return read(out)
        finally:
            if not begun:
                begun.append(folder.write_manifest(out, {"num": 8, **recipe}))

    recipe = dict.fromkeys(("model", "model_sha256", "seed", "nfe", "block", "shard"), 0) | {"asked": {}}
    tmp_path.joinpath("out").mkdir()
    monkeypatch.setattr(folder, "read_manifest", late)
    assert folder.earlier(tmp_path / "out", recipe, 8)["num"] == 8


def test_the_bar_counts_evaluations_and_begins_where_an_earlier_run_stopped(tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, initial, **about):
            self.total, self.n, self.initial, self.seen = total, initial, initial, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, rows):
            self.n += rows
            self.seen.append(rows)

        def refresh(self):
            pass

    monkeypatch.setattr(make_run, "tqdm", Bar)
    run("digits", "euler", 5, 64, 0, tmp_path / "a")
    run("digits", "euler", 5, 160, 0, tmp_path / "a")
    first, second = bars
    assert (first.total, first.initial, first.n, first.seen) == (320, 0, 320, [64] * 5)
    assert (second.total, second.initial, second.n) == (800, 320, 800)
    assert sum(second.seen) == 5 * 96
