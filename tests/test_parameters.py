"""What a notebook is given is of the kind that it declares, and it works in the project's folder wherever it starts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dmcmc_core import files
from dmcmc_core.errors import UserError
from dmcmc_core.workbench.experiments import PROFILES, Project, read_cells
from dmcmc_core.workbench.notebooks import begin

PROJECT = Project(Path(__file__).resolve().parents[1])
NOTEBOOKS = sorted((PROJECT.root / "notebooks").glob("*.ipynb"))
DECLARED = """
profile = "smoke"
seed = 0
out_dir = "exp/runs/a"  # where
cache_dir = "exp/cache"
n: int = 70
nfe: float = 20
compared = True
beds = {"digits, net": {"model": "digits", "eta": 1.0, "n_skip": 4}}
budgets = [10, 20]
seeds = range(seed)
"""


def notebook(**given):
    """The globals of a notebook of those parameters, after another cell."""
    namespace = {"In": ["", "%matplotlib inline", "x = 1", DECLARED, 'n = "later"']}
    exec(DECLARED, namespace)
    return namespace | given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            dict(beds='{"digits": {}}'),
            """beds must be a mapping (papermill: -y '{beds: {...}}'), not '{"digits": {}}'""",
        ),
        (dict(budgets="[10]"), "budgets must be a list (papermill: -y '{budgets: [...]}'), not '[10]'"),
        (dict(n="many"), "n must be a whole number (papermill: -y '{n: 70}'), not 'many'"),
        (dict(n=70.5), "n must be a whole number (papermill: -y '{n: 70}'), not 70.5"),
        (dict(n=True), "n must be a whole number (papermill: -y '{n: 70}'), not True"),
        (dict(nfe="1e-4"), "nfe must be a number (papermill: -y '{nfe: 20.0}'), not '1e-4'"),
        (dict(compared="False"), "compared must be true or false (papermill: -y '{compared: true}'), not 'False'"),
        (dict(out_dir=2024), """out_dir must be text (papermill: -y '{out_dir: "exp/runs/a"}'), not 2024"""),
        (
            dict(beds={"digits, net": {"eta": "1e-1"}}),
            "beds['digits, net']['eta'] must be a number "
            "(papermill: -y '{beds: {digits, net: {eta: 1.0, ...}, ...}}'), not '1e-1'",
        ),
    ],
)
def test_a_parameter_of_another_kind_is_one_sentence(given, message):
    with pytest.raises(UserError) as refused:
        begin(notebook(**given))
    assert str(refused.value) == message


def test_parameters_of_their_kind_are_taken():
    begin(notebook())
    begin(notebook(n=3, nfe=12.5, out_dir=None, budgets=(1,), seeds="of no plain value, so of any kind"))
    begin(notebook(beds={"others": "which are not declared", "digits, net": {"eta": 1, "n_skip": 2.5}}))
    begin({"In": ["", "x = 1"]})
    begin({})


def test_every_notebook_begins_with_the_check_and_the_manifest_passes_it():
    for path in NOTEBOOKS:
        cells = [cell for cell in read_cells(path) if cell["type"] == "code"]
        assert [number for number, cell in enumerate(cells) if "parameters" in cell["tags"]] == [0]
        calls = [s for s in ast.parse(cells[1]["source"]).body if not isinstance(s, (ast.Import, ast.ImportFrom))]
        assert ast.unparse(calls[0]) == "begin(globals())", f"{path.name}: nothing is done before its parameters are"
        items = [item for item in PROJECT.items if PROJECT.root / item.notebook == path]
        for given in (item.parameters_for(p) for item in items for p in PROFILES if p in item.parameters):
            begin({"In": [cells[0]["source"]]} | given)


def test_a_checkout_is_found_from_every_folder_below_it(tmp_path, monkeypatch):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "manifest.yaml").touch()
    for below in (".", "notebooks", "notebooks/mine"):
        (tmp_path / below).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / below)
        assert files.root() == tmp_path
    begin({})
    assert Path.cwd() == tmp_path


@pytest.mark.slow
def test_papermill_by_hand_from_the_notebooks_own_folder(toy, capfd):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    first = f"import sys; sys.path.insert(0, {str(PROJECT.root)!r})\nfrom dmcmc_core.workbench.notebooks import begin"
    toy.add("a", f"{first}\nbegin(globals())", "from pathlib import Path\n(Path(out_dir) / f'{n}.txt').touch()")
    path = toy.root / "notebooks" / "a.ipynb"
    path.write_text(path.read_text().replace('out_dir = \\".\\"', 'out_dir = \\"exp\\"'))

    def execute(**given):
        how = dict(parameters=given, cwd=str(path.parent), progress_bar=False, kernel_name="python3")
        papermill.execute_notebook(str(path), str(toy.root / "out.ipynb"), **how)

    execute(n=5)
    assert (toy.root / "exp" / "5.txt").is_file() and not (path.parent / "exp").exists()
    assert f"working in {toy.root}" in (toy.root / "out.ipynb").read_text()
    with pytest.raises(PapermillExecutionError, match=re.escape("n must be a whole number (papermill: -y '{n: 3}')")):
        execute(n="[5]")
