"""The parameters of a notebook: those that it declares, and whether what it was given is of the same kind."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmcmc_core.errors import UserError, is_number
from dmcmc_core.files import root

FROM_RUNNER = ("profile", "seed", "out_dir", "cache_dir")
"""Parameters that every notebook declares and the runner fills."""
KINDS = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: is_number(value, whole=True)),
    float: ("a number", is_number),
    str: ("text", lambda value: value is None or isinstance(value, str)),
    list: ("a list", lambda value: isinstance(value, (list, tuple))),
    dict: ("a mapping", lambda value: isinstance(value, dict)),
}
"""Type of a declared value -> what a given one must be, and whether it is: None is no text, and may stand for it."""


def begin(given: Mapping[str, Any]) -> None:
    """Begin a notebook: check its parameters, and go to the project's folder where it was started in one below.

    JupyterLab starts a notebook in the folder that it lies in, where exp/ would be another one than the project's.

    Args:
        given: ``globals()`` of the notebook, in its first cell after the one tagged ``parameters``. That cell is found
            in the kernel's history, so that a notebook of any name and place knows the kinds that it declares.

    Raises:
        UserError: names a parameter of another kind than declared, and how papermill is given one of this kind.
    """
    for name, default in _defaults(given.get("In", ())).items():
        if name in given:
            check_kind(given[name], default, name)
    if root() in Path.cwd().parents:
        os.chdir(root())
        print(f"working in {root()}")


def check_kind(value: Any, default: Any, *keys: str) -> None:
    """Raise UserError for a value of another kind than the declared one, and for one below a key that both have.

    Args:
        keys: the parameter's name, and the keys that lead to the value within it.
    """
    declared_as = float if type(default) is int and len(keys) > 1 else type(default)  # a setting may have any number
    kind, right = KINDS.get(declared_as, ("", None))
    if right and not right(value):
        example = {list: "[...]", dict: "{...}"}.get(declared_as) or json.dumps(default)
        for key in reversed(keys[1:]):
            example = f"{{{key}: {example}, ...}}"
        what, how = keys[0] + "".join(f"[{key!r}]" for key in keys[1:]), shlex.quote(f"{{{keys[0]}: {example}}}")
        raise UserError(f"{what} must be {kind} (papermill: -y {how}), not {value!r:.60}")
    if isinstance(default, dict):
        for key in value.keys() & default.keys():
            check_kind(value[key], default[key], *keys, key)


def declared(source: str) -> dict[str, ast.Assign | ast.AnnAssign]:
    """Return the names that a cell assigns, each with its statement.

    Raises:
        SyntaxError: for a cell that is not Python.
    """
    names = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
    return names


def _defaults(history: Iterable[str]) -> dict[str, Any]:
    """Return the plain values that the first cell assigns which declares what the runner fills."""
    for source in history:
        names = {}
        with contextlib.suppress(SyntaxError):
            names = declared(source)
        if set(FROM_RUNNER) <= names.keys():
            return {name: _default(statement) for name, statement in names.items()}
    return {}


def _default(statement: ast.Assign | ast.AnnAssign) -> Any:
    """Return the value of ``n = 3``, and as a float of ``n: float = 3``; None for what is no plain value."""
    try:
        value = ast.literal_eval(statement.value or ast.Constant(None))
    except (ValueError, TypeError):
        return None
    annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else ""
    return float(value) if annotation == "float" else value
