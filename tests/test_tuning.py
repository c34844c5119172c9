"""Settings found by trial: what is chosen, what it costs, what it keeps to, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dmcmc_core import integrators, schedules
from dmcmc_core.analytic import EmpiricalData, LowRankMixture
from dmcmc_core.checkpoints import load_model
from dmcmc_core.denoiser import Adapter, count_nfe
from dmcmc_core.dmcmc import prior
from dmcmc_core.errors import UserError
from dmcmc_core.integrators import load_fitted
from dmcmc_core.integrators.fitted import load_from_levels
from dmcmc_core.metrics import paired_error
from dmcmc_core.runs import fitting, tuning
from dmcmc_core.runs.make import run
from dmcmc_core.runs.tuning import chains, paired, plain, search, slow
from dmcmc_core.runs.tuning.notes import Notes
from dmcmc_core.streams import Streams

NUM, NFE = 80, 12


@pytest.fixture(autouse=True)
def unanswered(monkeypatch, tmp_path_factory):
    """No answer is remembered from one search to the next, but in a file that is named."""
    place = search._place
    monkeypatch.setattr(search, "_place", lambda *_: tmp_path_factory.mktemp("answers") / "tuning.json")
    return place


@pytest.fixture
def model(monkeypatch):
    """Thirty images of 8x8: the smallest that the features take; as many images in a trial as they need."""
    monkeypatch.setattr(chains, "IMAGES", NUM)
    monkeypatch.setattr(chains, "REFERENCE", NUM)
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return EmpiricalData(images, sigma_min=0.05, sigma_max=10.0)


@pytest.fixture
def trials(monkeypatch):
    """What was really made: (sampler, seed, settings) of each trial."""
    made, cached = [], chains.cached

    def counted(model, sampler, nfe, num, seed, settings, *more, **also):
        made.append((sampler, seed, settings))
        return cached(model, sampler, nfe, num, seed, settings, *more, **also)

    monkeypatch.setattr(chains, "cached", counted)
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
    assert seeds and max(seeds) < 0 and {seed for _, seed, _ in trials} == {chains.TRIAL, chains.FRESH}
    assert len(first.trials) + len(first.finals) == len(trials) / 2
    tried = len(first.paired) + sum(row["images"] == len(paired.ALL) for row in first.paired)
    assert len(said) == len(first.trials) + len(first.finals) + tried
    assert [row["sampler"] for row in first.finals] == [first.sampler, first.paired[0]["sampler"]]
    assert [seed for _, seed, _ in trials].count(chains.FRESH) == 2 * len(first.finals)


def test_the_chosen_and_all_that_was_tried_keep_to_the_budget(model, tmp_path, monkeypatch):
    monkeypatch.setattr(paired, "in_blocks", lambda model, block: model)  # a copy would count alone
    counted = count_nfe(model)
    tuned = tuning.auto(counted, NFE, NUM)
    assert tuned.rows == counted.rows == tuned.nfe * NUM > sum(row["rows"] for row in tuned.trials + tuned.finals)
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
    best = {"renoise": 0.3, "eta": 0.3, "n_skip": 4}

    def hill(climbing, sampler, settings):
        off = 0
        for name in ("renoise", "eta", "n_skip"):
            values = climbing.values[name][0]
            off += abs(values.index(settings[name]) - values.index(best[name]))
        return {"distance": 1.0 + off, "without": [1.0 + off] * chains.GROUPS}

    monkeypatch.setattr(chains.Chains, "measured", hill)
    climbing = chains.Chains(model, NFE, NUM, {}, print, Notes(None, {}))
    assert climbing.climb() == best
    monkeypatch.setattr(chains.Chains, "measured", lambda *_: {"distance": 1.0, "without": [1.0] * chains.GROUPS})
    assert climbing.climb() == climbing.start


def test_a_difference_counts_beyond_two_standard_errors_over_groups_of_chains():
    """The jackknife of a mean is its standard error: differences of a normal sample of known mean and size."""
    g = chains.GROUPS
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
    assert {len(row["without"]) for row in tuned.trials} == {4} and len(tuned.finals[1]["without"]) == chains.GROUPS
    assert len(set(tuned.trials[0]["without"])) == 4, "each chain makes a difference"
    with pytest.raises(UserError, match="chains must be at least 2 for a search"):
        tuning.auto(model, NFE, NUM, {"chains": 1})


def test_noise_alone_moves_nothing_and_plain_is_taken_only_where_it_is_asked_for(model, monkeypatch):
    """Trials of one and the same law: luck must not be taken for a better setting (a false move: 2 in 100 each)."""
    rng = torch.Generator().manual_seed(1)

    def luck(search, sampler, settings, seed=chains.TRIAL):
        values = 10 + torch.randn(chains.GROUPS, generator=rng, dtype=torch.float64)
        without = ((values.sum() - values) / (chains.GROUPS - 1)).tolist()
        return {
            "sampler": sampler,
            **settings,
            "distance": values.mean().item(),
            "without": without,
            "rows": 1,
            "seed": seed,
        }

    monkeypatch.setattr(chains.Chains, "measured", luck)
    walked, either = (tuning.auto(model, NFE, NUM, plain=plain) for plain in (False, True))
    start = {name: values[at] for name, (values, at) in tuning.choices(model, NFE).items()}
    nearest = walked.paired[0]
    assert walked.sampler == f"dlg+{nearest['sampler']}"
    assert walked.settings == {"step": "sigma2", "chains": 20} | start | nearest["settings"]
    assert "--sampler auto would choose a plain sampler" in str(walked)
    assert (either.sampler, either.settings) == (nearest["sampler"], nearest["settings"])
    assert either.distance == either.finals[1]["distance"] and "is not surely better" in str(either)


def test_auto_keeps_chains_that_are_surely_better(model, monkeypatch):
    def law(search, sampler, settings, seed=chains.TRIAL):
        distance = 1.0 if sampler.startswith("dlg+") else 2.0
        about = {"sampler": sampler, **settings, "rows": 1}
        return about | {"distance": distance, "without": [distance] * chains.GROUPS}

    monkeypatch.setattr(chains.Chains, "measured", law)
    tuned = tuning.auto(model, NFE, NUM, plain=True)
    assert tuned.sampler.startswith("dlg+") and tuned.distance == 1.0 and "surely worse" in str(tuned)


def test_auto_goes_without_chains_where_the_budget_pays_for_none(model, trials, tmp_path):
    """Few images share a warm-up; the nearest plain sampler is chosen all the same, and the reason is told."""
    path = tmp_path / "tuning.json"
    tuned = tuning.auto(model, 5, 16, {"cast": "truncate"}, plain=True, path=path)
    nearest = tuned.paired[0]
    assert not trials and (tuned.sampler, tuned.distance) == (nearest["sampler"], nearest["error"])
    assert tuned.settings == nearest["settings"] and tuned.settings["cast"] == "truncate"
    assert "chains were not considered: 5 NFE are too few" in str(tuned) and "slow images" not in str(tuned)
    assert [row["chosen"] for row in tuned.table()].count("chosen") == 1
    assert tuning.auto(model, 5, 16, {"cast": "truncate"}, plain=True, path=path) == tuned
    with pytest.raises(UserError, match="5 NFE are too few for dlg"):
        tuning.auto(model, 5, 16)


@pytest.mark.parametrize("after", [3, -1])
def test_an_interrupted_search_goes_on_and_a_finished_one_is_remembered(model, trials, tmp_path, monkeypatch, after):
    """After the first trials, and before the last of the comparisons on fresh seeds."""
    expected = tuning.auto(model, NFE, NUM)
    path, whole = tmp_path / "out" / "tuning.json", len(trials)
    counted = chains.cached

    def interrupted(*arguments, **more):
        if len(trials) == whole + after % whole:
            raise KeyboardInterrupt
        return counted(*arguments, **more)

    monkeypatch.setattr(chains, "cached", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.auto(model, NFE, NUM, path=path)
    monkeypatch.setattr(chains, "cached", counted)
    assert tuning.auto(model, NFE, NUM, path=path) == expected and len(trials) == 2 * whole
    assert tuning.auto(model, NFE, NUM, path=path) == expected and len(trials) == 2 * whole
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"]


def test_a_question_is_answered_from_the_cache_whatever_the_folder(model, trials, tmp_path, monkeypatch, unanswered):
    monkeypatch.setattr(search, "_place", unanswered)
    said, fixed = [], {"integrator": "euler", "eta": 0.3, "renoise": 1.0}
    first = tuning.auto(model, NFE, NUM, fixed, cache_dir=tmp_path / "cache", path=tmp_path / "a" / "tuning.json")
    made = len(trials)
    assert tuning.auto(model, NFE, NUM, fixed, cache_dir=tmp_path / "cache") == first
    path = tmp_path / "b" / "tuning.json"
    assert tuning.auto(model, NFE, NUM, fixed, cache_dir=tmp_path / "cache", path=path, say=said.append) == first
    assert len(trials) == made and path.is_file() and "this was asked before" in said[0] and len(said) == 1
    other = tuning.auto(model, NFE + 1, NUM, fixed, cache_dir=tmp_path / "cache")
    assert len(trials) > made and other.asked["nfe"] == NFE + 1


def test_the_table_has_all_that_was_tried_and_what_was_chosen(model):
    for is_plain in (False, True):
        tuned = tuning.auto(model, NFE, NUM, plain=is_plain)
        rows = tuned.table()
        assert len(rows) == len(tuned.paired) + len(tuned.trials) + len(tuned.finals)
        errors = [row["value"] for row in rows if row["measured"] == f"paired error, {len(paired.ALL)} images"]
        assert 1 < len(errors) < len(tuned.paired) and errors == sorted(errors)
        chosen = [row for row in rows if row["chosen"]]
        assert chosen and {row["sampler"] for row in chosen} == {tuned.sampler}
        assert {row["measured"] for row in chosen} >= {f"{tuned.distance_name}, fresh seeds"}
        for row in chosen:
            given = dict(pair.split("=") for pair in row["settings"].split(", "))
            assert all(str(tuned.settings[name]) == value for name, value in given.items() if name != "levels")


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
        (NFE, 0, {}, "num must be a whole number, at least 1, not 0"),
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
    assert images.shape == (8, 1, 8, 8) and rows == 8 * slow.SMOOTH and torch.equal(images, again)
    assert -0.5 < images.min() and images.max() < 1.5 and images.std() > 0.2


def test_a_class_is_searched_as_it_will_be_sampled(model, monkeypatch, tmp_path):
    """Guidance as well: trials and slow images are of the class, within the budget, and the settings found name it."""
    halves = [EmpiricalData(model.images[at::2], sigma_min=0.05, sigma_max=10.0) for at in (0, 1)]
    models = [*halves, model]

    def by_class(x, sigma, labels):
        return torch.stack([m(x, sigma) for m in models])[labels, torch.arange(len(x))]

    bed = count_nfe(Adapter(by_class, (1, 8, 8), (0.0, 1.0), 0.05, 10.0, model.mean, classes=2, unconditional=-1))
    bed.denoiser.net = torch.nn.ParameterList([model.images])  # what a run is named by
    monkeypatch.setattr(paired, "in_blocks", lambda model, block: model)  # a copy would count alone
    slow = []
    make_reference = chains.metrics.make_reference
    monkeypatch.setattr(
        chains.metrics, "make_reference", lambda images, *more: slow.append(images) or make_reference(images, *more)
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


@pytest.fixture
def even(monkeypatch):
    """Chains and plain samplers at one distance: the plain one is taken, and nothing is made or fitted for chains."""

    def law(search, sampler, settings, seed=chains.TRIAL):
        about = {"sampler": sampler, **settings, "seed": seed, "rows": 0}
        return about | {"distance": 1.0, "without": [1.0] * chains.GROUPS}

    monkeypatch.setattr(chains.Chains, "measured", law)
    monkeypatch.setattr(chains.Chains, "consider_fitted", lambda *_: (0, ""))


@pytest.fixture
def mixture():
    """Three Gaussians of low rank in images of 8x8."""
    return LowRankMixture(
        torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        0.3 * torch.randn(3, 64, 2, generator=torch.Generator().manual_seed(1)),
        torch.full((3,), 0.01),
        torch.ones(3),
        sigma_min=0.02,
        sigma_max=10.0,
        data_range=(0.0, 1.0),
    )


@pytest.mark.parametrize("nfe", [6, 12])
def test_auto_takes_the_plain_sampler_with_the_least_paired_error(mixture, even, nfe):
    """Tried here on the same noise, all on all images, by a finer solution of another integrator."""
    x = prior(mixture, Streams(paired.PAIRED, "image", paired.ALL), len(paired.ALL), "mean")
    ends = (mixture.sigma_max, mixture.sigma_min)
    truth = integrators.heun(mixture, x, schedules.karras(300, *ends))
    errors = {}
    for name, entry in integrators.INTEGRATORS.items():
        if entry.calls and not entry.stochastic and entry.calls(1) <= nfe:
            for grid in ("karras", "log_uniform"):
                sigmas = schedules.SCHEDULES[grid](entry.levels(nfe), *ends)
                errors[name, grid] = paired_error(entry(mixture, x, sigmas), truth)
    tuned = tuning.auto(mixture, nfe, NUM, plain=True)
    assert (tuned.sampler, tuned.settings["schedule"]) == min(errors, key=lambda key: errors[key])
    assert {(row["sampler"], row["settings"]["schedule"]) for row in tuned.paired} == errors.keys()
    first, *others = tuned.paired
    assert first["error"] == pytest.approx(errors[tuned.sampler, tuned.settings["schedule"]], rel=0.02)
    assert all(row["images"] < first["images"] or row["error"] >= first["error"] for row in others)
    assert tuned.rows < 24 * (60 + 18 * nfe), "the far ones are not tried on all images"


def test_fitted_is_taken_for_many_images_and_not_for_few(mixture, even, tmp_path):
    few, many = (tuning.auto(mixture, 6, num, plain=True, cache_dir=tmp_path) for num in (100, 5000))
    assert few.sampler != "fitted" and "fitted was not considered: its fit may cost" in str(few)
    assert many.sampler == "fitted" and many.paired[0]["error"] < few.paired[0]["error"]
    cost = load_fitted(many.settings["file"]).cost
    assert 0 < cost <= fitting.cost_at_most(6) <= 6 * 5000 and f"its fit cost {cost} evaluations" in str(many)
    assert many.rows - few.rows == cost + 6 * len(paired.ALL)
    again = tuning.auto(mixture, 6, 100, plain=True, cache_dir=tmp_path)  # it costs nothing now
    assert again.sampler == "fitted" and again.rows == many.rows - cost and "it was fitted before" in str(again)


def test_fitted_solvers_follow_chains_where_that_is_surely_better_and_pays(mixture, tmp_path, monkeypatch):
    """Trials by a law in which they are better, or as good; the fit itself is real."""
    better, asked = 0.5, []

    def law(search, sampler, settings, seed=chains.TRIAL):
        distance = better if sampler == "dlg+fitted" else 1.0
        asked.append((sampler, settings))
        row = {"sampler": sampler, **settings, "rows": 1, "seed": seed}
        return row | {"distance": distance, "without": [distance] * chains.GROUPS}

    monkeypatch.setattr(chains.Chains, "measured", law)
    monkeypatch.setattr(fitting, "TRAJECTORIES", 8)
    few = tuning.auto(mixture, 8, 100, cache_dir=tmp_path)
    assert "dlg+fitted" not in [sampler for sampler, _ in asked] and "dlg+fitted was not considered: its fit" in str(
        few
    )
    many = tuning.auto(mixture, 8, 50_000, cache_dir=tmp_path)
    assert many.sampler == "dlg+fitted" and "schedule" not in many.settings
    assert many.settings.items() >= {name: few.settings[name] for name in ("eta", "renoise", "n_skip")}.items()
    (solvers,) = load_from_levels(many.settings["file"]).values()
    cost = solvers.solvers[-1].cost
    assert 0 < cost <= fitting.cost_at_most(7, chained=True) and f"its fit cost {cost} evaluations" in str(many)
    assert many.rows - few.rows == cost
    made = run(mixture, many.sampler, 16, 64, 0, tmp_path / "run", many.settings, progress=False)
    assert made["plan"]["sampler"] == "dlg+fitted"
    better = 1.0
    as_good = tuning.auto(mixture, 8, 50_000, cache_dir=tmp_path)
    assert as_good.sampler == few.sampler and "dlg+fitted is at 1" in str(as_good)
    fixed = tuning.auto(mixture, 8, 50_000, {"integrator": "heun"}, cache_dir=tmp_path)
    assert "dlg+fitted was not considered, as integrator is set" in str(fixed)


def test_a_fit_is_counted_once_and_made_again_where_its_file_has_gone(mixture, even, tmp_path, monkeypatch):
    path, where = tmp_path / "out" / "tuning.json", tmp_path / "cache"
    climb = chains.Chains.climb

    def interrupted(search):
        raise KeyboardInterrupt

    monkeypatch.setattr(chains.Chains, "climb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.auto(mixture, 6, 5000, plain=True, path=path, cache_dir=where)
    monkeypatch.setattr(chains.Chains, "climb", climb)
    monkeypatch.setattr(paired, "in_blocks", lambda model, block: model)
    counted = count_nfe(mixture)
    tuned = tuning.auto(counted, 6, 5000, plain=True, path=path, cache_dir=where)
    assert counted.rows == 0 and "its fit cost" in str(tuned)
    assert tuned.rows > load_fitted(tuned.settings["file"]).cost > 0
    file = Path(tuned.settings["file"])
    before = file.read_bytes()
    file.unlink()
    assert tuning.auto(mixture, 6, 5000, plain=True, path=path, cache_dir=where) == tuned
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({"schedule": "karras"}, "fitted was not considered, as schedule is set"),
        ({"start": "zero"}, "fitted was not considered, as start is set"),
        ({"integrator": "unipc"}, "fitted was not considered, as integrator is set"),
        ({"eta": 0.3, "block": 32}, "fitted is at"),
    ],
)
def test_fitted_is_not_considered_where_a_setting_of_others_is_fixed(mixture, even, tmp_path, fixed, said):
    tuned = tuning.auto(mixture, 4, 5000, fixed, plain=True, cache_dir=tmp_path)
    assert said in str(tuned) and (tuned.sampler == "fitted") == ("is at" in said)
    assert {row["settings"].get("schedule") for row in tuned.paired} - {None} <= {"karras", "log_uniform"}
    assert fixed.keys() - {"integrator", "eta"} <= tuned.settings.keys()


def test_an_integrator_that_adds_noise_is_not_paired_with_anything(model, trials):
    tuned = tuning.auto(model, NFE, NUM, {"integrator": "ancestral"}, plain=True)
    assert tuned.paired == [] and {sampler for sampler, _, _ in trials} == {"dlg+ancestral", "ancestral"}


def test_a_sampler_that_leaves_the_finite_numbers_comes_last(mixture, even, monkeypatch):
    def broken(denoiser, x, sigmas, **_):
        denoiser(x, sigmas[..., 0])
        return x * float("nan")

    entry = dataclasses.replace(integrators.INTEGRATORS["unipc"], function=broken)
    plans = plain.candidates(mixture, 6, NUM, {})
    search = paired.Paired(mixture, 6, {}, Notes(None, {}), print)
    assert search.truth.isfinite().all()  # by the true one
    monkeypatch.setitem(integrators.INTEGRATORS, "unipc", entry)
    *_, one, other = plain.ranked(search, plans)
    assert {one["sampler"], other["sampler"]} == {"unipc"} and one["error"] == other["error"] == float("inf")
