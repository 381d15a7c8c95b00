"""The losses of Puzzle-CAM and RSA + CFC once more, cell by cell in float64 from the paper's equations with the decisions of docs/systems/rsa-cfc.md, and a network that gives fixed maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsss_core.systems import make_system
from wsss_core.systems.base import CamSystem, Progress
from wsss_core.systems.puzzle import Puzzle, TwoBranches

NETWORK: dict[str, Any] = {"backbone": "test_resnet", "weights": "none", "crop_size": 64, "resize": None}
DEFAULTS = {
    "attention": "centred_cosine",
    "temperature": 0.1,
    "lambda_contrast": 0.5,
    "alpha": 0.25,
    "foreground": "cam",
    "pairs": "sharing",
    "present_only": True,
    "beta_reconstruction": 2.0,
    "ramp": 0.5,
    "reconstruction_level": "cams",
    "tile_statistics": False,
}
PAPER = {
    "attention": "softmax_dot",
    "foreground": "relu",
    "pairs": "all",
    "present_only": False,
    "reconstruction_level": "logits",
    "tile_statistics": True,
}
"""What is literal in the paper, or nearest to it, and not the default."""
PUZZLE = {"attention": "none", "lambda_contrast": 0}
"""What makes `rsa_cfc` the plain Puzzle-CAM."""
HALFWAY = Progress(2, 5, 20)


def puzzle_system(system: str = "rsa_cfc", classes: int = 4, **changes: Any) -> Puzzle:
    made = make_system({"system": system, **NETWORK, **changes}, classes, "test")
    assert isinstance(made, Puzzle)
    return made


def cam_system(classes: int = 4) -> CamSystem:
    made = make_system({"system": "cam", **NETWORK}, classes, "test")
    assert isinstance(made, CamSystem)
    return made


class Given(nn.Module):
    """A network that gives the same maps whatever it sees."""

    def __init__(self, outputs: TwoBranches) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor, tiles: bool = False) -> TwoBranches:
        assert tiles
        return self.outputs


def outputs_of(
    count: int, grid: tuple[int, int], tile_grid: tuple[int, int], classes: int = 3, channels: int = 5, seed: int = 0
) -> TwoBranches:
    """Maps and features of both signs, with gradients; `grid` is that of the whole images."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, classes, *grid, generator=generator)
    tile_features = torch.randn(4 * count, channels, *tile_grid, generator=generator) + 0.5
    tile_maps = torch.randn(4 * count, classes, *tile_grid, generator=generator) + 0.3
    return TwoBranches(*(each.requires_grad_() for each in (maps, tile_features, tile_maps)))


def losses_of(
    outputs: TwoBranches, labels: Tensor, progress: Progress = HALFWAY, system: str = "rsa_cfc", **changes: Any
) -> dict[str, Tensor]:
    """What the system under test makes of a network's outputs."""
    made = puzzle_system(system, labels.shape[1] + 1, **changes)
    return made.losses(Given(outputs), {"image": torch.zeros(0), "label": labels}, progress)


def gradients(losses: dict[str, Tensor], outputs: TwoBranches) -> list[Tensor]:
    """The gradients of the sum of all terms, zeros where there is none."""
    total = torch.stack(list(losses.values())).sum()
    return list(torch.autograd.grad(total, list(outputs), retain_graph=True, allow_unused=True, materialize_grads=True))


def by_equations(
    outputs: TwoBranches, labels: Tensor, fraction: float, *, weight_gives_gradient: bool = False, **changes: Any
) -> dict[str, Tensor]:
    """The terms of Eq. 16 at a fraction of the training; the values in `changes` differ from the paper's."""
    values = {**DEFAULTS, **changes}
    maps, features, tile_maps = (each.double() for each in outputs)
    count, tile_maps = len(maps), attended(features, tile_maps, values["attention"], values["temperature"])
    merged = put_together(tile_maps, count)
    terms = {"classification": classification(maps, labels), "classification_tiles": classification(merged, labels)}
    if values["beta_reconstruction"]:
        beta = values["beta_reconstruction"]
        if values["ramp"] and fraction < values["ramp"]:
            beta *= fraction / values["ramp"]
        terms["reconstruction"] = beta * reconstruction(maps, merged, labels, values["reconstruction_level"])
    if values["lambda_contrast"]:
        present = labels if values["present_only"] else torch.ones_like(labels)
        weights = foreground(tile_maps, count, values["foreground"])
        shared = labels if values["pairs"] == "sharing" else torch.ones(count, 1)
        contrast = foreground_contrast(features, weights, present, shared, values["alpha"], weight_gives_gradient)
        terms["contrast"] = values["lambda_contrast"] * contrast
    return terms


def attended(features: Tensor, maps: Tensor, kernel: str, temperature: float) -> Tensor:
    """Eqs. 4 to 6 with C_q inside the sum."""
    if kernel == "none":
        return maps
    tiles = []
    for y, c in zip(features.flatten(2), maps.flatten(2), strict=True):
        if kernel == "softmax_dot":  # as printed; the largest product is taken off above and below the fraction
            products = y.T @ y
            f = (products - products.max(dim=1, keepdim=True).values).exp()
        else:
            f = torch.stack([torch.stack([likeness(y, p, q, kernel, temperature) for q in range(y.shape[1])]) for p in range(y.shape[1])])
        tiles.append(torch.stack([(f[p] * c).sum(dim=1) / f[p].sum() for p in range(y.shape[1])], dim=1))
    return torch.stack(tiles).view_as(maps)


def likeness(y: Tensor, p: int, q: int, kernel: str, temperature: float) -> Tensor:
    """The likeness f of the cells p and q of features [D, cells], with the decisions on cells that have no direction."""
    if kernel == "centred_cosine":
        if p == q:
            return y.new_ones(())
        least = 0.1 * y.detach().square().sum(dim=0).mean().sqrt()
        one, other = (y[:, each] - y.mean(dim=1) for each in (p, q))
        lengths = [torch.stack([each.norm(), least, y.new_tensor(1e-3)]).max() if each.any() else 1 for each in (one, other)]
        return ((one * other).sum() / (lengths[0] * lengths[1])).clamp(min=0)
    norms = y[:, p].norm() * y[:, q].norm()
    cosine = (y[:, p] * y[:, q]).sum() / norms if norms.item() > 0 else norms
    if kernel == "softmax_cosine":
        return (cosine / temperature).exp()
    return cosine.clamp(min=0) + 1e-5 * (p == q)  # like itself, even where the features are 0


def put_together(tile_maps: Tensor, count: int) -> Tensor:
    """Ĉ*_re: the tiles of an image are `count` apart, in reading order."""
    _, classes, height, width = tile_maps.shape
    merged = tile_maps.new_zeros(count, classes, 2 * height, 2 * width)
    for image in range(count):
        for row in range(2 * height):
            for column in range(2 * width):
                tile = 2 * (row >= height) + (column >= width)
                merged[image, :, row, column] = tile_maps[tile * count + image, :, row % height, column % width]
    return merged


def classification(maps: Tensor, labels: Tensor) -> Tensor:
    """Eqs. 7 and 8, the mean over images."""
    total = maps.new_zeros(())
    for image, label in zip(maps, labels, strict=True):
        for each, present in zip(image, label, strict=True):
            x = each.mean()
            total = total - (torch.log(1 / (1 + torch.exp(-x))) if present else torch.log(torch.exp(-x) / (1 + torch.exp(-x))))
    return total / labels.numel()


def reconstruction(maps: Tensor, merged: Tensor, labels: Tensor, level: str) -> Tensor:
    """Eq. 15 as a mean, the classes that an image does not show counting as 0; of logits, or of normalised CAMs."""
    seen = normalised if level == "cams" else lambda plane: plane
    height, width = maps.shape[-2:]
    total = maps.new_zeros(())
    for image in range(len(maps)):
        for each in range(maps.shape[1]):
            if labels[image, each]:
                total = total + (seen(maps[image, each]) - seen(resized(merged[image, each], height, width))).abs().sum()
    return total / maps.numel()


def normalised(plane: Tensor) -> Tensor:
    """ReLU, divided by the maximum or, if that is below 1, by 1."""
    shown = plane.clamp(min=0)
    return shown / shown.max() if shown.max().item() > 1 else shown


def resized(plane: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, between the centres of cells; [h', w'] to [height, width]."""
    rows = []
    for row in range(height):
        y = min(max((row + 0.5) * plane.shape[0] / height - 0.5, 0.0), plane.shape[0] - 1.0)
        top, bottom = int(y), min(int(y) + 1, plane.shape[0] - 1)
        cells = []
        for column in range(width):
            x = min(max((column + 0.5) * plane.shape[1] / width - 0.5, 0.0), plane.shape[1] - 1.0)
            left, right = int(x), min(int(x) + 1, plane.shape[1] - 1)
            above = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
            below = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
            cells.append(above * (1 - (y - top)) + below * (y - top))
        rows.append(torch.stack(cells))
    return torch.stack(rows)


def foreground(maps: Tensor, count: int, kind: str) -> Tensor:
    """What of the tiles' maps weighs their features."""
    if kind == "sigmoid":
        return maps.sigmoid()
    if kind == "cam":
        merged = put_together(maps, count)
        planes = torch.stack([torch.stack([normalised(plane) for plane in image]) for image in merged])
        half, across = maps.shape[-2:]
        corners = [(top, left) for top in (0, half) for left in (0, across)]
        weights = torch.cat([planes[:, :, top : top + half, left : left + across] for top, left in corners])
    else:
        weights = maps.clamp(min=0)
    return weights * (weights.mean(dim=(2, 3), keepdim=True) >= 0.05)  # next to nothing is nothing


def foreground_contrast(
    features: Tensor, weights: Tensor, present: Tensor, shared: Tensor, alpha: float, weight_gives_gradient: bool
) -> Tensor:
    """Eqs. 10 to 14 as a mean over pairs of images, with a class in common, and of tiles that hold foreground."""
    count = len(present)

    def vector(image: int, tile: int) -> Tensor:  # Eq. 10
        parts = []
        for each in range(weights.shape[1]):
            for channel in range(features.shape[1]):
                plane = features[tile * count + image, channel] * weights[tile * count + image, each]
                parts.append(plane.sum() * present[image, each].item())
        return torch.stack(parts)

    vectors = [[vector(image, tile) for tile in range(4)] for image in range(count)]
    total, pairs = features.new_zeros(()), 0
    for i in range(count):
        for r in range(count):
            similarities = []
            if not (shared[i] * shared[r]).any():
                continue
            for one in vectors[i]:
                for other in vectors[r]:
                    if i != r and one.norm().item() > 0 and other.norm().item() > 0:
                        similarities.append((one * other).sum() / (one.norm() * other.norm()))  # Eq. 11
            if similarities:
                theta = alpha * torch.stack(similarities).sum()  # Eq. 13
                weight = 1 / (1 + torch.exp(-theta))  # Eq. 12
                weight = weight if weight_gives_gradient else weight.detach()
                total = total + weight * torch.stack([torch.log(s.clamp(min=0) + 1e-5) for s in similarities]).mean()
                pairs += 1
    return -total / max(pairs, 1)  # Eq. 14
