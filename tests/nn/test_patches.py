"""Networks on grids of patches: HV-BiLSTM, transformers at any size, the decoder over blocks, pixel-adaptive refinement."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_core.config import Backbone
from wsss_core.errors import UserError
from wsss_core.nn.backbones import PatchFeatures
from wsss_core.nn.bilstm import HVBiLSTM
from wsss_core.nn.patch_decoder import PatchDecoder
from wsss_core.nn.pixel_adaptive import pixel_adaptive_refine


def grid(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_patch_is_seen_in_the_light_of_its_row_and_column_alone() -> None:
    torch.manual_seed(0)
    lstm, given = HVBiLSTM(8), grid(2, 8, 5, 7)
    before = lstm(given)
    assert before.shape == given.shape
    given[0, :, 2, 3] += 1
    changed = (lstm(given) - before).abs().amax(dim=1) > 0
    expected = torch.zeros(2, 5, 7, dtype=torch.bool)
    expected[0, 2, :] = expected[0, :, 3] = True
    assert torch.equal(changed, expected)


def test_rows_and_columns_are_read_alike() -> None:
    """With the two LSTMs exchanged the transposed grid gives the transposed result, its halves exchanged."""
    torch.manual_seed(1)
    lstm, given = HVBiLSTM(8), grid(1, 8, 4, 6)
    out = lstm(given)
    lstm.horizontal, lstm.vertical = lstm.vertical, lstm.horizontal
    torch.testing.assert_close(lstm(given.transpose(2, 3)).transpose(2, 3), torch.cat([out[:, 4:], out[:, :4]], dim=1))


def test_both_directions_are_read_alike() -> None:
    """With the directions' weights exchanged the mirrored grid gives the mirrored result, its directions exchanged."""
    torch.manual_seed(2)
    lstm, given = HVBiLSTM(8), grid(1, 8, 4, 6)
    rows = lstm(given)[:, :4]
    state = lstm.horizontal.state_dict()
    flipped = {
        name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse": value.clone() for name, value in state.items()
    }
    lstm.horizontal.load_state_dict(flipped)
    torch.testing.assert_close(lstm(given.flip(3))[:, :4].flip(3), torch.cat([rows[:, 2:], rows[:, :2]], dim=1))


def test_the_embedding_has_four_quarters() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        HVBiLSTM(10)


def test_it_stays_in_float32_where_all_else_does_not() -> None:
    lstm, given = HVBiLSTM(8), grid(1, 8, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        made = lstm(given.bfloat16())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, lstm(given.bfloat16().float()))


VIT = Backbone(backbone="test_vit", weights="none")


@pytest.mark.parametrize(("size", "patches"), [((160, 160), (10, 10)), ((64, 160), (4, 10)), ((100, 250), (6, 16)), ((7, 20), (1, 1))])
def test_a_transformer_takes_images_of_any_size(size: tuple[int, int], patches: tuple[int, int]) -> None:
    features = PatchFeatures(VIT).eval()
    final, levels = features(grid(2, 3, *size))
    assert final.shape == (2, features.out_channels, *patches)
    assert {level.shape for level in levels} == {(2, features.out_channels, *patches)}


def test_its_patches_are_the_normalised_tokens_in_their_places() -> None:
    features = PatchFeatures(VIT).eval()
    images = grid(1, 3, 48, 80)
    tokens = features.net.forward_features(images)[:, features.net.num_prefix_tokens :]  # type: ignore[operator,misc]
    torch.testing.assert_close(features(images)[0].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("test_resnet", "is no plain vision transformer"), ("swin_tiny_patch4_window7_224", "takes images of one size alone")],
)
def test_other_networks_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"backbone: {name} .*{reason}"):
        PatchFeatures(Backbone(backbone=name, weights="none"))


@pytest.mark.parametrize(("levels", "blocks"), [(1, [11]), (4, [2, 5, 8, 11]), (5, [1, 3, 6, 8, 11]), (40, list(range(12)))])
def test_the_decoder_merges_evenly_spaced_blocks(levels: int, blocks: list[int]) -> None:
    decoder = PatchDecoder([8] * 12, num_classes=3, width=16, levels=levels)
    assert decoder.blocks == blocks
    given = [grid(2, 8, 3, 5, seed=i) for i in range(12)]
    before = decoder(given)
    assert before.shape == (2, 3, 3, 5)
    for i, level in enumerate(given):
        others = [other if j != i else level + grid(2, 8, 3, 5, seed=99) for j, other in enumerate(given)]
        assert torch.equal(decoder(others), before) == (i not in blocks)


def by_pixel(images: Tensor, scores: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """One step of the refinement, pixel by pixel."""
    _, height, width = images.shape
    refined = torch.zeros_like(scores)
    for y in range(height):
        for x in range(width):
            steps = [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
            places = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
            colours = torch.stack([images[:, v, u] for v, u in places])
            apart = ((colours - images[:, y, x]) / (0.3 * colours.std(dim=0) + 1e-8)) ** 2
            distance = torch.tensor([(dy**2 + dx**2) ** 0.5 for dy, dx in steps])
            near = (distance / (0.3 * distance.std() + 1e-8)) ** 2
            weights = ((-apart.mean(dim=1)).softmax(dim=0) + 0.01 * (-near).softmax(dim=0)) / 1.01
            refined[:, y, x] = sum(w * scores[:, v, u] for w, (v, u) in zip(weights, places, strict=True))
    return refined


def test_pixel_adaptive_refinement_is_the_loops() -> None:
    images, scores = grid(2, 3, 6, 5), grid(2, 4, 6, 5, seed=1).softmax(dim=1)
    expected = torch.stack([by_pixel(*pair, (1, 3)) for pair in zip(images, scores, strict=True)])
    torch.testing.assert_close(pixel_adaptive_refine(images, scores, (1, 3), iterations=1), expected, rtol=1e-4, atol=1e-6)
    twice = torch.stack([by_pixel(*pair, (1, 3)) for pair in zip(images, expected, strict=True)])
    torch.testing.assert_close(pixel_adaptive_refine(images, scores, (1, 3), iterations=2), twice, rtol=1e-4, atol=1e-6)


def test_refined_scores_are_probabilities_and_follow_the_edge() -> None:
    """Left half black, right half white; the scores know it but for a strip along the edge."""
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    images = images + 0.01 * grid(1, 3, 16, 16)
    scores = torch.full((1, 2, 16, 16), 0.5)
    scores[:, 0, :, :5] = scores[:, 1, :, 11:] = 1
    scores[:, 1, :, :5] = scores[:, 0, :, 11:] = 0
    refined = pixel_adaptive_refine(images, scores)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(1, 16, 16))
    assert (refined[0, 0, :, :8] > 0.6).all() and (refined[0, 1, :, 8:] > 0.6).all()


def test_a_flat_image_breaks_nothing() -> None:
    refined = pixel_adaptive_refine(torch.zeros(1, 3, 4, 4), grid(1, 2, 4, 4).softmax(dim=1))
    assert torch.isfinite(refined).all() and refined.min() >= 0
