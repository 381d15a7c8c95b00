"""The training loop (Lightning Fabric): devices, precision, accumulation, schedule, checkpoints, metrics.

All randomness of an epoch follows from (seed, epoch): the order of the images, each image's augmentation and the
network's own (dropout). A checkpoint is therefore weights, optimiser and history alone, and a resumed run sees what an
undisturbed one would.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsss_core.config import Training
from wsss_core.data.dataset import EpochSampler, SeededDataset, stable_seed
from wsss_core.data.index import DataIndex
from wsss_core.engine.models import save_model, snapshot_directory
from wsss_core.engine.optimiser import lr_factor, make_optimiser, set_lr
from wsss_core.engine.rounds import Moment, provide_round
from wsss_core.errors import UserError
from wsss_core.files import atomic_path, write_text
from wsss_core.nn.backbones import memory_format
from wsss_core.stage import SPEC, Stage
from wsss_core.systems.base import Progress, Run, System

CHECKPOINT, METRICS, TENSORBOARD = "checkpoint.pt", "metrics.csv", "tensorboard"
OBSERVED = "observed."
"""What a system observes beside its losses has columns of this beginning."""
_LEFTOVERS = ("snapshots", "rounds", TENSORBOARD)
SEVERAL_DEVICES = "ddp_find_unused_parameters_true"  # systems switch their terms on one after another
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(config: Training, gpus: int) -> Fabric:
    """Return the devices and precision for a training; `auto` precision is bf16 where a GPU has it, else fp32."""
    cuda = gpus > 0 and torch.cuda.is_available()
    count = min(gpus, torch.cuda.device_count()) if cuda else 1
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=count,
        strategy=SEVERAL_DEVICES if count > 1 else "auto",
        precision=_PRECISIONS[precision],  # type: ignore[arg-type]
        # The processes of one job are ours to start: a cluster's scheduler started just this one.
        plugins=[LightningEnvironment()],
    )


@dataclass
class _Sums:
    """Running sums of the loss terms and of what is observed, kept on the device so that a GPU never waits for them."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    images: int = 0

    def add(self, values: dict[str, Tensor], images: int) -> None:
        for name, value in values.items():
            self.terms[name] = self.terms.get(name, torch.zeros((), device=value.device)) + value.detach()
            self.batches[name] = self.batches.get(name, 0) + 1
        self.images += images

    def means(self) -> dict[str, float]:
        """Of the loss terms, each over the batches that had it; of their sum, `total`, over all batches; then of what was observed."""
        means = {name: float(value) / self.batches[name] for name, value in self.terms.items()}
        losses = [name for name in means if not name.startswith(OBSERVED)]
        total = sum(float(self.terms[name]) for name in losses) / max((self.batches[name] for name in losses), default=1)
        observed = {name: value for name, value in means.items() if name.startswith(OBSERVED)}
        return {**{name: means[name] for name in losses}, "total": total, **observed}


class Fit:
    """One training run."""

    def __init__(self, stage: Stage, system: System, model: nn.Module, index: DataIndex, seed: int) -> None:
        self.stage, self.system, self.index, self.seed = stage, system, index, seed
        self.config: Training = system.config
        self.fabric = make_fabric(self.config, stage.gpus)
        self.fabric.launch()
        self.memory_format = memory_format(model, self.config.channels_last)
        model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        optimiser = make_optimiser(self.config, system.parameter_groups(model))
        self.raw_model = model
        self.model, self.optimiser = self.fabric.setup(model, optimiser)
        records = index.split("train")
        if len(records) < self.fabric.world_size:
            raise UserError(f"{len(records)} training images are too few for {self.fabric.world_size} devices; lower run.gpus")
        inputs = {**stage.spec.inputs, "output": stage.output}
        data = SeededDataset(records, system.load(index, inputs), seed)
        self.sampler = EpochSampler(len(records), seed, rank=self.fabric.global_rank, world_size=self.fabric.world_size)
        self.loader = DataLoader(
            data,
            batch_size=self.config.batch_size,
            sampler=self.sampler,
            # A last, smaller batch would weigh its images more, and one image alone breaks batch normalisation.
            drop_last=len(self.sampler) >= self.config.batch_size,
            # Its own generator: else starting the workers would draw from the one that dropout draws from.
            generator=torch.Generator(),
            num_workers=stage.workers,
            persistent_workers=stage.workers > 0,
            pin_memory=self.fabric.device.type == "cuda",
        )
        self.steps_per_epoch = -(-len(self.loader) // self.config.accumulate)
        self.steps = self.steps_per_epoch * self.config.epochs
        self.history: list[dict[str, Any]] = []
        stage.facts["precision"] = str(self.fabric.strategy.precision.precision)
        stage.facts["channels_last"] = self.memory_format == torch.channels_last

    def run(self) -> list[dict[str, Any]] | None:
        """Train to the end; return the metrics of each epoch, or None on all but the first process."""
        first = self._resume()
        writer = self._tensorboard()
        for epoch in range(first, self.config.epochs):
            row = self._epoch(epoch)
            self.history.append(row)
            if self.fabric.is_global_zero:
                terms = "  ".join(
                    f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "step", "lr", "images_per_second")
                )
                self.stage.log(
                    f"epoch {epoch + 1}/{self.config.epochs}  {terms}  lr {row['lr']:.2g}  {row['images_per_second']:.1f} images/s"
                )
                if writer:
                    for name, value in row.items():
                        writer.add_scalar(name, value, row["step"])
                self._save(epoch)
            self.fabric.barrier()
        if writer:
            writer.close()
        self.raw_model.eval()
        self.system.after_training(self.raw_model, self._batches(self.config.epochs))
        return self.history if self.fabric.is_global_zero else None

    def _batches(self, epoch: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch, on the device."""
        self.sampler.set_epoch(epoch)
        for batch in self.loader:
            yield self._on_device(batch)

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        moved = {
            name: value.to(self.fabric.device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()
        }
        return {**moved, "image": moved["image"].contiguous(memory_format=self.memory_format)}

    def _epoch(self, epoch: int) -> dict[str, Any]:
        now = Moment(self.raw_model, self.index, self.history, self.stage, self.fabric, partial(self._batches, epoch))
        self.system.before_epoch(epoch, Run(self.raw_model, self.history, partial(provide_round, now, self.system)))
        torch.manual_seed(stable_seed(self.seed, epoch, self.fabric.global_rank))
        self.model.train()
        sums, start = _Sums(), time.monotonic()
        what, count = f"epoch {epoch + 1}/{self.config.epochs}", len(self.loader)
        tracked = self.stage.track(self._batches(epoch), what, count, status=lambda: _status(sums, start))
        for position, batch in enumerate(tracked):
            losses = self._step(epoch, position, batch)
            observed = {OBSERVED + name: value for name, value in self.system.observed().items()}
            sums.add({**losses, **observed}, len(batch["image"]))
        means = sums.means()
        if self.fabric.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")  # type: ignore[assignment]
            means = {name: float(value) for name, value in means.items()}
        total = means["total"]
        if total != total or total in (float("inf"), float("-inf")):
            raise UserError(f"{self.stage.output / SPEC}: the loss is {total} after epoch {epoch + 1}; try a smaller lr or clip_norm")
        rate = sums.images * self.fabric.world_size / (time.monotonic() - start)
        lr = self.optimiser.param_groups[0]["lr"]
        return {
            "step": (epoch + 1) * self.steps_per_epoch,
            "epoch": epoch + 1,
            "lr": lr,
            **means,
            "images_per_second": round(rate, 2),
        }

    def _step(self, epoch: int, position: int, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward of one batch; an optimiser step when enough batches have been accumulated."""
        accumulate = self.config.accumulate
        step = epoch * self.steps_per_epoch + position // accumulate
        last = position + 1 == len(self.loader)
        updates = (position + 1) % accumulate == 0 or last
        # The epoch's last group of batches may be smaller.
        group = (len(self.loader) - 1) % accumulate + 1 if position // accumulate == (len(self.loader) - 1) // accumulate else accumulate
        with self.fabric.no_backward_sync(self.model, enabled=not updates):
            losses = self.system.losses(self.model, batch, Progress(epoch, step, self.steps))
            self.fabric.backward(torch.stack(list(losses.values())).sum() / group)
        if updates:
            set_lr(self.optimiser, lr_factor(self.config, step, self.steps))
            if self.config.clip_norm is not None:
                self.fabric.clip_gradients(self.model, self.optimiser, max_norm=self.config.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return losses

    def _save(self, epoch: int) -> None:
        if epoch + 1 in self.system.snapshots:
            directory = snapshot_directory(self.stage.output, epoch + 1)
            directory.mkdir(parents=True, exist_ok=True)
            save_model(directory, self.raw_model, self.stage.parameters, self.index.classes)
        state = {
            "epoch": epoch + 1,
            "model": self.raw_model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "history": self.history,
        }
        with atomic_path(self.stage.resume / CHECKPOINT) as temporary:
            torch.save(state, temporary)
        write_text(self.stage.output / METRICS, pd.DataFrame(self.history).to_csv(index=False))

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; return the first epoch to do."""
        path = self.stage.resume / CHECKPOINT
        if not path.exists():
            if self.fabric.is_global_zero:
                for leftover in _LEFTOVERS:  # of an earlier training, which was another one
                    shutil.rmtree(self.stage.output / leftover, ignore_errors=True)
            self.fabric.barrier()
            return 0
        state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        self.raw_model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.history = state["history"]
        self.stage.log(f"resumes after epoch {state['epoch']}")
        return int(state["epoch"])

    def _tensorboard(self) -> Any:
        if not (self.stage.spec.run.get("tensorboard") and self.fabric.is_global_zero):
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("run.tensorboard: TensorBoard is not installed; pip install 'wsss-core[tensorboard]'") from None
        return SummaryWriter(str(self.stage.output / TENSORBOARD))


def _status(sums: _Sums, start: float) -> str:
    terms = "  ".join(f"{name} {value:.4f}" for name, value in sums.means().items())
    return f"{terms}  {sums.images / (time.monotonic() - start):.1f} images/s"
