"""The manifest, ``exp/manifest.yaml``: the one list of every figure and table, and the project around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dmcmc_core.errors import UserError, unknown
from dmcmc_core.workbench.yaml_values import read_yaml

PROFILES = ("smoke", "local", "full", "paper")


@dataclass(frozen=True)
class Published:
    """One number of a paper: what it is, its value and where it stands."""

    what: str
    value: Any
    source: str


@dataclass(frozen=True)
class RequiredFile:
    """A file that the ``paper`` profile needs and that does not ship: its place, its origin, its SHA-256 if known."""

    path: str
    what: str
    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class Item:
    """One figure or table: the notebook that makes it and what is promised about it."""

    id: str
    title: str
    paper_item: str
    notebook: str
    parameters: Mapping[str, Mapping[str, Any]]  # profile -> name -> value; under "all" what profiles share
    outputs: tuple[str, ...]  # file names; they appear in figures/
    models: tuple[str, ...] = ()  # checkpoints that ship, hashed into the key
    published: tuple[Published, ...] = ()
    tolerance: str = ""
    files: tuple[RequiredFile, ...] = field(default=())
    sets: tuple[str, ...] = ()  # of dmcmc_core.data.DATASETS, which the paper profile needs

    def parameters_for(self, profile: str) -> dict[str, Any]:
        """The notebook parameters under a profile; ``seed`` is 0 unless the manifest says otherwise."""
        shared = self.parameters.get("all", {})
        return {"seed": 0, **shared, **self.parameters[profile], "profile": profile}


def load_manifest(path: str | Path) -> tuple[Item, ...]:
    """The items of ``exp/manifest.yaml``. Raises UserError for a missing, unknown or repeated key, id or profile."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no manifest at {path}: run from a checkout of the project")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"items"}:
        raise UserError(f"{path} must have the one key 'items' at the top")
    items = tuple(_item(entry, f"{path.name}, item {n}") for n, entry in enumerate(content["items"] or (), 1))
    for name, values in (("id", [i.id for i in items]), ("output", [o for i in items for o in i.outputs])):
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{path.name}: {name} {value!r} appears twice")
    return items


def _item(entry: Any, where: str) -> Item:
    if isinstance(entry, dict) and "id" in entry:
        where = f"{where} ({entry['id']})"
    item = _build(Item, entry, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(item.id)):
        raise UserError(f"{where}: id must consist of letters, digits, - and _, not {item.id!r}")
    if not isinstance(item.parameters, dict):
        raise UserError(f"{where}: parameters must map profiles to parameters, not {item.parameters!r}")
    for profile, values in item.parameters.items():
        if profile not in (*PROFILES, "all"):
            raise unknown(f"profile in {where}", profile, (*PROFILES, "all"))
        if not isinstance(values, dict):
            raise UserError(f"{where}: the parameters of profile {profile!r} must be a mapping, not {values!r}")
        for name in {"profile", "out_dir", "cache_dir"} & set(values):
            raise UserError(f"{where}: parameter {name!r} is set by the runner, not by the manifest")
    return item


def _build(cls: type, entry: Any, where: str) -> Any:
    """A dataclass from a mapping; an unknown or missing key is an error."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping, not {entry!r}")
    known = {f.name: f for f in fields(cls)}
    for key in entry:
        if key not in known:
            raise unknown(f"key in {where}", key, known)
    for name, f in known.items():
        if name not in entry and f.default is MISSING:
            raise UserError(f"{where}: key {name!r} is missing")
    parts = {"published": Published, "files": RequiredFile}
    values = {}
    for name, value in entry.items():
        if name in parts:
            value = tuple(_build(parts[name], v, f"{where}, {name}") for v in value or ())
        elif name in ("outputs", "models", "sets"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(
                    f"{where}: {name} must be a list of {'set' if name == 'sets' else 'file'} names, not {value!r}"
                )
            value = tuple(value)
        values[name] = value
    return cls(**values)


@dataclass(frozen=True)
class Project:
    """Where things are: the checkout that holds notebooks/, exp/ and figures/, and the package whose changes count."""

    root: Path
    package: str = "dmcmc_core"

    @cached_property
    def items(self) -> tuple[Item, ...]:
        return load_manifest(self.root / "exp" / "manifest.yaml")

    def folder(self, item: Item, key: str) -> Path:
        """The finished run of an item with this key."""
        return self.root / "exp" / "runs" / item.id / key[:20]

    def figures(self, profile: str) -> Path | None:
        """Where a profile's outputs are shown: the local ones in figures/, smoke nowhere, the others beside them."""
        if profile == "smoke":
            return None
        return self.root / "figures" / ("" if profile == "local" else profile)

    def results(self, profile: str) -> Path:
        """The table of every measured cell of a profile's runs; of smoke beside the runs."""
        figures = self.figures(profile)
        return figures / "results.csv" if figures else self.root / "exp" / "runs" / f"results-{profile}.csv"

    def select(self, only: Iterable[str], profile: str) -> list[Item]:
        """The items named, or all that have the profile. Raises UserError for names and profiles that are not there."""
        if profile not in PROFILES:
            raise unknown("profile", profile, PROFILES)
        by_id = {item.id: item for item in self.items}
        only = list(dict.fromkeys(only))
        for name in only:
            if name not in by_id:
                raise unknown("item", name, by_id)
            if profile not in by_id[name].parameters:
                has = ", ".join(p for p in PROFILES if p in by_id[name].parameters)
                raise UserError(f"item {name!r} has no profile {profile!r}; it has {has}")
        return [i for i in self.items if profile in i.parameters and (not only or i.id in only)]


def here() -> Project:
    """The project around the working directory, or else the checkout that this package lies in."""
    cwd = Path.cwd()
    has = (cwd / "exp" / "manifest.yaml").is_file()
    return Project(cwd if has else Path(__file__).resolve().parents[3])
