"""What RSA and CFC cost in a training step: `python -m benchmarks.loss_terms`.

Per step of `rsa_cfc` (forward, losses, backward, optimiser), the processor time of everything that is not the network: attention,
contrast, reconstruction and both classification losses, forward and backward to the network's outputs, measured alone on such outputs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsss_core.nn.backbones import memory_format
from wsss_core.systems import make_system
from wsss_core.systems.base import Progress
from wsss_core.systems.puzzle import TwoBranches
from wsss_core.systems.rsa_cfc import RsaCfc

_MIDDLE = Progress(epoch=0, step=75, steps=100)


class _Outputs(nn.Module):
    """Gives ready-made outputs instead of a network's."""

    def __init__(self, outputs: TwoBranches) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor, tiles: bool) -> TwoBranches:
        return self.outputs


def main() -> None:
    """Print a line per kernel: a whole step, the terms alone, their share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=20, help="foreground classes")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| attention | step | terms | share |\n| --- | --: | --: | --: |")
    for attention in ("centred_cosine", "softmax_dot", "relu_cosine", "softmax_cosine", "none"):
        step, terms = _measure(options, attention)
        print(f"| {attention} | {1e3 * step:.0f} ms | {1e3 * terms:.1f} ms | {terms / step:.1%} |")


def _measure(options: argparse.Namespace, attention: str) -> tuple[float, float]:
    torch.manual_seed(0)
    parameters = {"system": "rsa_cfc", "backbone": options.backbone, "weights": "none", "output_stride": 16, "attention": attention}
    system = make_system(parameters, options.classes + 1, "benchmark")
    assert isinstance(system, RsaCfc)
    model = system.build().train()
    layout = memory_format(model, "auto")
    model.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = (torch.rand(options.batch, options.classes) < 0.1).float()
    labels[:, 0] = 1  # no image without a class
    batch = {"image": torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=layout), "label": labels}
    with torch.no_grad():
        outputs = model(batch["image"], tiles=True)
    ready = _Outputs(TwoBranches(*(value.detach().clone().requires_grad_() for value in outputs)))

    def run(network: nn.Module) -> float:
        begin = time.process_time()
        torch.stack(list(system.losses(network, batch, _MIDDLE).values())).sum().backward()
        if network is model:
            optimiser.step()
            optimiser.zero_grad()
        return time.process_time() - begin

    return _median(lambda: run(model), options.repetitions), _median(lambda: run(ready), 4 * options.repetitions)


def _median(seconds: Callable[[], float], repetitions: int) -> float:
    seconds()  # the first one allocates
    return statistics.median(seconds() for _ in range(repetitions))


if __name__ == "__main__":
    main()
