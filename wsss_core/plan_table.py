"""The plan as a person reads it: experiments by stages."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from wsss_core.plan import Plan
from wsss_core.results import state

ORDER = (
    "data",
    "classifier",
    "cams",
    "cams-threshold",
    "affinity-labels",
    "affinity",
    "boundary",
    "walk",
    "walk-threshold",
    "refine",
    "pseudo",
)
"""Stages from left to right; later ones in the order of the first experiment that has them."""
_STYLES = {"done": "green", "part": "yellow", "todo": "dim"}


def print_plan(plan: Plan) -> None:
    """Print one row per experiment and seed, one column per stage (id and state), and a count."""
    found_names = dict.fromkeys(name for chain in plan.chains for name in (*ORDER, *chain.stages, *chain.all_stages))
    names = [name for name in found_names if any(name in chain.all_stages for chain in plan.chains)]
    table = Table("experiment", "seed", *names)
    for chain in plan.chains:
        cells = []
        for name in names:
            stage = chain.all_stages.get(name)
            found = state(plan, stage) if stage else ""
            cells.append(f"[{_STYLES[found]}]{stage.id} {found}[/]" if stage else "-")
        table.add_row(chain.name, str(chain.seed), *cells)
    console = Console()
    # A pipe has no width: never fold a table that another program reads.
    console.print(table) if console.is_terminal else Console(width=40 + 18 * len(names)).print(table)
    states = [state(plan, stage) for stage in plan.stages.values()]
    console.print(
        f"{len(states)} stages in {plan.root}: {states.count('done')} done, {states.count('part')} to resume, {states.count('todo')} to do"
    )
