"""The study of semantic control: arms that are paired, measures whose truth is known, and what cannot be studied."""

import math

import pytest
import torch

from dmcmc_core import boundary, load_model
from dmcmc_core.boundary import Boundary
from dmcmc_core.errors import UserError
from dmcmc_core.report.tables import Spread
from dmcmc_core.workbench.studies import boundary as jobs
from dmcmc_core.workbench.studies import boundary_curves as curves
from dmcmc_core.workbench.studies import boundary_measures as measures
from dmcmc_core.workbench.studies.boundary import Latents, Way

DIGITS = {
    "model": "digits",
    "features": "digits-cnn",
    "negative": "digits-train:7",
    "positive": "digits-train:3",
    "source": "digits-heldout:7",
    "target": "digits-heldout:3",
}
TIME, COUNT = 300, 5


@pytest.fixture(scope="module")
def bed():
    return measures.make_bed("digits", DIGITS, 20, 6)


@pytest.fixture(scope="module")
def made(bed):
    return curves.fitted(bed, 0, time=TIME, count=COUNT)


def unit(*numbers):
    normal = torch.tensor(numbers)
    return normal / normal.norm()


def test_both_levels_are_those_of_the_released_order(bed):
    """The bottleneck of a time is of the call before, on the way up."""
    times = boundary.grid(TIME, COUNT)
    states = jobs.both(bed.model, bed.source, times)
    assert len(states) == COUNT - 1
    for i in (1, COUNT - 1):
        for level in ("z", "h"):
            wanted = jobs.latents(bed.model, bed.source, times[: i + 1], level)
            assert torch.allclose(getattr(states[i - 1], level), wanted, atol=1e-4)


def test_each_boundary_has_its_strength(monkeypatch):
    model = load_model("digits")
    monkeypatch.setattr(boundary, "reverse", lambda epsilon, z, *_: z)
    card = {"time": TIME, "count": COUNT, "level": "z", "network": jobs.fingerprint(model)[:16]}
    normals = [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)]
    normals[0][0, 0, 0], normals[1][0, 0, 1] = 1.0, 0.8
    normals[1][0, 0, 0] = 0.6
    ones = [Boundary(normal, 0.0, 1.0, card) for normal in normals]
    z = torch.zeros(2, 1, 8, 8)
    moved = 2 * jobs.edited(model, z, ones, [0.5, -0.75]) - 1
    assert torch.allclose(moved[:, 0, 0, :2], torch.tensor([0.5, -0.75]))
    apart = 2 * jobs.edited(model, z, ones, [0.5, -0.75], way=Way(orthogonal=False)) - 1
    assert torch.allclose((apart * normals[1]).sum((1, 2, 3)), torch.tensor(-0.75))
    assert not torch.allclose(apart[:, 0, 0, 0], torch.tensor(0.5))
    with pytest.raises(UserError, match="needs the bottleneck"):
        jobs.edited(model, z, [Boundary(normals[0], 0.0, 1.0, card | {"level": "h"})], 1.0)
    with pytest.raises(UserError, match="of another time, 100, not 300"):
        jobs.edited(model, z, [ones[0], Boundary(normals[1], 0.0, 1.0, card | {"time": 100})], 1.0)


def test_what_is_read_off_glyphs_is_how_they_were_drawn(bed):
    for attribute, value, least in (("ink", "light", 1.0), ("ground", "bright", 0.97), ("weight", "700", 0.95)):
        images = jobs.images_of(f"glyphs32-heldout:{attribute}={value}")[:60]
        other = {"light": "dark", "bright": "dark", "700": "400"}[value]
        others = jobs.images_of(f"glyphs32-heldout:{attribute}={other}")[:60]
        read = measures.reader(f"glyphs32:{attribute}={other}", f"glyphs32:{attribute}={value}", bed.extractor)
        right = [read(images).positive.double().mean(), 1 - read(others).positive.double().mean()]
        assert min(right) >= least, (attribute, right)
        assert read(images).others.shape[1] == (3 if attribute == "weight" else 4)
    both = jobs.images_of("glyphs32-heldout:ink=dark,ground=bright")
    read = measures.reader("glyphs32:weight=400", "glyphs32:ground=bright", bed.extractor)
    assert (
        0 < len(both) < len(jobs.images_of("glyphs32-heldout:ink=dark")) and read(both).positive.double().mean() > 0.97
    )


def test_directions_are_those_of_the_latents():
    generator = torch.Generator().manual_seed(0)
    shift = {"z": torch.tensor([3.0, 0, 0]), "h": torch.tensor([0, 0, 0, 6.0])}

    def side(sign, n):
        return Latents(*(torch.randn(n, len(s), generator=generator) + sign * s for s in shift.values()))

    fits, rest = ([side(-1, n), side(1, n)] for n in (60, 20))
    found = measures.directions(fits, rest, {"time": 5, "count": 3}, 4)
    for level, s in shift.items():
        for name in ("boundary", "mean difference"):
            one = found[name].of[level]
            assert one.normal @ s / s.norm() > 0.95 and one.card == {"time": 5, "count": 3, "level": level}
        assert found["boundary"].of[level].accuracy > 0.95
        assert abs(found["boundary"].spread[level] / (1 + s.norm() ** 2) ** 0.5 - 1) < 0.15
        chance = found["random"].of[level].normal
        assert abs(chance.norm() - 1) < 1e-6
        other = measures.directions(fits, rest, {}, 5)["random"].of[level].normal
        assert not torch.allclose(chance, other)
    swapped = measures.directions(fits, rest[::-1], {}, 4)
    assert swapped["boundary"].of["z"].accuracy < 0.05, "the accuracy is of latents that were not fitted"


def test_arms_share_latents_and_noise(bed, made):
    """An edit that moves nothing is no edit, to the bit; without noise the image comes back."""
    source = jobs.both(bed.model, bed.source, boundary.grid(TIME, COUNT))[-1]

    def images(name, strength, **change):
        arm = measures.ARMS[name]._replace(**change)
        return measures.edit_by(bed.model, source, made, arm, strength, 3)

    plain = images("no edit", 0.0)
    assert torch.equal(images("z, add", 0.0), plain) and torch.equal(images("z, random", 0.0, how="add"), plain)
    assert not torch.equal(images("z", 3.0), plain)
    swapped = images("h of another image", 0.0)
    assert not torch.equal(swapped, plain)
    own = jobs.edited(bed.model, source.z, [made["boundary"].of["h"]], 0.0, source.h, Way("add", seed=3))
    assert (own - plain).square().mean() < (swapped - plain).square().mean(), "its own is only of the time before"
    quiet = images("no edit, no noise", 0.0)
    assert (quiet - bed.source).square().mean() < (plain - bed.source).square().mean()


def test_the_strength_in_h_is_scaled_by_the_spreads(bed, made, monkeypatch):
    given = []
    monkeypatch.setattr(jobs, "edited", lambda model, z, ones, each, h, way: given.append((len(ones), each)))
    for name in ("z and h, as released", "h, scaled"):
        measures.edit_by(bed.model, Latents(torch.zeros(1), torch.zeros(1)), made, measures.ARMS[name], 2.0, 0)
    spread = made["boundary"].spread
    assert given == [(2, [2.0, 2.0]), (1, [2.0 * spread["h"] / spread["z"]])]


def test_what_an_edit_did_is_counted(bed):
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0]])
    wide = torch.nn.functional.pad(features, (0, 62))
    others = torch.tensor([[1, 2], [3, 4], [5, 6]])
    before = measures.Seen(measures.Reading(torch.tensor([False, False, True]), others, torch.zeros(3, 1)), wide)
    after = measures.Seen(
        measures.Reading(torch.tensor([True, False, True]), others + torch.eye(3, 2).long(), torch.full((3, 1), 0.2)),
        wide.flip(1).flip(1) + torch.nn.functional.pad(torch.ones(3, 1), (0, 63)),
    )
    found = measures.compare(before, after, bed)
    assert found["flipped"] == 0.5 and found["kept"] == pytest.approx(4 / 6)
    assert found["moved"] == pytest.approx(0.2) and found["identity"] == pytest.approx(1 / (10 / 3))
    assert found["frechet"] > 0
    none = measures.compare(before._replace(reading=before.reading._replace(numbers=torch.zeros(3, 0))), after, bed)
    assert not none["moved"] == 0.2


def test_a_run_has_a_row_for_every_arm_strength_and_seed(bed):
    arms = {name: measures.ARMS[name] for name in ("z", "h", "no edit")}
    rows, fits, made, pictures = measures.run(bed, arms, [1.0, 4.0], [0, 1], time=TIME, count=COUNT)
    assert list(pictures["z"]) == ["image", "1", "4"] and list(pictures["no edit"]) == ["image", "unedited"]
    assert torch.equal(pictures["h"]["image"], bed.source) and set(made) == {"boundary", "mean difference", "random"}
    cells = [(row["arm"], row["strength"], row["seed"]) for row in rows]
    assert len(cells) == len(set(cells)) == 10 and {row["n"] for row in rows} == {6}
    assert {row["calls"] for row in rows} == {COUNT - 1 + COUNT}
    assert [(row["level"], row["dimension"]) for row in fits] == [("z", 64), ("h", 1024)] * 2
    again = measures.run(bed, {"z": arms["z"]}, [4.0], [1], time=TIME, count=COUNT).rows
    same = next(row for row in rows if (row["arm"], row["strength"], row["seed"]) == ("z", 4.0, 1))
    assert again[0] == pytest.approx(same, nan_ok=True)


def test_folders_of_pictures_are_kinds(bed, tmp_path):
    found = curves.of_folders(bed, tmp_path)
    assert len(list((tmp_path / "positive").glob("*.png"))) == 20
    assert (found.positive - bed.positive).abs().max() < 0.51 / 255 and found.name == "digits, folders"


def test_orders_and_claims_are_those_of_their_rows():
    rows = [
        {"panel": "p", "arm": arm, "x": n, "y": (n - 1) ** -power}
        for arm, power in (("a", 1), ("b", 2))
        for n in (5, 9)
    ]
    assert curves.order(rows, "p", "a") == pytest.approx(1) and curves.order(rows, "p", "b") == pytest.approx(2)

    def row(arm, mean, strength=4.0):
        return {"bed": "digits", "arm": arm, "strength": strength, "flipped": Spread(mean, 0.02, 2)}

    flips = {"z and h, as released": 0.8, "z": 0.75, "h": 0.1, "h, scaled": 0.12, "z and h, random": 0.08}
    table = [row(arm, mean) for arm, mean in flips.items()] + [row("z", 0.2, 1.0), row("no edit", 0.05, 0.0)]
    returning = [
        {"panel": "digits", "arm": arm, "x": n, "y": 1 / (n - 1)}
        for arm in (curves.RETURNS, curves.PUBLISHED)
        for n in (5, 9)
    ]
    fits = [{"bed": "digits", "level": level, "accuracy": Spread(0.97, 0.01, 2)} for level in ("z", "h")]
    found = curves.claims(table, fits, returning, {"digits": {"inside": 0.9, "time": 100}}, "n = 6")
    assert [one["holds"] for one in found] == [True] * 5
    assert "80% ± 2% at 4 against 8%" in found[0]["here"] and "97% of unseen" in found[0]["note"]
    assert "order 1.00" in found[3]["here"]
    table[2] = row("h", 0.6)
    table += [row("z, mean difference", 0.9), row("h of another image", 0.07, 0.0)]
    found = curves.claims(table, fits, returning, {"digits": {"inside": 1.1, "time": None}}, "n = 6")
    assert [one["holds"] for one in found] == [True, True, False, False, True, False]
    assert "other images in their place: 7% ± 2%" in found[2]["note"]
    table[0] = row("z and h, as released", 0.1)
    found = curves.claims(table, fits, returning, {"digits": {"inside": 0.9, "time": None}}, "n = 6")
    assert [one["holds"] for one in found] == [False, True, True], "nothing is said of levels where nothing is changed"


def test_spreads_leave_out_what_is_no_number():
    rows = [{"a": 1, "x": 2.0, "y": math.nan}, {"a": 1, "x": 4.0, "y": math.nan}]
    (row,) = curves.spreads(rows, ["x", "y"], ["a"])
    assert row["x"] == Spread(3.0, pytest.approx(2**0.5), 2) and row["y"] is None


def test_what_cannot_be_studied_is_one_sentence(bed):
    for change, match in (
        ({"target": None}, "the bed 'x' lacks target"),
        ({"positive": "glyphs32:size=20"}, "unknown attribute that can be read off glyphs 'size'"),
        ({"negative": "digits-train:11"}, "no image of digits-train is of the kind '11'"),
    ):
        given = {k: v for k, v in {**DIGITS, **change}.items() if v}
        with pytest.raises(UserError, match=match):
            if "positive" in change:
                measures.reader(given["negative"], given["positive"], bed.extractor)
            else:
                measures.make_bed("x", given, 4, 4)
    with pytest.raises(UserError, match="direction must be one of"):
        source = Latents(torch.zeros(1, 1, 8, 8), torch.zeros(1))
        measures.edit_by(bed.model, source, {"boundary": None}, measures.Arm("sideways"), 1.0, 0)
