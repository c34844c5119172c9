"""Configurations in JSON or YAML, as programs and people write them: one reader for all of them. It needs no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dmcmc_core.errors import UserError
from dmcmc_core.files import from_json

DUMP = 'python -c "from configs.ve.NAME import get_config; print(get_config().to_json_best_effort())" > NAME.json'
"""What makes JSON of a configuration that is Python, in the project that it belongs to."""


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """Return the mapping of names to values in a JSON or YAML file.

    Args:
        path: of the file.
        what: what errors call it, such as ``the training config run.yaml``.

    Raises:
        UserError: for a file that is missing, damaged, holds anything but a mapping or gives a key twice, and for
            Python, which is never executed.
    """
    path = Path(path)
    if path.suffix == ".py":
        raise UserError(f"{what} is Python, which is never executed: make JSON of it in its own project: {DUMP}")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{what} cannot be read: {problem(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold a mapping of names to values")
    return content


def read_yaml(text: str) -> Any:
    """Return what JSON or else YAML text says; 1e-4 and NaN are numbers, which YAML 1.1 reads as text.

    Raises:
        ValueError, yaml.YAMLError: for text that is neither, and for a key that is given twice.
    """
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return yaml.load(text, Loader=_Loader)


def problem(error: Exception) -> str:
    """Return what is wrong with a text, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())[:200]


class _Loader(yaml.SafeLoader):
    pass


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):  # others are refused below
        name = (key.tag, key.value)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|-?Infinity|NaN)$"),
    list("-+0123456789.IN"),
)
