"""Figures: what they show, that they look the same twice, and that they say where they come from."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.text
import numpy as np
import pytest
import torch

from dmcmc_core.errors import UserError
from dmcmc_core.report import plots
from dmcmc_core.report.tables import Spread
from dmcmc_core.runs import cache
from dmcmc_core.workbench.experiments import imported_modules

SAVE = """
from dmcmc_core.report import plots
rows = [dict(integrator=i, arm=a, nfe=n, distance=100 / n**k, spread=1 / n)
        for k, i in enumerate(("heun", "euler")) for a in plots.ARMS for n in (9, 25)]
figure = plots.distance_against_nfe(rows, "distance", reference=2.0)
plots.save_figure(figure, folder, "f", rows, {"commit": "abc", "seconds": 1})
"""


def test_a_figure_is_the_same_bytes_in_every_process_and_holds_its_origin(tmp_path):
    from PIL import Image

    program = f"folder = {str(tmp_path / 'one')!r}\nprint(hash('a salt'))" + SAVE
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    assert int(done.stdout) != hash("a salt"), "this process has a salt of its own"
    exec(SAVE, {"folder": str(tmp_path / "two")})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["f.csv", "f.pdf", "f.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with Image.open(tmp_path / "one" / "f.png") as image:
        assert json.loads(image.text["Provenance"]) == {"commit": "abc"} and "Software" not in image.text
    assert b"CreationDate" not in (tmp_path / "one" / "f.pdf").read_bytes()
    assert (tmp_path / "one" / "f.csv").read_text().splitlines()[1] == "heun,zero mean,9,100.0,0.1111111111111111"


def test_figures_need_their_numbers(tmp_path):
    figure = plots.noise_level_trace(np.ones((3, 1)))
    with pytest.raises(UserError, match="needs the rows of plotted numbers"):
        plots.save_figure(figure, tmp_path, "f", [])
    assert not list(tmp_path.iterdir())


def test_distance_panels_show_every_arm_and_the_spread():
    rows = [
        dict(integrator=panel, arm=arm, nfe=nfe, distance=Spread(d * nfe, 0.5, 3))
        for panel, d in (("heun", 1.0), ("euler", 2.0))
        for arm in ("with DLG", "zero mean")
        for nfe in (4, 2)
    ]
    figure = plots.distance_against_nfe(rows, "distance", panels=["euler", "heun"])
    first, second = figure.axes
    assert [a.get_title() for a in figure.axes] == ["euler", "heun"] and first.get_yscale() == "linear"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["zero mean", "with DLG"]
    line, _, (bars,) = second.containers[0].lines
    assert line.get_xdata().tolist() == [2, 4] and line.get_ydata().tolist() == [2, 4]
    assert bars.get_segments()[0][:, 1].tolist() == [1.5, 2.5]
    rows[0]["distance"] = 100.0
    assert plots.distance_against_nfe(rows, "distance").axes[0].get_yscale() == "log"


def test_mosaic_puts_images_row_by_row():
    images = torch.arange(3).reshape(3, 1, 1, 1).expand(3, 1, 2, 2) / 2
    sheet = plots.mosaic(images, ncols=2)
    assert sheet.shape == (5, 5, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 3, 0] == 0.5 and sheet[3, 0, 0] == 1 and sheet[3, 3, 0] == 1  # white: empty
    assert (plots.mosaic(images * 2 - 1, 2, (-1, 1)) == sheet).all()
    assert (plots.as_pictures(np.full((1, 2, 2), 255, np.uint8)) == 1).all()
    with pytest.raises(UserError, match="C 1 or 3, not"):
        plots.mosaic(np.zeros((1, 2, 4, 4)))


def test_trajectories_and_traces_show_the_noise_levels():
    figure = plots.trajectories(np.zeros((2, 3, 1, 4, 4)), np.array([10.0, 1.0, 0.1]), row_labels=["heun", "DLG"])
    assert [a.get_title() for a in figure.axes] == ["σ = 10", "σ = 1", "σ = 0.1"] * 2
    assert figure.axes[3].get_ylabel() == "DLG"
    sigmas = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (axes,) = plots.noise_level_trace(sigmas, picked=[[True, False], [False, True]]).axes
    assert axes.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 3], [1], [2, 4], [4]]


def test_drawing_leaves_the_users_style_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.image_grid(np.zeros((4, 4, 4)), title="four")
    assert dict(matplotlib.rcParams) == before


def test_an_ablation_has_a_panel_for_every_factor_of_every_bed():
    rows = [
        dict(bed=bed, factor=factor, value=value, distance=Spread(d, 0.1, 3), base=value == "b")
        for bed in ("one", "two")
        for factor in ("step", "split", "rule")
        for value, d in (("a", 2.0), ("b", 1.0))
    ]
    figure = plots.ablation(rows, "distance", {"one": {"Heun": 1.5}}, ncols=2)
    assert [a.get_title() for a in figure.axes] == ["step", "split", "rule"] * 2
    first = figure.axes[0]
    assert [t.get_text() for t in first.get_xticklabels()] == ["a", "b"] and first.get_yscale() == "linear"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["base", "one factor changed", "Heun"]
    marked = next(line for line in first.lines if line.get_marker() == "s")
    assert list(marked.get_xdata()) == [1] and list(marked.get_ydata()) == [1]
    rows[0]["distance"] = Spread(20.0, float("nan"), 1)
    assert plots.ablation(rows, "distance").axes[0].get_yscale() == "log"


def test_the_bars_of_a_waterfall_hang_between_wrong_and_right():
    rows = [
        dict(bed="one", part=part, direction=direction, above=a, below=b, contribution=Spread(a - b, 0.1, 3))
        for direction in ("forward", "back")
        for part, a, b in (("start", 5.0, 3.0), ("kernel", 3.0, 3.5))
    ]
    (axes,) = plots.waterfall(rows, "distance", {"one": {"floor": 1.0}}).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["start", "kernel"] and axes.yaxis_inverted()
    assert [(p.get_x(), p.get_width()) for p in axes.patches] == [(3.0, 2.0), (3.5, -0.5)] * 2
    assert [t.get_text() for t in axes.texts] == ["+2", "-0.5"] * 2


def test_the_concept_shows_every_path():
    paths = {"chain": [([0, 1], [1, 2])], "short": [([0, 0], [1, 0.5]), ([1, 1], [2, 0.5])]}
    (axes,) = plots.concept(torch.linspace(-1, 2, 4), [0.5, 1, 2], np.ones((3, 4)), paths).axes
    assert axes.get_yscale() == "log" and axes.get_xlim() == (-1, 2)
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 2], [1, 0.5], [2, 0.5]]


def test_curves_have_bands_and_dashed_expectations():
    rows = [dict(panel=p, arm=a, x=x, y=Spread(x + 1.0, 0.5, 3)) for p in "uv" for a in "ab" for x in (1, 0)]
    rows += [dict(panel="v", arm="b", x=x, y=2.0 * x, expected=True) for x in (0, 1)]
    figure = plots.curve_panels(rows, "steps", "level", dashes="theory")
    u, v = figure.axes
    assert [line.get_linestyle() for line in v.lines] == ["-", "-", "--"] and len(u.lines) == 2
    assert v.lines[1].get_ydata().tolist() == [1, 2] and v.lines[2].get_ydata().tolist() == [0, 2]
    assert v.lines[2].get_color() == v.lines[1].get_color() != v.lines[0].get_color()
    assert u.collections[0].get_datalim(u.transData).height == pytest.approx(2)  # from 1 - 0.5 to 2 + 0.5
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "theory"]


def test_a_density_stands_behind_the_curves_of_its_panel():
    rows = [dict(panel=p, arm="a", x=x, y=x) for p in "uv" for x in (0, 1)]
    u, v = plots.curve_panels(rows, "t", "x", behind={"u": (torch.linspace(0, 1, 3), [0, 2], np.ones((2, 3)))}).axes
    assert not v.collections[1:] and len(u.collections) == 2
    shade = u.collections[-1]
    assert shade.get_array().shape == (2, 3) and shade.get_zorder() < u.lines[0].get_zorder()


def test_starts_stand_over_what_they_became():
    images = np.zeros((3, 1, 4, 4))
    figure = plots.start_panels({"noise": (images, [5.0] * 3, images), "chain": (images, [1.0, 2.0, 3.0], images + 1)})
    noise, chain = figure.subfigs
    assert [a.get_title() for a in noise.axes] == ["σ = 5"] * 3 + [""] * 3
    assert [a.get_title() for a in chain.axes[:3]] == ["σ = 1", "σ = 2", "σ = 3"]
    assert chain.axes[3].images[0].get_array().min() == 1


def test_class_traces_colour_states_by_class():
    trace = ([0, 1], np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0, 1], [1, 1]]))
    figure = plots.class_traces({"mala": trace}, ["zero", "one"], sigma_range=(0.1, 10.0))
    (axes,) = figure.axes
    assert axes.get_title() == "mala" and axes.get_yscale() == "log" and len(axes.lines) == 4
    first, second = (points.get_facecolors().tolist() for points in axes.collections)
    assert first[0] != first[1] == second[0] == second[1]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["zero", "one"]
    calls = "network calls per chain"  # under the lowest panel of every column
    figure = plots.class_traces(dict.fromkeys("abcd", trace), ["zero", "one"])
    assert [a.get_xlabel() for a in figure.axes] == ["", calls, calls, calls]


def test_dots_are_joined_to_crosses():
    values = {("zero mean", 30): 4.0, ("with DLG", 10): 2.0, ("data mean", 10): 3.0, ("data mean", 30): 2.5}
    rows = [
        dict(panel=p, integrator=i, arm=arm, nfe=nfe, distance=Spread(d, 0.1, 3))
        for p in ("digits", "glyphs")
        for i in ("heun", "rk45", "euler")
        for (arm, nfe), d in values.items()
    ]
    figure = plots.dots_and_crosses(rows, {"digits": "one distance", "glyphs": "another"}, {"digits": 1.0})
    digits, glyphs = figure.axes
    assert digits.get_ylabel() == "one distance" and glyphs.get_title() == "glyphs"
    joined = [line for line in digits.lines if line.get_linestyle() == "--"]
    assert len(joined) == 3 and joined[0].get_ydata().tolist() == [4, 2]
    assert list(joined[1].get_xdata()) == [30, 10] and joined[0].get_xdata()[0] < 30 < joined[2].get_xdata()[0]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names[-3:] == ["without DLG", "with DLG", "data-mean start"] and "same-n floor" in names


def test_rows_of_images_stand_beside_their_labels():
    lines = {"heun": np.zeros((6, 1, 8, 8)), "euler": np.ones((6, 1, 8, 8))}
    figure = plots.image_rows({"without": lines, "with": lines, "third": lines})
    assert [a.get_title() for a in figure.axes] == ["without", "with", "third"]
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["heun", "euler"]
    assert axes.images[0].get_array().shape == (18, 53, 3) and axes.get_yticks().tolist() == [4, 13]


def widest():
    """A figure of every function that draws numbers, as wide as it gets, with the names of its lines."""
    distances = [dict(integrator=i, arm=a, nfe=n, distance=1.0) for i in "abcd" for a in plots.ARMS for n in (9, 25)]
    lines = [dict(panel=p, line=k, nfe=n, distance=Spread(1.0, 0.1, 3)) for p in "abc" for k in "1234" for n in (5, 9)]
    curves = [dict(panel=p, arm=a, x=x, y=float(x)) for p in "abc" for a in "uv" for x in (1, 2)]
    shares = [
        dict(bed=b, line="a", panel=p, x=0.5, y=0.5) for b in "ab" for p in ("error", "total variation", "coverage")
    ]
    parts = [dict(bed=b, part="x", direction="d", above=2.0, below=1.0, contribution=Spread(1.0, 0.1, 3)) for b in "ab"]
    factors = [
        dict(bed="a", factor=f, value=v, distance=Spread(1.0, 0.1, 3), base=v == 1) for f in "abcdefg" for v in (1, 2)
    ]
    trace = ([0, 1], np.array([[1.0], [3.0]]), np.array([[0], [1]]))
    walks = [dict(panel=p, arm="a", x=x, y=x) for p in "abc" for x in (0, 1)]
    return {
        "distance_against_nfe": plots.distance_against_nfe(distances, "distance"),
        "distance_lines": plots.distance_lines(lines, dict.fromkeys("abc", "distance")),
        "curve_panels": plots.curve_panels(curves, "x", "y"),
        "posterior_panels": plots.posterior_panels(shares),
        "waterfall": plots.waterfall(parts, "distance"),
        "ablation": plots.ablation(factors, "distance"),
        "class_traces": plots.class_traces(dict.fromkeys("abcd", trace), ["zero", "one"]),
        "paths": plots.paths(walks, np.eye(2)),
    }


def test_no_letter_has_less_than_seven_points_where_a_page_shows_a_figure():
    for name, figure in widest().items():
        texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
        least, width = min(t.get_fontsize() for t in texts), figure.get_figwidth()
        assert least * min(1, plots.COLUMN / width) >= 7, (name, least, width)


def test_long_names_stay_within_their_panels_and_the_figure():
    panels = [f"digits ({n} levels): share of the positive kind" for n in ("one", "two", "three")]
    arms = [f"a long name, {a}" for a in "abcdefgh"]
    curves = [dict(panel=p, arm=a, x=x, y=float(x)) for p in panels for a in arms for x in (1, 2)]
    lines = [dict(panel=p, line=a, nfe=9, distance=Spread(1.0, 0.1, 3)) for a in arms for p in "ab"]
    for figure in (plots.curve_panels(curves, "x", "y"), plots.distance_lines(lines, dict.fromkeys("ab", "distance"))):
        figure.draw_without_rendering()
        titles = [axes.title.get_window_extent() for axes in figure.axes]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(titles))
        assert figure.get_tightbbox().width <= 1.02 * figure.get_figwidth()


@pytest.mark.parametrize("profile", ["local", "full"])
def test_a_published_panel_has_eight_lines_at_most(profile):
    folder = Path(__file__).resolve().parents[1] / "figures" / "published" / profile
    seen = 0
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        line = next((name for name in ("line", "arm") if rows and name in rows[0]), None)
        if path.with_suffix(".png").is_file() and line and "panel" in rows[0]:
            panels = {row["panel"]: set() for row in rows}
            for row in rows:
                panels[row["panel"]].add(row[line])
            assert max(map(len, panels.values())) <= 8, path
            seen += 1
    assert seen > 5


def test_twenty_methods_look_different():
    assert len({tuple(plots.style.look(k).values()) for k in range(20)}) == 20


def test_every_method_is_a_line():
    rows = [
        dict(panel=p, line=m, nfe=nfe, distance=Spread(d, 0.1, 3))
        for p in ("digits", "glyphs")
        for m, d in (("heun", 2.0), ("dlg", 1.0))
        for nfe in (20, 5)
    ]
    figure = plots.distance_lines(rows[:-1], {"digits": "one distance", "glyphs": "another"}, {"glyphs": 0.5})
    digits, glyphs = figure.axes
    assert [line.get_xdata().tolist() for line in digits.lines if len(line.get_xdata()) == 2][0] == [5, 20]
    assert digits.get_ylabel() == "one distance" and digits.get_xscale() == "log"
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["heun", "dlg", "same-n floor"]


def test_distance_is_drawn_against_another_cost_where_it_is_known():
    rows = [dict(panel="digits", line="heun", ms=ms, distance=d) for ms, d in ((40.0, 1.0), (None, 9.0), (10.0, 2.0))]
    (axes,) = plots.distance_lines(rows, {"digits": "distance"}, x="ms", xlabel="milliseconds").axes
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 2.0], [40.0, 1.0]]
    assert axes.get_xlabel() == "milliseconds"
    (axes,) = plots.distance_lines(rows[1:2], {"digits": "distance"}, {"digits": 0.5}, x="ms").axes  # none is known
    assert len(axes.lines) == 1


def test_a_figures_numbers_hold_no_mappings(tmp_path):
    figure = plots.distance_lines([dict(panel="d", line="heun", nfe=5, distance=1.0)], {"d": "distance"})
    rows = [{"nfe": 5, "settings": {"start": "mean"}, "seconds": {}, "distance": 1.0}]
    plots.save_figure(figure, tmp_path, "f", rows, {})
    assert (tmp_path / "f.csv").read_text() == "nfe,distance\n5,1.0\n"


def test_a_figure_is_drawn_once_a_file(tmp_path, monkeypatch):
    figure = plots.distance_lines([dict(panel="d", line="heun", nfe=5, distance=1.0)], {"d": "distance"})
    drawn, draw = [], type(figure).draw
    monkeypatch.setattr(type(figure), "draw", lambda self, renderer: drawn.append(self) or draw(self, renderer))
    plots.save_figure(figure, tmp_path, "f", [{"nfe": 5}], {})
    assert len(drawn) == 2


def test_posteriors_stand_beside_the_truth():
    rows = [
        dict(bed=bed, line=line, panel=panel, x=x, y=0.3)
        for bed in ("digits", "glyphs")
        for line in ("exact", "residual")
        for panel in ("error", "total variation", "coverage")
        for x in (0.9, 0.1)
    ]
    figure = plots.posterior_panels([r for r in rows if (r["bed"], r["line"]) != ("glyphs", "residual")], "title")
    assert [a.get_title() for a in figure.axes[::3]] == ["digits: error", "glyphs: error"]
    assert [len(a.lines) for a in figure.axes] == [2, 2, 3, 1, 1, 2]  # the diagonal beside the coverage
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.1, 0.9] and figure.axes[0].get_xscale() == "log"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["exact", "residual"]


def test_every_module_of_figures_decides_a_run_and_none_an_image(tmp_path, monkeypatch):
    package = Path(shutil.copytree(Path(cache.__file__).parents[1], tmp_path / "dmcmc_core"))
    modules = sorted((package / "report" / "plots").glob("*.py"))
    found = imported_modules(["from dmcmc_core.report import plots"], tmp_path, "dmcmc_core")
    assert len(modules) > 2 and set(modules) <= set(found)
    monkeypatch.setattr(cache, "__file__", str(package / "runs" / "cache.py"))
    before = cache.code_key.__wrapped__()
    for path in modules:
        path.write_text("changed = True")
    assert cache.code_key.__wrapped__() == before
    (package / "integrators" / "__init__.py").write_text("changed = True")
    assert cache.code_key.__wrapped__() != before


def test_paths_go_in_the_order_of_their_rows():
    way = [(0.0, 0.0), (1.0, 0.5), (0.2, -0.3)]
    rows = [{"panel": p, "arm": "chain", "x": x, "y": y} for p in ("one", "two") for x, y in way]
    figure = plots.paths(rows, [[1.0, 0.5], [0.5, 1.0]])
    first = figure.axes[0]
    assert len(figure.axes) == 2 and first.lines[2].get_xydata().tolist() == [list(at) for at in way]
    assert abs(first.lines[1].get_xydata()).max() == pytest.approx(2, abs=1e-3)  # two standard deviations
