"""From a configuration to a plan: the chains of all experiments, the stages they share, directories, readable names.

Pure: no file is read here, no torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss_core.chain import Chain, Outside, PlannedStage, digest, make_chain
from wsss_core.config import Config

__all__ = ["Chain", "Outside", "Plan", "PlannedStage", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """All experiments of a configuration and the stages they share."""

    config: Config
    chains: tuple[Chain, ...]

    @cached_property
    def stages(self) -> dict[str, PlannedStage]:
        """Every stage once, by `<kind>/<id>`, upstream before downstream."""
        found: dict[str, PlannedStage] = {}
        for chain in self.chains:
            for stage in chain.all_stages.values():
                for each in _with_upstream(stage):
                    found.setdefault(f"{each.kind}/{each.id}", each)
        return found

    @property
    def root(self) -> Path:
        """`results/<data set>`."""
        return Path(self.config.results) / self.config.dataset.name

    def directory(self, stage: PlannedStage) -> Path:
        """`results/<data set>/store/<kind>/<id>`."""
        return self.root / "store" / stage.kind / stage.id

    def chain_directory(self, chain: Chain) -> Path:
        """`results/<data set>/experiments/<name>/seed<k>`."""
        return self.root / "experiments" / chain.name / f"seed{chain.seed}"

    def chains_of_table(self, name: str) -> tuple[Chain, ...]:
        """The experiments of a table, by its names and patterns."""
        patterns = self.config.tables[name].experiments or ("*",)
        return tuple(chain for chain in self.chains if any(fnmatch.fnmatchcase(chain.name, pattern) for pattern in patterns))

    def chain_spec(self, chain: Chain) -> dict[str, Any]:
        """What `collect` needs to know of one experiment and seed."""
        stages = {
            name: {"kind": stage.kind, "id": stage.id, "directory": str(self.directory(stage))} for name, stage in chain.stages.items()
        }
        return {
            "name": chain.name,
            "seed": chain.seed,
            "dataset": self.config.dataset.name,
            "values": chain.experiment.model_dump(mode="json"),
            "stages": stages,
            "evaluations": {name: str(self.directory(stage)) for name, stage in chain.evaluations.items()},
        }

    def chain_spec_path(self, chain: Chain) -> Path:
        """Place of that spec. Its name holds a checksum: a plan made meanwhile (a dry run after an edit) leaves a running workflow's alone."""
        return self.chain_directory(chain) / f"spec-{digest(self.chain_spec(chain))}.json"

    def spec(self, stage: PlannedStage) -> dict[str, Any]:
        """What `spec.json` holds: see `wsss_core.stage.Spec`."""
        return {
            "stage": stage.kind,
            "id": stage.id,
            "revision": stage.revision,
            "parameters": stage.parameters,
            "seed": stage.seed,
            "upstream": {role: each.id for role, each in stage.upstream.items()},
            "inputs": {role: str(self.directory(each)) for role, each in stage.upstream.items()},
            "files": stage.files,
            "run": {"workers": self.config.run.workers, "tensorboard": self.config.run.tensorboard},
            "output": str(self.directory(stage)),
        }


def make_plan(config: Config, outside: Outside) -> Plan:
    """Turn every experiment and seed into its chain of stages."""
    chains = [
        make_chain(config, name, experiment, seed, outside) for name, experiment in config.experiments.items() for seed in experiment.seeds
    ]
    return Plan(config, tuple(chains))


def _with_upstream(stage: PlannedStage) -> Iterator[PlannedStage]:
    for upstream in stage.upstream.values():
        yield from _with_upstream(upstream)
    yield stage
