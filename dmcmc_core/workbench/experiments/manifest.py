"""The manifest, ``exp/manifest.yaml``: the one list of every figure and table, and the project around it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dmcmc_core.checkpoints.configurations import problem, read_yaml
from dmcmc_core.errors import UserError, unknown
from dmcmc_core.files import root

PROFILES = ("smoke", "local", "full", "paper")
FIGURE, TABLE = (".png", ".pdf", ".csv"), (".csv", ".md", ".tex")
"""The files that a figure and a table of one name are."""


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
    """One entry of the manifest: a notebook, the figures and tables that it makes, and what is promised about them."""

    id: str
    title: str
    paper_item: str
    notebook: str
    parameters: Mapping[str, Mapping[str, Any]]  # profile -> name -> value; under "all" what profiles share
    figures: Mapping[str, str] = field(default_factory=dict)  # name -> caption
    tables: tuple[str, ...] = ()  # names
    outputs: tuple[str, ...] = ()  # every file of a run that appears in figures/, those of figures and tables first
    models: tuple[str, ...] = ()  # checkpoints that ship, hashed into the key
    published: tuple[Published, ...] = ()
    tolerance: str = ""
    files: tuple[RequiredFile, ...] = ()
    sets: tuple[str, ...] = ()  # of dmcmc_core.data.DATASETS, which the paper profile needs

    def parameters_for(self, profile: str) -> dict[str, Any]:
        """Return the notebook's parameters under a profile; ``seed`` is 0 unless the manifest says otherwise."""
        shared = self.parameters.get("all", {})
        return {"seed": 0, **shared, **self.parameters[profile], "profile": profile}


def load_manifest(path: str | Path) -> tuple[Item, ...]:
    """Read the items of ``exp/manifest.yaml``.

    Raises:
        UserError: for a missing, unknown or repeated key, id, profile or output.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no manifest at {path}: run from a checkout of the project")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {problem(error)}") from None
    if not isinstance(content, dict) or "items" not in content or set(content) - {"items", "defaults"}:
        raise UserError(f"{path} must have the one key 'items' at the top, and beside it at most 'defaults'")
    defaults = _defaults(content.get("defaults", {}), path.name)
    entries = enumerate(content["items"] or (), 1)
    items = tuple(_item(entry, defaults, f"{path.name}, item {n}") for n, entry in entries)
    _check_names(items, path.name)
    for name, values in (("id", [i.id for i in items]), ("output", [o for i in items for o in i.outputs])):
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{path.name}: {name} {value!r} appears twice")
    return items


def _check_names(items: Iterable[Item], where: str) -> None:
    """Raise UserError where a figure and a table of any items share a name, and so a CSV."""
    drawn = {name: item.id for item in items for name in item.figures}
    for item in items:
        for name in item.tables:
            if name in drawn:
                whose = f"the figure of item {drawn[name]!r} and the table of item {item.id!r}"
                raise UserError(f"{where}: {name!r} names {whose}, and both write {name}.csv: rename one of them")


def _defaults(defaults: Any, where: str) -> dict[str, Any]:
    """Return the keys that an item has unless it gives them itself."""
    if not isinstance(defaults, dict):
        raise UserError(f"{where}: defaults must be a mapping, not {defaults!r}")
    optional = [f.name for f in fields(Item) if not _required(f)]
    for key in defaults:
        if key not in optional:
            raise unknown(f"key in {where}, defaults", key, optional)
    return defaults


def _item(entry: Any, defaults: Mapping[str, Any], where: str) -> Item:
    if isinstance(entry, dict) and "id" in entry:
        where = f"{where} ({entry['id']})"
    item = _build(Item, {**defaults, **entry} if isinstance(entry, dict) else entry, where)
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
    if not {"figures", "tables", "outputs"} & set(entry):
        raise UserError(f"{where}: key 'outputs' is missing")
    files = [name + ending for name in item.figures for ending in FIGURE]
    files += [name + ending for name in item.tables for ending in TABLE]
    return replace(item, outputs=(*files, *item.outputs))


def _build(cls: type, entry: Any, where: str) -> Any:
    """Make a dataclass of a mapping; an unknown or missing key is an error."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping, not {entry!r}")
    known = {f.name: f for f in fields(cls)}
    for key in entry:
        if key not in known:
            raise unknown(f"key in {where}", key, known)
    for name, f in known.items():
        if name not in entry and _required(f):
            raise UserError(f"{where}: key {name!r} is missing")
    return cls(**{name: _value(name, value, where) for name, value in entry.items()})


def _required(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(name: str, value: Any, where: str) -> Any:
    """Return what stands under a key of the manifest in the form that its dataclass has."""
    parts = {"published": Published, "files": RequiredFile}
    lists = {"outputs": "file names", "models": "file names", "sets": "set names", "tables": "names"}
    if name in parts:
        return tuple(_build(parts[name], v, f"{where}, {name}") for v in value or ())
    if name == "figures":
        captions = dict.fromkeys(value, "") if _is_names(value) else value
        if not isinstance(captions, dict) or not _is_names([*captions, *captions.values()]):
            raise UserError(f"{where}: figures must be a list of names, or map names to captions, not {value!r}")
        return captions
    if name in lists:
        if not _is_names(value):
            raise UserError(f"{where}: {name} must be a list of {lists[name]}, not {value!r}")
        return tuple(value)
    return value


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


@dataclass(frozen=True)
class Project:
    """A checkout that holds notebooks/, exp/ and figures/, and the package whose changes count."""

    root: Path
    package: str = "dmcmc_core"

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items of the manifest."""
        return load_manifest(self.root / "exp" / "manifest.yaml")

    def folder(self, item: Item, key: str) -> Path:
        """Return where the finished run of an item with this key is."""
        return self.root / "exp" / "runs" / item.id / key[:20]

    def figures(self, profile: str) -> Path | None:
        """Return where this machine shows a profile: figures/ for local, nowhere for smoke, beside it for others."""
        if profile == "smoke":
            return None
        return self.root / "figures" / ("" if profile == "local" else profile)

    def published(self, profile: str) -> Path:
        """Return where the committed figures and tables of a profile are."""
        return self.root / "figures" / "published" / profile

    def published_items(self, profile: str) -> dict[str, dict[str, Any]]:
        """Return id -> commit, command, versions, machine, verdict, files of each item that is published of a profile.

        Raises:
            UserError: for a provenance.json that is damaged.
        """
        path = self.published(profile) / "provenance.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))["items"] if path.is_file() else {}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): check it out again") from None

    def results(self, profile: str) -> Path:
        """Return where the table of every measured cell of a profile's runs is; of smoke beside the runs."""
        figures = self.figures(profile)
        return figures / "results.csv" if figures else self.root / "exp" / "runs" / f"results-{profile}.csv"

    def select(self, only: Iterable[str], profile: str) -> list[Item]:
        """Return the items named, or all that have the profile.

        Raises:
            UserError: for names and profiles that are not there.
        """
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
    """Return the project around the working directory, or else the checkout that this package lies in."""
    return Project(root())


def published_of(item: str) -> tuple[Published, ...]:
    """Return the published numbers that stand beside those of an item of :func:`here`.

    Raises:
        UserError: for an item that is not there.
    """
    by_id = {one.id: one for one in here().items}
    if item not in by_id:
        raise unknown("item", item, by_id)
    return by_id[item].published
