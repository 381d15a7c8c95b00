"""The command line: one thin function per command; all work is elsewhere and imported when its command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import wsss_core
from wsss_core.errors import UserError

app = typer.Typer(
    name="wsss",
    help="Weakly supervised semantic segmentation as one reproducible workflow. Each command is one step of the pipeline; "
    "Snakemake calls them, and each works alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The stage's spec.json, as `wsss plan --specs` or Snakemake writes it.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads or processes; 0: all.")]
Gpus = Annotated[int, typer.Option("--gpus", min=0, help="GPUs to use if the host has any; the free ones are chosen.")]
ConfigFiles = Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="One or more YAML files; later ones overlay earlier ones.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(wsss_core.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def data(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG...|SPEC",
            help="A configuration (.yaml; later files overlay earlier ones) to check, or a data stage's spec.json to do.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode images.")] = 2,
    threads: Threads = 0,
) -> None:
    """Check a data set and print its statistics, or prepare it for the workflow.

    With a configuration: reads every image, label and mask of its `dataset` block; reports missing and unreadable files, masks of
    another size, labels out of range, empty splits and duplicates over splits; prints images per class, co-occurrence and sizes.
    Ends with exit code 2 if there is a problem. With a spec: writes the index (and converted masks or made images) of the data stage.
    """
    if sources[0].suffix == ".json":
        from wsss_core.stage import run_stage
        from wsss_core.stages.data import prepare

        run_stage(sources[0], ("data",), prepare, threads=threads)
        return
    from wsss_core.config import read_config
    from wsss_core.data.check import check_dataset

    problems = check_dataset(read_config(*sources).dataset, workers)
    if problems:
        raise UserError(f"{sources[-1]}: the data set has {problems} problem{'s' if problems > 1 else ''}, listed above")


@app.command()
def train(spec: SpecFile, threads: Threads = 0, gpus: Gpus = 0) -> None:
    """Train a classifier, AffinityNet, the boundary network or a segmenter.

    Writes model.safetensors, model.json and metrics.csv (one row per epoch). A killed run starts again after its last whole epoch
    and ends as an undisturbed one would.
    """
    from wsss_core.stage import run_stage

    def work(stage):  # type: ignore[no-untyped-def]
        from wsss_core.stages.train import train as train_stage

        train_stage(stage)

    run_stage(spec, ("classifier", "affinity", "boundary", "segmenter"), work, threads=threads, gpus=gpus)


@app.command()
def cams(spec: SpecFile, threads: Threads = 0, gpus: Gpus = 0) -> None:
    """Write multi-scale class activation maps of the training images to an HDF5 score store."""
    from wsss_core.stage import run_stage

    def work(stage):  # type: ignore[no-untyped-def]
        from wsss_core.stages.cams import write_cams

        write_cams(stage)

    run_stage(spec, ("cams",), work, threads=threads, gpus=gpus)


@app.command()
def threshold(spec: SpecFile, threads: Threads = 0) -> None:
    """Choose a background threshold without masks: the one at which the scores agree best with their CRF refinement."""
    from wsss_core.stage import run_stage
    from wsss_core.stages.threshold import choose_threshold

    run_stage(spec, ("threshold",), choose_threshold, threads=threads)


@app.command()
def affinity_labels(spec: SpecFile, threads: Threads = 0) -> None:
    """Mark what is surely foreground and surely background in the CAMs, for AffinityNet and the boundary network to learn from."""
    from wsss_core.stage import run_stage
    from wsss_core.stages.affinity_labels import make_affinity_labels

    run_stage(spec, ("affinity-labels",), make_affinity_labels, threads=threads)


@app.command()
def walk(spec: SpecFile, threads: Threads = 0, gpus: Gpus = 0) -> None:
    """Spread CAMs over the image by a random walk along the affinities of AffinityNet or the boundary network."""
    from wsss_core.stage import run_stage

    def work(stage):  # type: ignore[no-untyped-def]
        from wsss_core.stages.walk import walk_scores

        walk_scores(stage)

    run_stage(spec, ("walk",), work, threads=threads, gpus=gpus)


@app.command()
def crf(spec: SpecFile, threads: Threads = 0) -> None:
    """Refine scores with a dense CRF over the image's own labels and background; `threads` processes."""
    from wsss_core.stage import run_stage
    from wsss_core.stages.crf import refine_with_crf

    run_stage(spec, ("crf",), refine_with_crf, threads=threads)


@app.command()
def pseudo(spec: SpecFile, threads: Threads = 0) -> None:
    """Turn scores into pseudo masks: indexed PNG files with the VOC palette."""
    from wsss_core.stage import run_stage
    from wsss_core.stages.pseudo import make_pseudo_masks

    run_stage(spec, ("pseudo",), make_pseudo_masks, threads=threads)


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|SPEC", help="A finished experiment, a model directory, or a predict stage's spec.json.")
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE|FOLDER|LIST.txt]...", help="Images, folders of images, or lists.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the results.")] = Path("predictions"),
    scales: Annotated[str, typer.Option(help="Comma-separated sizes of the image whose probabilities are averaged.")] = "1",
    flip: Annotated[bool, typer.Option(help="Also average the mirrored image's probabilities.")] = True,
    crf: Annotated[str, typer.Option(help="Dense CRF on the probabilities: none, soft, muscle or vitpcm.")] = "none",
    resize: Annotated[int | None, typer.Option(min=1, help="Longer side in pixels at scale 1; default: the image's own size.")] = None,
    source: Annotated[
        str, typer.Option(help="Of a model in a single stage: decoder, or patches, their own class probabilities.")
    ] = "decoder",
    threads: Threads = 0,
    gpus: Gpus = 0,
) -> None:
    """Label images with a trained segmenter: indexed PNG masks with a palette, and overlays.

    Example: `wsss predict results/shapes/experiments/crf photos/ --output out`.
    """
    if model.suffix == ".json" and not images:
        from wsss_core.stage import run_stage

        def work(stage):  # type: ignore[no-untyped-def]
            from wsss_core.stages.predict import predict_stage

            predict_stage(stage)

        run_stage(model, ("predict",), work, threads=threads, gpus=gpus)
        return
    if not images:
        raise UserError("IMAGE: missing; expected images, folders of images, or .txt lists")
    from wsss_core.config import Predict, validate

    try:
        sizes = tuple(float(part) for part in scales.split(","))
    except ValueError:
        raise UserError(f"--scales: expected comma-separated numbers, got '{scales}'") from None
    config = validate(Predict, {"scales": sizes, "flip": flip, "crf": crf, "resize": resize, "source": source}, "predict")
    from wsss_core.devices import claim_gpus
    from wsss_core.engine.own_images import find_images, find_model, predict_images
    from wsss_core.engine.predictor import Predictor

    found = find_images(images)
    import torch

    if threads:
        torch.set_num_threads(threads)
    with claim_gpus(gpus) as device:
        predictor = Predictor(find_model(model), config, "cpu" if device == "cpu" else "cuda")
        predict_images(predictor, found, output)
    typer.echo(
        f"{len(found)} image{'s' if len(found) != 1 else ''} -> {output}/masks, {output}/overlays; classes: {', '.join(predictor.classes)}"
    )


@app.command()
def evaluate(spec: SpecFile, threads: Threads = 0, gpus: Gpus = 0) -> None:
    """Compare scores, masks or a classifier with the truth: mIoU, mFDR, mFNR, IoU per class, the curve over thresholds, mAP."""
    from wsss_core.stage import run_stage
    from wsss_core.stages.evaluate import evaluate as evaluate_stage

    run_stage(spec, ("evaluate",), evaluate_stage, threads=threads, gpus=gpus)


@app.command()
def collect(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The experiment's spec-<id>.json in results/<data set>/experiments/.")],
) -> None:
    """Gather an experiment's figures in experiment.json and link its stages by readable names."""
    from wsss_core.results import collect as collect_experiment

    typer.echo(collect_experiment(spec))


@app.command()
def table(
    records: Annotated[list[Path], typer.Argument(metavar="EXPERIMENT.json...", help="The experiments' records.")],
    name: Annotated[str, typer.Option(help="Name of the table's files.")] = "results",
    rows: Annotated[str, typer.Option(help="`experiment` or a configuration key: one row per value.")] = "experiment",
    columns: Annotated[str | None, typer.Option(help="A configuration key: one column per value.")] = None,
    value: Annotated[list[str] | None, typer.Option(help="A figure such as cams.train.oracle.miou; may be repeated.")] = None,
    published: Annotated[str | None, typer.Option(metavar="FILE.csv", help="Published figures to set beside ours.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="ROW", help="Also differences from this row over seeds, with intervals.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the table.")] = Path("results/tables"),
) -> None:
    """Make a table (CSV and Markdown) of experiments: mean and standard deviation over seeds."""
    from wsss_core.config import Table, validate
    from wsss_core.report.tables import write_table

    keys = {"rows": rows, "columns": columns, "values": value or [], "published": published, "compare": compare}
    config = validate(Table, keys, "table")
    write_table(records, config, name, output)
    typer.echo((output / f"{name}.md").read_text(encoding="utf-8"))


@app.command()
def figures(
    records: Annotated[list[Path], typer.Argument(metavar="EXPERIMENT.json...", help="The experiments' records.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the figures.")] = Path("results/figures"),
) -> None:
    """Draw loss curves, threshold curves and image embeddings of experiments."""
    from wsss_core.report.figures import write_figures

    write_figures(records, output)


@app.command()
def gallery(
    record: Annotated[Path, typer.Argument(metavar="EXPERIMENT.json", help="The experiment's record.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the gallery.")] = Path("gallery"),
    images: Annotated[int, typer.Option(min=1, help="Number of images per split.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws the images.")] = 0,
) -> None:
    """Show images of an experiment stage by stage: image, CAM, affinity labels, boundary map, walked and refined scores, pseudo mask, prediction, truth."""
    from wsss_core.report.gallery import write_gallery

    write_gallery(record, output, images, seed)


@app.command()
def submission(
    model: Annotated[Path, typer.Argument(metavar="PREDICT", help="A finished predict stage (directory with masks/).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip file.")] = Path("submission.zip"),
    split: Annotated[str, typer.Option(help="Name of the split in the archive's layout.")] = "test",
) -> None:
    """Pack predictions for the PASCAL VOC test server: results/VOC2012/Segmentation/comp6_<split>_cls/*.png, zipped."""
    from wsss_core.evaluate.submission import write_submission

    typer.echo(f"{write_submission(model, output, split)} masks -> {output}")


@app.command()
def plan(
    configs: ConfigFiles,
    specs: Annotated[bool, typer.Option("--specs", help="Also write the spec files, so that commands can run without Snakemake.")] = False,
) -> None:
    """Print experiments x stages with their ids and whether they are done."""
    from wsss_core.config import read_config
    from wsss_core.plan_table import print_plan
    from wsss_core.results import plan_on_disk, write_specs

    made = plan_on_disk(read_config(*configs))
    if specs:
        write_specs(made)
    print_plan(made)


@app.command()
def gc(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG...", help="All configurations whose results are to stay, each a plan of its own; `a.yaml,b.yaml` lays b over a."
        ),
    ],
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only listed.")] = False,
) -> None:
    """List (and with --delete remove) the stages on disk that no given configuration names."""
    from wsss_core.config import read_config
    from wsss_core.results import delete as delete_directories
    from wsss_core.results import plan_on_disk, remove_dangling_links, unnamed

    plans = [plan_on_disk(read_config(*config.split(","))) for config in configs]
    found = unnamed(plans)
    for directory, size in found:
        typer.echo(f"{size / 1e6:10.1f} MB  {directory}")
    total = f"{len(found)} stage{'s' if len(found) != 1 else ''}, {sum(size for _, size in found) / 1e6:.1f} MB"
    if delete:
        delete_directories(directory for directory, _ in found)
        for root in {each.root for each in plans}:
            remove_dangling_links(root)
        typer.echo(f"removed {total}")
    else:
        typer.echo(f"{total} that no given configuration names" + ("; --delete removes them" if found else ""))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A finished experiment or a model directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; .onnx or .pt (TorchScript).")] = Path("segmenter.pt"),
    size: Annotated[int, typer.Option(min=32, help="Side in pixels of the square images that the exported model takes.")] = 512,
) -> None:
    """Export a segmenter for use without this package: images [N, 3, H, W] in [0, 1] to class probabilities [N, C, H, W]."""
    from wsss_core.engine.export import export_model
    from wsss_core.engine.own_images import find_model

    export_model(find_model(model), output, size)
    typer.echo(output)
