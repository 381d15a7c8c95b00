"""From a YAML file, or Snakemake's merged dictionary, to a checked `Config`: shared blocks, sweeps, one-line errors."""

from __future__ import annotations

import fnmatch
import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wsss_core.config.base import RESIZES
from wsss_core.config.classifiers import SYSTEMS
from wsss_core.config.datasets import SOURCES
from wsss_core.config.pipeline import Experiment
from wsss_core.config.root import Config, Table
from wsss_core.errors import UserError, did_you_mean

SHARED = tuple(Experiment.model_fields)
Model = TypeVar("Model", bound=BaseModel)
_KINDS = {"dataset": ("source", SOURCES), "classifier": ("system", SYSTEMS), "resize": ("", RESIZES)}
"""Values of several kinds: the key that tells them apart (none where their form does), and the kinds."""
TOP_LEVEL = (*Config.model_fields, *SHARED, "sweep")


def read_config(*paths: str | Path) -> Config:
    """Read one or more YAML files, later ones overlaid on earlier ones, and check the result."""
    values: dict[str, Any] = {}
    for path in paths:
        values = overlay(values, read_yaml(path))
    return load_config(values, source=", ".join(map(str, paths)))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; raises `UserError` if the file is missing, no YAML or no mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping with the keys {', '.join(TOP_LEVEL)}")
    return values


def load_config(values: dict[str, Any], source: str = "config") -> Config:
    """Expand shared blocks and sweeps, then validate. `source` names the file in errors.

    Raises
    ------
    UserError
        With one line naming the file, the experiment, the key, what was expected and the nearest valid name.
    """
    values = deepcopy(values)
    for key in values:
        if key not in TOP_LEVEL:
            raise UserError(f"{source}: unknown key '{key}'{did_you_mean(key, TOP_LEVEL)}")
    shared = {key: values.pop(key) for key in SHARED if key in values}
    grid = values.pop("sweep", None) or {}
    experiments = values.get("experiments")
    if not isinstance(experiments, dict) or not experiments:
        raise UserError(f"{source}: experiments: expected a mapping from a name to an experiment, with at least one entry")
    expanded: dict[str, Any] = {}
    for name, experiment in experiments.items():
        if experiment is not None and not isinstance(experiment, dict):
            raise UserError(f"{source}: experiments.{name}: expected a mapping, got {experiment!r}")
        own = overlay(shared, experiment or {})
        own_grid = own.pop("sweep", None) or grid
        for suffix, variant in _grid(own, own_grid, f"{source}: experiments.{name}"):
            if f"{name}{suffix}" in expanded:
                raise UserError(f"{source}: experiments.{name}: sweep: two combinations are both named '{name}{suffix}'")
            expanded[f"{name}{suffix}"] = variant
    values["experiments"] = expanded
    dataset = values.get("dataset")
    if isinstance(dataset, dict) and "source" not in dataset and dataset.get("name") in SOURCES:
        dataset["source"] = dataset["name"]
    elif isinstance(dataset, dict) and "source" not in dataset:
        raise UserError(f"{source}: dataset.source: missing; valid: {', '.join(SOURCES)}")
    checked = validate(Config, values, source)
    _check_tables(checked, source)
    return checked if checked.tables else checked.model_copy(update={"tables": {checked.dataset.name: Table()}})


def overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; values of `top` win, `None` included. Neither argument is changed."""
    merged = deepcopy(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def validate(model: type[Model], values: Any, source: str) -> Model:
    """Validate `values` as `model`; the first error becomes a `UserError` of one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(model, error.errors())}") from None


def _check_tables(config: Config, source: str) -> None:
    """Raise `UserError` if a table names an experiment that is none, or one to compare with that is not in it."""
    for name, table in config.tables.items():
        chosen = [] if table.experiments else list(config.experiments)
        for pattern in table.experiments:
            found = fnmatch.filter(config.experiments, pattern)
            if not found:
                raise UserError(
                    f"{source}: tables.{name}.experiments: '{pattern}' names no experiment{did_you_mean(pattern, config.experiments)}"
                )
            chosen += found
        if table.rows == "experiment" and table.compare is not None and table.compare not in chosen:
            raise UserError(
                f"{source}: tables.{name}.compare: '{table.compare}' names no experiment of the table{did_you_mean(table.compare, chosen)}"
            )


def _grid(experiment: dict[str, Any], grid: Any, source: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (suffix of the name, experiment) for each combination of the sweep's values."""
    if not isinstance(grid, dict) or any(not isinstance(v, list) or not v for v in grid.values()):
        raise UserError(f"{source}: sweep: expected configuration keys with lists of values, got {grid!r}")
    variants = []
    for combination in itertools.product(*grid.values()):
        variant = deepcopy(experiment)
        for key, value in zip(grid, combination, strict=True):
            *path, last = key.split(".")
            block = variant
            for step in path:
                block = block.setdefault(step, {})
                if not isinstance(block, dict):
                    raise UserError(f"{source}: sweep.{key}: '{step}' is not a block")
            block[last] = value
        suffix = "".join(f",{key.rsplit('.')[-1]}={_short(value)}" for key, value in zip(grid, combination, strict=True))
        variants.append((suffix, variant))
    return variants


def _short(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return "".join(c if c.isalnum() or c in "_.+-" else "-" for c in text)


def _explain(model: type[BaseModel], errors: list[ErrorDetails]) -> str:
    """One clause for the first of pydantic's errors: the key, what was expected, what was found, the nearest valid name."""
    error = errors[0]
    if error["type"] == "missing":  # a key misspelt is both missing and unknown
        error = next((e for e in errors if e["type"] == "extra_forbidden" and e["loc"][:-1] == error["loc"][:-1]), error)
    # Unions put the chosen tag, or the type they tried, into the location; it is no key of the file.
    location = _keys(error)
    key = ".".join(location) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(location[-1], _siblings(model, error['loc']))}"
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"]
        hint = did_you_mean(str(error["input"]), [v.strip().strip("'") for v in expected.replace(" or ", ", ").split(",")])
        return f"{key}: expected {expected}, got {error['input']!r}{hint if hint.startswith('; did') else ''}"
    if error["type"] == "union_tag_invalid":
        name, kinds = _KINDS[location[-1]]
        return f"{key}.{name}: unknown '{error['ctx']['tag']}'{did_you_mean(error['ctx']['tag'], kinds)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    message = error["msg"].removeprefix("Value error, ")
    words = [each["ctx"]["expected"] for each in errors[1:] if each["type"] == "literal_error" and _keys(each) == location]
    if words:  # a number or a word, and it was neither
        return f"{key}: {message[0].lower()}{message[1:]} or {words[0]}, got {error['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {error['input']!r}" if "got" not in message else f"{key}: {message}"


def _keys(error: ErrorDetails) -> list[str]:
    """The place of an error as keys of the file: without the chosen tag, or the type that was tried, which unions put there."""
    places = list(zip(("", *error["loc"]), error["loc"], strict=False))
    return [
        str(part)
        for before, part in places
        if part not in _KINDS.get(str(before), ("", ()))[1]
        and not str(part).endswith("]")
        and not str(part).startswith("constrained-")
        and part not in ("float", "int", "bool")
    ]


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys at the place of an unknown one: walk the models along the error's location."""
    candidates: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        steps = []
        for candidate in candidates:
            if part in candidate.model_fields:
                steps += _models_in(candidate.model_fields[str(part)].annotation)
        # A step that is no field is the tag of a union: go on with the kind that it stands for.
        candidates = steps or [each for each in candidates if _is_kind(each, part)] or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _is_kind(model: type[BaseModel], tag: int | str) -> bool:
    return any(name in model.model_fields and tag in get_args(model.model_fields[name].annotation) for name, _ in _KINDS.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
