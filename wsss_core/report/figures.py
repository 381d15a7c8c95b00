"""Figures of a whole configuration: loss curves of everything that was trained, threshold curves of all scores, CAMs over the training, image embeddings.

One file per kind, all experiments in it: a colour and line style for each, thin lines for single seeds, a thick one for
their mean. Written as SVG for documents and PNG for pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_core.errors import UserError
from wsss_core.files import atomic_path
from wsss_core.report.embeddings import Panel, embedding_panels
from wsss_core.report.names import METRICS, SUBJECTS
from wsss_core.report.tables import read_records

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINED = {"classifier": "Classifier", "affinity": "AffinityNet", "boundary": "Boundary network", "segmenter": "Segmenter"}
OVER_TRAINING = {
    "cams_over_training": (
        "cams",
        "CAMs over the training, train: copies of the classifier, judged afterwards; threshold not chosen on masks",
    ),
    "own_labels_over_training": ("pseudo-epoch", "Pseudo labels that the training made itself, train: round by round, judged afterwards"),
}
"""Figures by the beginning of the evaluations' names that they show, and their titles."""
METRICS_FILE = "metrics.csv"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Distinguishable with all common forms of colour blindness (Okabe and Ito, 2008; its yellow replaced, too pale for lines)."""
LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>Pph"
"""Ten, so that with eight colours the 80 classes of COCO differ."""
_OBSERVED = "observed."
_NO_TERMS = ("step", "epoch", "lr", "images_per_second")
_STYLE: Any = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "wsss",
    "svg.fonttype": "none",
}


def write_figures(record_paths: Iterable[Path], out_dir: Path) -> list[Path]:
    """Draw `loss_<stage>`, `thresholds_<subject>`, those of `OVER_TRAINING` and `embeddings`, each as .svg and .png, into `out_dir`; return the files written.

    Only what there is: no threshold curves without masks, no loss curves without training stages, no CAMs over the training
    without snapshots, no embeddings of a few images.

    Raises
    ------
    UserError
        If a record, or the `metrics.csv` of a training stage that a record names, is missing or damaged.
    """
    import matplotlib as mpl

    paths = list(record_paths)
    records = read_records(paths)
    out_dir.mkdir(parents=True, exist_ok=True)
    styles = experiment_styles(record["name"] for record in records)
    written: list[Path] = []
    with mpl.rc_context(_STYLE):
        for stage in TRAINED:
            histories = _histories(records, stage)
            if histories:
                written += _save(_draw_losses(histories, styles, stage), out_dir / f"loss_{stage}")
        for subject in SUBJECTS:
            curves = _curves(records, subject)
            if curves:
                written += _save(_draw_thresholds(curves, styles, subject), out_dir / f"thresholds_{subject}")
        for name, (prefix, title) in OVER_TRAINING.items():
            found = _over_training(records, prefix)
            if found:
                written += _save(_draw_over_training(found, styles, title), out_dir / name)
        panels = embedding_panels(list(zip(paths, records, strict=True)))
        if panels:
            written += _save(_draw_embeddings(panels), out_dir / "embeddings")
    return written


def experiment_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Give each experiment, in order, a colour and, when the colours are used up, another line style."""
    unique = list(dict.fromkeys(names))
    return {name: {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]} for i, name in enumerate(unique)}


def read_history(path: Path) -> pd.DataFrame:
    """Read `metrics.csv`, one row per epoch; raises `UserError` if it is missing, damaged, or has no epochs or losses."""
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if "epoch" not in frame or not _terms(frame):
        raise UserError(f"{path}: expected the columns epoch and total, got {', '.join(frame.columns)}")
    return frame


def _terms(frame: pd.DataFrame) -> list[str]:
    """The losses of a history, the total first, then what was observed; a single term that is the total is left out."""
    columns = [c for c in frame.columns if c not in (*_NO_TERMS, "total")]
    terms, observed = ([c for c in columns if c.startswith(_OBSERVED) is seen] for seen in (False, True))
    if "total" not in frame:
        return terms + observed
    return ["total", *(terms if len(terms) > 1 else []), *observed]


def _histories(records: Sequence[dict[str, Any]], stage: str) -> dict[str, list[pd.DataFrame]]:
    found: dict[str, list[pd.DataFrame]] = {}
    for record in records:
        if stage in record["stages"]:
            found.setdefault(record["name"], []).append(read_history(Path(record["stages"][stage]["directory"]) / METRICS_FILE))
    return found


def _curves(records: Sequence[dict[str, Any]], subject: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        content = record["evaluations"].get(subject, {})
        if content.get("curve") and content["figures"]:
            found.setdefault(record["name"], []).append(content)
    return found


def _over_training(records: Sequence[dict[str, Any]], prefix: str) -> dict[str, list[pd.DataFrame]]:
    """What was judged at two epochs or more (no epoch: after the last): by experiment one frame per seed, with the columns step, miou, mfdr, mfnr."""
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {}
    for record in records:
        judged = {
            content.get("protocol", {}).get("epoch"): content for name, content in record["evaluations"].items() if name.startswith(prefix)
        }
        if len(judged) < 2:
            continue
        history = read_history(Path(record["stages"]["classifier"]["directory"]) / METRICS_FILE).set_index("epoch")["step"]
        rows = []
        for epoch, content in judged.items():
            own = next((figure for figure in content["figures"] if figure["rule"] != "oracle"), None)
            if own is not None:
                step = history.iloc[-1] if epoch is None else history.get(epoch, 0)
                rows.append({"step": step, **{metric: own[metric] for metric in ("miou", "mfdr", "mfnr")}})
        if rows:
            found.setdefault(record["name"], []).append(pd.DataFrame(rows).sort_values("step"))
    return found


def _draw_over_training(found: dict[str, list[pd.DataFrame]], styles: dict[str, dict[str, Any]], title: str) -> Figure:
    figure, axes = _panels(3)
    for axis, metric in zip(axes, ("miou", "mfdr", "mfnr"), strict=True):
        for name, seeds in found.items():
            lines = [(frame["step"].to_numpy(float), 100 * frame[metric].to_numpy(float)) for frame in seeds]
            _draw_mean(axis, lines, styles[name], name)
        axis.set(title=METRICS[metric], xlabel="iteration", ylabel=f"{METRICS[metric]} (%)")
    _finish(figure, axes, title)
    return figure


def _draw_embeddings(panels: Sequence[Panel]) -> Figure:
    """Draw images with one class in its colour, the others small and grey behind them."""
    classes = list(dict.fromkeys(name for panel in panels for name in panel.classes))
    figure, axes = _panels(len(panels))
    columns = 3 * min(len(panels), 3)
    figure.set_figheight(figure.get_figheight() + 0.2 * len(classes) / columns)
    for axis, panel in zip(axes, panels, strict=True):
        others = panel.places[panel.shown < 0]
        if len(others):
            axis.scatter(others[:, 0], others[:, 1], s=4, linewidths=0, color="0.75", label="several classes or none")
        for number, name in enumerate(panel.classes):
            own, place = panel.places[panel.shown == number], classes.index(name)
            if len(own):
                colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
                axis.scatter(own[:, 0], own[:, 1], s=14, linewidths=0, color=colour, marker=marker, label=name)
        axis.set(title=panel.title, xticks=[], yticks=[])
    splits = ", ".join(dict.fromkeys(panel.split for panel in panels))
    _finish(figure, axes, f"Image embeddings, {splits}: t-SNE", columns)
    return figure


def _draw_losses(histories: dict[str, list[pd.DataFrame]], styles: dict[str, dict[str, Any]], stage: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    terms = list(dict.fromkeys(term for seeds in histories.values() for frame in seeds for term in _terms(frame)))
    figure, axes = _panels(len(terms))
    for axis, term in zip(axes, terms, strict=True):
        for name, seeds in histories.items():
            lines = [(frame["epoch"].to_numpy(float), frame[term].to_numpy(float)) for frame in seeds if term in frame]
            _draw_mean(axis, lines, styles[name], name)
        what = "observed" if term.startswith(_OBSERVED) else "loss"
        title = "total loss" if term == "total" else term.removeprefix(_OBSERVED).replace("_", " ")
        axis.set(title=title, xlabel="epoch", ylabel=f"{what} (mean over the epoch)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, f"{TRAINED[stage]}: training loss")
    return figure


def _draw_thresholds(curves: dict[str, list[dict[str, Any]]], styles: dict[str, dict[str, Any]], subject: str) -> Figure:
    figure, axes = _panels(3)
    marks = {"auto": "D", "fixed": "o", "oracle": "*"}
    for axis, metric in zip(axes, ("miou", "mfdr", "mfnr"), strict=True):
        for name, contents in curves.items():
            lines = [(np.array(c["curve"]["threshold"], float), 100 * np.array(c["curve"][metric], float)) for c in contents]
            _draw_mean(axis, lines, styles[name], name)
            for rule in ("auto", "fixed", "argmax", "oracle"):
                points = [f for c in contents for f in c["figures"] if f["rule"] == rule and f[metric] is not None]
                if not points:
                    continue
                height = 100 * float(np.mean([p[metric] for p in points]))
                if rule == "argmax":  # no threshold at all: a level
                    axis.axhline(height, color=styles[name]["color"], linewidth=1, dashes=(1, 2))
                    continue
                place = float(np.mean([p["threshold"] for p in points]))
                size = 12 if rule == "oracle" else 6
                colour = styles[name]["color"]
                axis.plot(place, height, marks[rule], color=colour, markersize=size, markeredgecolor="white", zorder=3)
        axis.set(title=METRICS[metric], xlabel="background threshold", ylabel=f"{METRICS[metric]} (%)")
    rules = {f["rule"] for contents in curves.values() for c in contents for f in c["figures"]}
    _explain_marks(axes[0], rules, marks)
    splits = ", ".join(dict.fromkeys(c["split"] for contents in curves.values() for c in contents))
    _finish(figure, axes, f"{SUBJECTS[subject]}, {splits}: against the masks at every background threshold")
    return figure


def _explain_marks(axis: Axes, rules: Iterable[str], marks: dict[str, str]) -> None:
    """Add what the marks mean to the legend, in grey."""
    texts = {
        "auto": "label-free threshold",
        "fixed": "fixed threshold",
        "oracle": "oracle threshold (chosen on masks)",
        "argmax": "argmax with a background channel",
    }
    for rule in ("auto", "fixed", "oracle", "argmax"):
        if rule in rules and rule in marks:
            size = 12 if rule == "oracle" else 6
            axis.plot([], [], marks[rule], color="0.4", markersize=size, markeredgecolor="white", label=texts[rule])
        elif rule in rules:
            axis.plot([], [], color="0.4", linewidth=1, dashes=(1, 2), label=texts[rule])


def _draw_mean(axis: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray]], style: dict[str, Any], name: str) -> None:
    """Draw lines of several seeds thinly and, over the part that all have, their mean."""
    if not lines:
        return
    if len(lines) > 1:
        for x, y in lines:
            axis.plot(x, y, **style, linewidth=0.7, alpha=0.4)
    length = min(len(x) for x, _ in lines)
    label = f"{name} (mean of {len(lines)} seeds)" if len(lines) > 1 else name
    mean = np.mean([y[:length] for _, y in lines], axis=0)
    single = "." if length == 1 else None  # a line of one point would be invisible
    axis.plot(lines[0][0][:length], mean, **style, linewidth=1.8, marker=single, label=label)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.4 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _finish(figure: Figure, axes: Sequence[Axes], title: str, columns: int | None = None) -> None:
    """Add a title and one legend for all axes."""
    figure.suptitle(title)
    columns = columns or (3 if len(axes) > 1 else 1)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), columns), fontsize=9)


def _save(figure: Figure, path: Path) -> list[Path]:
    """Write .svg (without a date: same figures, same bytes) and .png."""
    written = []
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 150})):
        target = path.with_name(path.name + suffix)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], **options)
        written.append(target)
    return written
