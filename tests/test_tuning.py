"""Settings found by trial: what is chosen, what it costs, what it keeps to, and that it goes on where it stopped."""

from __future__ import annotations

import json

import pytest
import torch

from dmcmc_core.analytic import EmpiricalData
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import Adapter, count_nfe
from dmcmc_core.errors import UserError
from dmcmc_core.runs import tuning
from dmcmc_core.runs.make import run
from dmcmc_core.streams import Streams

NUM, NFE = 80, 12


@pytest.fixture
def model(monkeypatch):
    """Thirty images of 8x8: the smallest that the features take; as many images in a trial as they need."""
    monkeypatch.setattr(tuning, "IMAGES", NUM)
    monkeypatch.setattr(tuning, "REFERENCE", NUM)
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return EmpiricalData(images, sigma_min=0.05, sigma_max=10.0)


@pytest.fixture
def trials(monkeypatch):
    """What was really made: (sampler, seed, settings) of each trial."""
    made, cached = [], tuning.cached

    def counted(model, sampler, nfe, num, seed, settings, *more, **also):
        made.append((sampler, seed, settings))
        return cached(model, sampler, nfe, num, seed, settings, *more, **also)

    monkeypatch.setattr(tuning, "cached", counted)
    return made


def test_the_same_is_chosen_every_time_from_seeds_that_no_run_uses(model, trials, monkeypatch):
    seeds, begin = set(), Streams.__init__

    def noted(self, seed, *more, **also):
        seeds.add(seed)
        begin(self, seed, *more, **also)

    monkeypatch.setattr(Streams, "__init__", noted)
    said = []
    first = tuning.auto(model, NFE, NUM, say=said.append)
    assert tuning.auto(model, NFE, NUM) == first
    assert seeds and max(seeds) < 0 and {seed for _, seed, _ in trials} == {tuning.TRIAL, tuning.FRESH}
    assert len(said) == len(first.trials) + len(first.finals) == len(trials) / 2
    assert [row["sampler"] for row in first.finals] == [first.sampler, "dpmpp_2m", "heun"]
    assert [seed for _, seed, _ in trials].count(tuning.FRESH) == 2 * len(first.finals)


def test_the_chosen_and_all_that_was_tried_keep_to_the_budget(model, tmp_path):
    tuned = tuning.auto(model, NFE, NUM)
    assert tuned.rows == sum(row["rows"] for row in tuned.trials + tuned.finals) == tuned.nfe * NUM
    assert all(row["rows"] <= NFE * NUM for row in tuned.trials + tuned.finals)
    assert tuned.distance == tuned.finals[0]["distance"]
    manifest = run(model, tuned.sampler, NFE, NUM, 0, tmp_path / "run", tuned.settings, progress=False)
    assert manifest["nfe_full"] <= NFE
    assert f"tuning cost {tuned.rows} evaluations" in str(tuned) and str(tuned).startswith(f"chosen: {tuned.sampler}")


def test_what_is_fixed_is_left_alone(model, trials):
    fixed = {"eta": 0.7, "integrator": "euler", "chains": 16, "pick": "last"}
    tuned = tuning.auto(model, NFE, NUM, fixed)
    assert tuned.sampler == "dlg+euler" and tuned.settings.items() >= {"eta": 0.7, "chains": 16, "pick": "last"}.items()
    assert {sampler for sampler, _, _ in trials} == {"dlg+euler", "euler"}
    assert all(s["eta"] == 0.7 and s["chains"] == 16 for sampler, _, s in trials if sampler != "euler")


def test_the_climb_finds_the_top_of_a_hill_and_stays_where_nothing_is_clearly_better(model, monkeypatch):
    best = {"renoise": 0.3, "eta": 0.3, "n_skip": 4, "integrator": "heun"}

    def hill(search, sampler, settings):
        off = sampler != "dlg+heun"
        for name in ("renoise", "eta", "n_skip"):
            values = search.values[name][0]
            off += abs(values.index(settings[name]) - values.index(best[name]))
        return {"distance": 1.0 + off, "without": [1.0 + off] * tuning.GROUPS}

    monkeypatch.setattr(tuning._Search, "measured", hill)
    search = tuning._Search(model, NFE, NUM, {}, print, tuning._Notes(None, {}))
    assert search.climb() == best
    monkeypatch.setattr(tuning._Search, "measured", lambda *_: {"distance": 1.0, "without": [1.0] * tuning.GROUPS})
    assert search.climb() == search.start


def test_a_difference_counts_beyond_two_standard_errors_over_groups_of_chains():
    """The jackknife of a mean is its standard error: differences of a normal sample of known mean and size."""
    g = tuning.GROUPS
    sample = torch.randn(g, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = (sample - sample.mean()) / sample.std()  # its mean has a standard error of 1 / sqrt(g) = 1 / 4

    def trial(mean):
        values = mean + sample
        return {"distance": mean, "without": ((values.sum() - values) / (g - 1)).tolist()}

    zero = {"distance": 0.0, "without": [0.0] * g}
    assert tuning.surely_less(trial(-0.51), zero) and not tuning.surely_less(trial(-0.49), zero)
    assert not tuning.surely_less(trial(0.51), zero)
    assert tuning.surely_less(trial(-0.02), trial(0.0))  # shared luck leaves no doubt
    fewer = {"distance": 0.0, "without": [0.0] * 4}  # of four chains: not paired, each with its own spread
    assert tuning.surely_less(trial(-0.51), fewer) and not tuning.surely_less(trial(-0.49), fewer)


def test_fewer_chains_than_groups_are_left_out_one_by_one(model):
    tuned = tuning.auto(model, NFE, NUM, {"chains": 4, "integrator": "euler"})
    assert {len(row["without"]) for row in tuned.trials} == {4} and len(tuned.finals[1]["without"]) == tuning.GROUPS
    assert len(set(tuned.trials[0]["without"])) == 4, "each chain makes a difference"
    with pytest.raises(UserError, match="chains must be at least 2 for a search"):
        tuning.auto(model, NFE, NUM, {"chains": 1})


def test_noise_alone_moves_nothing_and_plain_is_taken_only_where_it_is_asked_for(model, monkeypatch):
    """Trials of one and the same law: luck must not be taken for a better setting (a false move: 2 in 100 each)."""
    rng = torch.Generator().manual_seed(1)

    def luck(search, sampler, settings, seed=tuning.TRIAL):
        values = 10 + torch.randn(tuning.GROUPS, generator=rng, dtype=torch.float64)
        without = ((values.sum() - values) / (tuning.GROUPS - 1)).tolist()
        return {
            "sampler": sampler,
            **settings,
            "distance": values.mean().item(),
            "without": without,
            "rows": 1,
            "seed": seed,
        }

    monkeypatch.setattr(tuning._Search, "measured", luck)
    chains, either = (tuning.auto(model, NFE, NUM, plain=plain) for plain in (False, True))
    start = {name: values[at] for name, (values, at) in tuning.choices(model, NFE).items()}
    assert (
        chains.sampler == f"dlg+{start.pop('integrator')}"
        and chains.settings == {"step": "sigma2", "chains": 20} | start
    )
    assert "--sampler auto would choose that" in str(chains)
    assert either.sampler in ("heun", "dpmpp_2m") and either.settings == {}
    assert either.distance == min(row["distance"] for row in either.finals[1:]) and "is not surely better" in str(
        either
    )


def test_auto_keeps_chains_that_are_surely_better(model, monkeypatch):
    def law(search, sampler, settings, seed=tuning.TRIAL):
        distance = 1.0 if sampler.startswith("dlg+") else 2.0
        about = {"sampler": sampler, **settings, "rows": 1}
        return about | {"distance": distance, "without": [distance] * tuning.GROUPS}

    monkeypatch.setattr(tuning._Search, "measured", law)
    tuned = tuning.auto(model, NFE, NUM, plain=True)
    assert tuned.sampler.startswith("dlg+") and tuned.distance == 1.0 and "surely worse" in str(tuned)


@pytest.mark.parametrize("after", [3, -1])
def test_an_interrupted_search_goes_on_and_a_finished_one_is_remembered(model, trials, tmp_path, monkeypatch, after):
    """After the first trials, and before the last of the comparisons on fresh seeds."""
    expected = tuning.auto(model, NFE, NUM)
    path, whole = tmp_path / "out" / "tuning.json", len(trials)
    counted = tuning.cached

    def interrupted(*arguments, **more):
        if len(trials) == whole + after % whole:
            raise KeyboardInterrupt
        return counted(*arguments, **more)

    monkeypatch.setattr(tuning, "cached", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.auto(model, NFE, NUM, path=path)
    monkeypatch.setattr(tuning, "cached", counted)
    assert tuning.auto(model, NFE, NUM, path=path) == expected and len(trials) == 2 * whole
    assert tuning.auto(model, NFE, NUM, path=path) == expected and len(trials) == 2 * whole
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"]


def test_another_question_is_not_answered_from_the_file(model, tmp_path):
    path = tmp_path / "tuning.json"
    tuning.auto(model, NFE, NUM, {"integrator": "euler"}, path=path)
    before = path.read_text()
    for nfe, num, fixed, message in (
        (13, NUM, {"integrator": "euler"}, "its nfe is 12, not 13"),
        (NFE, NUM + 1, {"integrator": "euler"}, f"its num is {NUM}, not {NUM + 1}"),
        (NFE, NUM, {}, "its fixed is {'integrator': 'euler'}, not {}"),
    ):
        with pytest.raises(UserError, match=f"of another search: {message}"):
            tuning.auto(model, nfe, num, fixed, path=path)
    assert path.read_text() == before
    for text in ("no JSON", json.dumps([1]), json.dumps({"asked": 3})):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a file of dlg"):
            tuning.auto(model, NFE, NUM, path=path)


@pytest.mark.parametrize(
    ("nfe", "num", "fixed", "message"),
    [
        (NFE, NUM, {"etta": 1.0}, "unknown setting of dlg.*did you mean 'eta'"),
        (NFE, NUM, {"integrator": "hoin"}, "unknown sampler 'dlg.hoin'"),
        (60, NUM, {"integrator": "rk45"}, "needs an integrator with a fixed number of calls, not rk45"),
        (NFE, NUM, {"step": "constant"}, "with step=constant, fix eta too"),
        (NFE, NUM, {"levels": 30}, "is not a whole number that dlg.dpmpp_2m can pay for"),
        (2, NUM, {}, "2 NFE are too few"),
        (NFE, 0, {}, "num must be a whole number of images, at least 1, not 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_evaluated(model, trials, tmp_path, nfe, num, fixed, message):
    with pytest.raises(UserError, match=message):
        tuning.auto(model, nfe, num, fixed, path=tmp_path / "out" / "tuning.json")
    assert not trials and not list(tmp_path.iterdir())


def test_a_network_stands_for_the_data_by_images_of_its_own():
    """The shipped net at few levels: rows counted, the same images twice, within its range but for a little."""
    model = load_model("digits")
    images, rows = tuning.slow_images(model, 8)
    again, _ = tuning.slow_images(model, 8)
    assert images.shape == (8, 1, 8, 8) and rows == 8 * tuning.FINE and torch.equal(images, again)
    assert -0.5 < images.min() and images.max() < 1.5 and images.std() > 0.2


def test_a_class_is_searched_as_it_will_be_sampled(model, monkeypatch, tmp_path):
    """Guidance as well: trials and slow images are of the class, within the budget, and the settings found name it."""
    halves = [EmpiricalData(model.images[at::2], sigma_min=0.05, sigma_max=10.0) for at in (0, 1)]
    models = [*halves, model]

    def by_class(x, sigma, labels):
        return torch.stack([m(x, sigma) for m in models])[labels, torch.arange(len(x))]

    bed = count_nfe(Adapter(by_class, (1, 8, 8), (0.0, 1.0), 0.05, 10.0, model.mean, classes=2, unconditional=-1))
    bed.denoiser.net = torch.nn.ParameterList([model.images])  # what a run is named by
    slow = []
    make_reference = tuning.metrics.make_reference
    monkeypatch.setattr(
        tuning.metrics, "make_reference", lambda images, *more: slow.append(images) or make_reference(images, *more)
    )
    asked = {"label": 1, "guidance": 2, "eta": 0.3, "renoise": 1.0, "integrator": "heun", "tweedie": 0.05}
    tuned = tuning.auto(bed, 2 * NFE, NUM, asked)
    assert bed.rows == tuned.rows and {"label": 1, "guidance": 2, "tweedie": 0.05}.items() <= tuned.settings.items()
    to = [torch.cdist(slow[0].flatten(1), half.images.flatten(1)).min(1).values for half in halves]
    assert (to[1] < to[0]).all()
    manifest = run(bed, tuned.sampler, 2 * NFE, NUM, 0, tmp_path, tuned.settings, progress=False)
    assert NFE < manifest["nfe_full"] <= 2 * NFE and manifest["plan"]["held_to"]["label"] == 1
    with pytest.raises(UserError, match="label must be a whole number from 0 to 1, not 2"):
        tuning.auto(bed, NFE, NUM, {"label": 2}, path=tmp_path / "new" / "tuning.json")
    assert not (tmp_path / "new").exists()
