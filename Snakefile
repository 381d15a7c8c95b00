# Weakly supervised semantic segmentation: from images and tags to a trained segmenter and a table of results.
#
#   snakemake --cores 8 --resources gpu=1                          the demonstration in config.yaml
#   snakemake --cores 8 --resources gpu=1 --configfile mine.yaml   another configuration (replaces config.yaml)
#   snakemake -n ...                                               what would run, and why
#   snakemake --report results/report.html ...                     the report, offline in one file

from snakemake.utils import min_version

min_version("9.20")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/classifier.smk"
include: "workflow/rules/cams.smk"
include: "workflow/rules/refine.smk"
include: "workflow/rules/segmenter.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        tables(),
        figures(),
        galleries(),
