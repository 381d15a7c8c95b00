"""One module per training system; each reads like its paper."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wsss_core.config import validate
from wsss_core.errors import UserError, did_you_mean
from wsss_core.systems.base import System

SYSTEMS = {
    "cam": "wsss_core.systems.cam:Cam",
    "puzzle": "wsss_core.systems.puzzle:Puzzle",
    "rsa_cfc": "wsss_core.systems.rsa_cfc:RsaCfc",
    "isim": "wsss_core.systems.isim:Isim",
    "mcl": "wsss_core.systems.mcl:Mcl",
    "apc": "wsss_core.systems.apc:Apc",
    "affinity": "wsss_core.systems.affinity:AffinitySystem",
    "boundary": "wsss_core.systems.boundary:BoundarySystem",
    "segment": "wsss_core.systems.segment:Segment",
}


def make_system(parameters: dict[str, Any], num_classes: int, source: str) -> System:
    """Return the system that a stage's parameters name; `source` names the spec in errors."""
    system = system_type(str(parameters.get("system")), source)
    known = {key: value for key, value in parameters.items() if key not in ("supervision", "masks")}
    return system(validate(system.config_type, known, source), num_classes)


def system_type(name: str, source: str) -> type[System]:
    """Return the class of a system by its name; `source` names the spec in errors."""
    if name not in SYSTEMS:
        raise UserError(f"{source}: system: unknown '{name}'{did_you_mean(name, SYSTEMS)}")
    module, kind = SYSTEMS[name].split(":")
    return getattr(import_module(module), kind)
