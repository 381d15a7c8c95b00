"""The whole configuration file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsss_core.config.base import Block, Positive
from wsss_core.config.datasets import Dataset, Shapes
from wsss_core.config.pipeline import Experiment

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.=,+-]*$"


class Table(Block):
    """One table of results: `results/tables/<name>.csv` and `.md`."""

    rows: str = "experiment"
    """`experiment`, or a configuration key such as `classifier.lr`: one row per value."""
    columns: str | None = None
    """A second configuration key: one column per value, of the first of `values`; unset: one column per entry of `values`."""
    values: tuple[str, ...] = ()
    """Figures such as `cams.train.oracle.miou` (see docs/configuration.md); unset: all main figures there are."""
    experiments: tuple[str, ...] = ()
    """Names, or patterns with `*`, of the experiments in the table; unset: all."""
    published: str | None = None
    """A CSV file of published figures set beside ours, such as `workflow/published/rsa_cfc_table1.csv`; a relative path is looked for in the working directory, then in the project."""
    compare: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    """The row that all others are compared with, seed by seed, by its label as the table prints it: with `rows: experiment` the whole name of an experiment, otherwise a value of that key, such as `0.1`; with `columns` within each column. Unset: none."""


class Report(Block):
    """The HTML report."""

    gallery: Annotated[int, Field(ge=0, le=200)] = 8
    """Number of images in the gallery of each experiment."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Draws the images of the gallery."""


class Run(Block):
    """How jobs run. Nothing here changes a result, so nothing here enters an id."""

    threads: Positive = 8
    """Most CPU threads of one job; Snakemake's --cores caps it."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that load images beside each job."""
    gpus: Annotated[int, Field(ge=0)] = 1
    """GPUs of a training job (DDP if more than one)."""
    mem_mb: Positive = 8000
    """Memory request of a job that uses a network, in MB."""
    runtime: Positive = 1440
    """Time request of a training job, in minutes."""
    retries: Annotated[int, Field(ge=0)] = 0
    """How often Snakemake starts a failed job again (training resumes from its last epoch)."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the `tensorboard` extra)."""


class Config(Block):
    """A whole configuration. The blocks of an experiment given at the top level are defaults of all experiments."""

    results: str = "results"
    """Directory of all outputs."""
    dataset: Dataset = Shapes()
    """Where images, tags and (for evaluation) masks come from."""
    experiments: Annotated[dict[Annotated[str, Field(pattern=NAME)], Experiment], Field(min_length=1)]
    """The experiments by name."""
    tables: dict[Annotated[str, Field(pattern=NAME)], Table] = Field(default={})
    """The tables by name; unset: one table of all experiments, named after the data set."""
    report: Report = Report()
    """The HTML report."""
    run: Run = Run()
    """How jobs run."""
