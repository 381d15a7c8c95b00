"""What the loop and the rounds of ISIM add to the work itself: `python -m benchmarks.isim`.

Made images. A training step of the loop (with loading, augmentation and metrics) against forward, losses, backward and optimiser step of the same
model on ready batches; a round of pseudo labels against the bare maps and the bare CRF of its images, the latter divided by the number of processes. With
one thread the time is the processor's; with more it is that of the clock, and the machine has to be idle.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from wsss_core.config import Cams, load_config
from wsss_core.data.images import read_image
from wsss_core.data.index import read_index
from wsss_core.engine import loop, rounds
from wsss_core.engine.cams import multiscale_cams, normalise_cams
from wsss_core.engine.models import load_model
from wsss_core.engine.optimiser import make_optimiser
from wsss_core.refine.crf import crf_labels
from wsss_core.refine.pseudo import label_map
from wsss_core.refine.scores import upsample
from wsss_core.results import plan_on_disk, write_specs
from wsss_core.stage import Stage, read_spec, run_stage
from wsss_core.stages.data import prepare
from wsss_core.stages.train import train
from wsss_core.systems import make_system
from wsss_core.systems.base import Progress


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--decoder", default="deeplabv3")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="threads of the network, and processes of the CRF")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as results:
        stage = _stage(options, results)
        spent = _timed(rounds, "make_round", clock), _timed(loop.Fit, "_epoch", clock)
        train(stage)
        made, epochs = spent
        steps = options.images // options.batch
        step = (epochs[-1] - made[-1]) / steps  # the first epoch allocates
        bare = _bare_step(options, clock)
        maps, crf = _bare_round(stage, clock)
    print(f"training step: {1e3 * step:.0f} ms in the loop, {1e3 * bare:.0f} ms bare: {step / bare:.3f}")
    expected = maps + crf / options.threads
    print(f"round: {made[-1]:.1f} s, bare maps {maps:.1f} s + CRF {crf:.1f} s / {options.threads}: {made[-1] / expected:.3f}")


def _stage(options: argparse.Namespace, results: str) -> Stage:
    """A classifier stage of two epochs, with a round before each; its data are ready."""
    classifier = {
        "system": "isim",
        "decoder": options.decoder,
        "backbone": options.backbone,
        "weights": "none",
        "epochs": 2,
        "class_epochs": 0,
        "regenerate": 1,
        "batch_size": options.batch,
        "crop_size": options.size,
        "resize": None,
        "lr": 1e-3,
        "decoder_channels": 48,
        "labels": {"threshold": 0.3, "crf": "labels", "recalibrate": False},  # the paper's, as the bare round below
    }
    values: dict[str, Any] = {
        "results": results,
        "dataset": {"source": "shapes", "size": options.size, "train": options.images, "val": 1},
        "classifier": classifier,
        "experiments": {"isim": {}},
        "run": {"workers": 0},
    }
    plan = plan_on_disk(load_config(values))
    write_specs(plan)
    stages = plan.chains[0].stages
    run_stage(plan.directory(stages["data"]) / "spec.json", ("data",), prepare, threads=1)
    return Stage(read_spec(plan.directory(stages["classifier"]) / "spec.json"), options.threads, 0)


def _timed(place: Any, name: str, clock: Callable[[], float]) -> list[float]:
    """Let a function note the time of each of its calls, without that of others which do the same."""
    original, spent = getattr(place, name), []

    def timed(*arguments: Any) -> Any:
        begin = clock()
        result = original(*arguments)
        spent.append(clock() - begin)
        return result

    setattr(place, name, timed)
    return spent


def _bare_step(options: argparse.Namespace, clock: Callable[[], float]) -> float:
    parameters = {"system": "isim", "decoder": options.decoder, "backbone": options.backbone, "weights": "none", "decoder_channels": 48}
    system = make_system(parameters, 6, "benchmark")
    model = system.build().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(system.config, system.parameter_groups(model))
    size = (options.batch, options.size, options.size)
    images = torch.randn(size[0], 3, *size[1:]).contiguous(memory_format=torch.channels_last)
    batch = {"image": images, "label": torch.ones(options.batch, 5), "target": torch.randint(0, 6, size)}

    def step() -> None:
        torch.stack(list(system.losses(model, batch, Progress(0, 0, 1)).values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return _median(step, 5, clock)


def _bare_round(stage: Stage, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the maps and of the CRF of all images, one by one, without files."""
    trained, index = load_model(stage.output), read_index(stage.input("data"), None)
    config = Cams()
    seconds = np.zeros(2)
    for record in index.split("train"):
        image = read_image(index.image_path(record))
        begin = clock()
        maps, _ = multiscale_cams(trained, image, config)
        middle = clock()
        kept = upsample(normalise_cams(maps[[c - 1 for c in record.labels]]), image.shape[:2]) if record.labels else maps[:0]
        crf_labels(image, label_map(kept, np.array(record.labels), 0.3) if record.labels else np.zeros(image.shape[:2], int), len(kept) + 1)
        seconds += middle - begin, clock() - middle
    return float(seconds[0]), float(seconds[1])


def _median(function: Callable[[], None], repetitions: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(repetitions + 1):
        begin = clock()
        function()
        times.append(clock() - begin)
    return statistics.median(times[1:])  # the first one allocates


if __name__ == "__main__":
    main()
