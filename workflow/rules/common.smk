# The plan of the configuration, and the named input functions that the rules share.

import shlex
import sys

from snakemake.exceptions import WorkflowError

from wsss_core.config import load_config, read_yaml
from wsss_core.errors import UserError
from wsss_core.report.published import find_published, read_published
from wsss_core.report.tables import check_keys
from wsss_core.results import plan_on_disk, write_specs

CONFIG_FILES = [str(path) for path in workflow.config_settings.configfiles] or [
    "config.yaml"
]

if CONFIG_FILES == ["config.yaml"]:

    configfile: "config.yaml"


try:
    PLAN = plan_on_disk(load_config(config, source=", ".join(CONFIG_FILES)))
    write_specs(PLAN)
    # Looked at here too, so that a mistake is known before the training, not after it.
    PUBLISHED = {
        name: find_published(table.published)
        for name, table in PLAN.config.tables.items()
        if table.published
    }
    for path in PUBLISHED.values():
        read_published(path)
    for name, table in PLAN.config.tables.items():
        check_keys(
            [PLAN.chain_spec(each) for each in PLAN.chains_of_table(name)], table, name
        )
except UserError as error:
    raise WorkflowError(str(error)) from None

# Jobs use the Python that runs Snakemake, activated or not; in conda environments (--sdm conda) that of the environment.
PROJECT = str(workflow.current_basedir.join("../..").get_path_or_uri(secret_free=False))
CONDA = "conda" in str(workflow.deployment_settings.deployment_method).lower()
WSSS = f"PYTHONPATH={shlex.quote(PROJECT)} {'python' if CONDA else shlex.quote(sys.executable)} -m wsss_core"

RUN = PLAN.config.run
GPU_LIMIT = getattr(workflow.global_resources.get("gpu"), "value", None)
if GPU_LIMIT is not None and GPU_LIMIT < RUN.gpus:
    raise WorkflowError(
        f"run.gpus is {RUN.gpus}, but --resources gpu={GPU_LIMIT} allows a job no more; say --resources gpu={RUN.gpus}"
    )
STORE = f"{PLAN.root}/store"
EXPERIMENTS = f"{PLAN.root}/experiments"
FIGURES = f"{PLAN.config.results}/figures/{PLAN.config.dataset.name}"
TABLES = f"{PLAN.config.results}/tables"
CHAINS = {(chain.name, str(chain.seed)): chain for chain in PLAN.chains}


wildcard_constraints:
    id="[0-9a-f]{10}",
    experiment="[^/]+",
    seed="[0-9]+",


def manifest(stage):
    return f"{PLAN.directory(stage)}/manifest.json"


def upstream(kind):
    """Input function: the manifests of the stages that a stage builds on."""

    def manifests(wildcards):
        return [
            manifest(stage)
            for stage in PLAN.stages[f"{kind}/{wildcards.id}"].upstream.values()
        ]

    return manifests


def spec(kind):
    """Params function: the stage's spec file. It is no input: its content is the id, its date means nothing."""
    return lambda wildcards: f"{STORE}/{kind}/{wildcards.id}/spec.json"


def needs_gpu(kind):
    """Resource function: evaluating a classifier runs its network, evaluating masks does not."""

    def gpus(wildcards):
        return int("model" in PLAN.stages[f"{kind}/{wildcards.id}"].upstream)

    return gpus


def experiment_inputs(wildcards):
    chain = CHAINS[wildcards.experiment, wildcards.seed]
    return [manifest(stage) for stage in chain.all_stages.values()]


def experiment_spec(wildcards):
    return str(PLAN.chain_spec_path(CHAINS[wildcards.experiment, wildcards.seed]))


def records(chains=PLAN.chains):
    return [f"{PLAN.chain_directory(chain)}/experiment.json" for chain in chains]


def table_records(wildcards):
    return records(PLAN.chains_of_table(wildcards.table))


def table_published(wildcards):
    """Input function: the published figures of a table, so that it is made again when they are edited."""
    return PUBLISHED.get(wildcards.table, [])


def table_options(wildcards):
    table = PLAN.config.tables[wildcards.table]
    columns = ["--columns", table.columns] if table.columns else []
    published = ["--published", table.published] if table.published else []
    compare = [] if table.compare is None else [f"--compare={table.compare}"]
    return [
        "--rows",
        table.rows,
        *columns,
        *published,
        *compare,
        *(f"--value={value}" for value in table.values),
    ]


def tables():
    return [f"{TABLES}/{name}.csv" for name in PLAN.config.tables]


def figures():
    return [f"{FIGURES}/curves"]


def galleries():
    if PLAN.config.report.gallery == 0:
        return []
    return [
        f"{FIGURES}/galleries/{chain.name}/index.html"
        for chain in PLAN.chains
        if chain.seed == chain.experiment.seeds[0]
    ]


def gallery_record(wildcards):
    seed = PLAN.config.experiments[wildcards.experiment].seeds[0]
    return f"{EXPERIMENTS}/{wildcards.experiment}/seed{seed}/experiment.json"
