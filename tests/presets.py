"""Presets and studies of the workflow, planned without their data: for the tests of both."""

from __future__ import annotations

from pathlib import Path

from wsss_core.config import read_config
from wsss_core.plan import Outside, Plan, make_plan
from wsss_core.report.tables import _labels

WORKFLOW = Path(__file__).parents[1] / "workflow"


def planned(*paths: Path) -> Plan:
    return make_plan(read_config(*paths), Outside())


def rows_of(plan: Plan, name: str) -> set[str]:
    """The labels of a table's rows, as it will print them."""
    specs = [plan.chain_spec(chain) for chain in plan.chains_of_table(name)]
    return set(_labels(specs, plan.config.tables[name].rows))
