"""System `apc`: its parts, its losses, the labels it makes itself, what learns when, its test path and its chain."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_core.config import load_config
from wsss_core.data.images import read_image, read_mask
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.engine.export import export_model
from wsss_core.engine.models import save_model
from wsss_core.engine.own_images import find_model
from wsss_core.engine.predictor import Predictor
from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.losses.classification import probability_cross_entropy
from wsss_core.losses.contrast import patch_contrast
from wsss_core.losses.segmentation import pixel_cross_entropy
from wsss_core.nn.bilstm import HVBiLSTM
from wsss_core.nn.pixel_adaptive import pixel_adaptive_refine
from wsss_core.nn.pooling import adaptive_k_pool
from wsss_core.plan import Plan
from wsss_core.systems import make_system
from wsss_core.systems.apc import Apc, ApcNet, Patches
from wsss_core.systems.base import Batch, Progress, Run

NETWORK = {"backbone": "test_vit", "weights": "none", "crop_size": 64, "decoder_channels": 16}
LATER = Progress(2, 20, 100)
PATCH_TO_PIXEL = {"label_scores": "probability", "label_refinement": "none", "label_confidence": 0}
"""Section 3.2: "the predicted category of each patch is directly mapped onto each pixel within the patch"."""
AFA = {"label_dilations": [0.00625, 0.0125, 0.025, 0.05, 0.075, 0.15], "label_iterations": 10}


def apc(**keys: Any) -> Apc:
    made = make_system({"system": "apc", **NETWORK, **keys}, 4, "test")
    assert isinstance(made, Apc)
    return made


def network(system: Apc) -> ApcNet:
    torch.manual_seed(0)
    model = system.build()
    assert isinstance(model, ApcNet)
    return model


def batch_of() -> Batch:
    padded = torch.zeros(4, 64, 64, dtype=torch.bool)
    padded[1, :, 48:] = True
    return {
        "image": torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        "label": torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]),
        "padded": padded,
    }


def sure_scores(seed: int = 2) -> Tensor:
    return (5 * torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)


def test_the_network_has_the_papers_parts() -> None:
    model = network(apc())
    out = model(torch.randn(2, 3, 64, 48))
    assert isinstance(model.bilstm, HVBiLSTM) and model.classifier.bias is None
    assert out.embeddings.shape == (2, 64, 4, 3) and out.scores.shape == out.logits.shape == (2, 4, 4, 3)
    torch.testing.assert_close(out.scores.sum(dim=1), torch.ones(2, 4, 3))
    torch.testing.assert_close(out.scores, model.classifier(out.embeddings).softmax(dim=1))
    assert isinstance(network(apc(hv_bilstm=False)).bilstm, nn.Identity)


def test_its_losses_are_the_papers() -> None:
    system, batch = apc(lambda_segmentation=0.5, lambda_contrast=0.25, epsilon=0.6), batch_of()
    known = Patches(torch.randn(4, 8, 4, 4), sure_scores(), torch.randn(4, 4, 4, 4))
    losses = system.losses(lambda images: known, batch, LATER)  # type: ignore[arg-type]
    labels = torch.cat([torch.ones(4, 1), batch["label"]], dim=1)
    patches = known.scores.flatten(2).transpose(1, 2)
    targets = system.pixel_labels(batch["image"], known.scores, labels, batch["padded"])
    assert list(losses) == ["classification", "segmentation", "contrast"]
    torch.testing.assert_close(losses["classification"], probability_cross_entropy(adaptive_k_pool(patches, 6, 0.9)[0], labels))
    torch.testing.assert_close(losses["segmentation"], 0.5 * pixel_cross_entropy(known.logits, targets))
    torch.testing.assert_close(losses["contrast"], 0.25 * patch_contrast(known.embeddings.flatten(2).transpose(1, 2), patches, labels, 0.6))
    without = apc(lambda_contrast=0).losses(lambda images: known, batch, LATER)  # type: ignore[arg-type]
    assert list(without) == ["classification", "segmentation"]


@pytest.mark.parametrize(("keys", "first"), [({}, 0), ({"label_from": 2}, 2), ({"label_from": 3, "head_epochs": 0}, 3)])
def test_the_segmentation_counts_from_the_epoch_that_is_named(keys: dict[str, Any], first: int) -> None:
    system, known = apc(**keys), Patches(torch.randn(4, 8, 4, 4), sure_scores(), torch.randn(4, 4, 4, 4))
    for epoch in range(6):
        losses = system.losses(lambda images: known, batch_of(), Progress(epoch, epoch, 15))  # type: ignore[arg-type]
        assert ("segmentation" in losses) == (epoch >= first)
        assert bool(system.observed()) == (epoch >= first)


def test_what_the_labels_hold_is_observed() -> None:
    """Four images, of one of which a quarter is no image; of background alone, of class 2, of none that is sure."""
    system, batch = apc(**{**PATCH_TO_PIXEL, "label_confidence": 0.5}), batch_of()
    scores = torch.zeros(4, 4, 4, 4)
    scores[0, 0], scores[1, 2], scores[2, 0] = 0.9, 0.9, 0.9
    scores[3] = 0.25
    system.losses(lambda images: Patches(torch.randn(4, 8, 4, 4), scores, torch.randn(4, 4, 4, 4)), batch, LATER)  # type: ignore[arg-type]
    observed = {name: float(value) for name, value in system.observed().items()}
    assert observed == pytest.approx({"labels_foreground": 3 / 16, "labels_background": 1 / 2, "labels_ignored": 5 / 16})


@pytest.mark.parametrize(("pooling", "expected"), [("average", 0.5), ("max", 0.9), ("topk", 0.65), ("adaptive", 0.85)])
def test_the_pooling_is_the_one_asked_for(pooling: str, expected: float) -> None:
    scores = torch.tensor([0.05, 0.25, 0.9, 0.8]).view(1, 1, 2, 2)
    torch.testing.assert_close(apc(pooling=pooling, k=3)._pool(scores.flatten(2).transpose(1, 2)), torch.tensor([[expected]]))


def test_pixel_labels_are_the_refined_patch_predictions_of_the_images_classes() -> None:
    batch, scores = batch_of(), sure_scores()
    labels = torch.cat([torch.ones(4, 1), batch["label"]], dim=1)
    own = (scores * labels[:, :, None, None]).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    plain = apc(**PATCH_TO_PIXEL).pixel_labels(batch["image"], scores, labels, batch["padded"])
    expected = own.argmax(dim=1)
    expected[1, :, 12:] = 255
    assert torch.equal(plain, expected)
    assert (plain[2] == 0).all()  # no class but background
    small = batch["image"].view(4, 3, 16, 4, 16, 4).mean(dim=(3, 5))
    refined = pixel_adaptive_refine(small, own, [1, 2, 4], 2)  # of 16 cells
    expected = refined.argmax(dim=1).masked_fill(refined.amax(dim=1) <= 0.7, 255)
    expected[1, :, 12:] = 255
    system = apc(label_scores="probability", label_confidence=0.7, label_dilations=[0.25, 0.01, 0.05, 0.125], label_iterations=2)
    assert torch.equal(system.pixel_labels(batch["image"], scores, labels, batch["padded"]), expected)
    assert 0 < (expected == 255).float().mean() < 1
    # With one tag the better of two probabilities is at least a half of both: a patch that shows a third class is unsure all the same.
    scores = torch.tensor([0.1, 0.2, 0.7, 0]).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    image, nowhere, system = batch["image"][:1], torch.zeros(1, 64, 64, dtype=torch.bool), apc(label_scores="probability")
    assert (system.pixel_labels(image, scores, torch.tensor([[1.0, 1, 0, 0]]), nowhere) == 255).all()
    assert (system.pixel_labels(image, scores, torch.tensor([[1.0, 0, 1, 0]]), nowhere) == 2).all()


def test_peak_scores_compare_each_class_with_its_own_best_patch() -> None:
    """Class 1 is nowhere above 0.4, background nowhere below 0.5: a patch that is near the best of one class and far from that of the other is its own."""
    background = torch.tensor([[0.5, 0.6, 0.7, 0.8], [0.8, 0.9, 1.0, 1.0]]).repeat(2, 1)
    scores = torch.stack([background, 0.8 * (1 - background), torch.zeros(4, 4), torch.zeros(4, 4)])[None]
    labels, nowhere = torch.tensor([[1.0, 1, 0, 0]]), torch.zeros(1, 64, 64, dtype=torch.bool)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    peaks = background, (1 - background) / 0.5
    expected = (peaks[1] > peaks[0]).long()
    made = apc(**{**PATCH_TO_PIXEL, "label_scores": "peak"}).pixel_labels(image, scores, labels, nowhere)
    assert torch.equal(made[0, ::4, ::4], expected) and 0 < expected.float().mean() < 0.5
    assert not apc(**PATCH_TO_PIXEL).pixel_labels(image, scores, labels, nowhere).any()
    # The confidence is a share of the peaks' sum; and what is no image has no peak: without its left quarter class 1 has half the peak.
    share = torch.stack(peaks).amax(dim=0) / torch.stack(peaks).sum(dim=0)
    made = apc(**{**PATCH_TO_PIXEL, "label_scores": "peak", "label_confidence": 0.6}).pixel_labels(image, scores, labels, nowhere)
    assert torch.equal(made[0, ::4, ::4] == 255, share <= 0.6) and 0 < (share <= 0.6).float().mean() < 1
    part = nowhere.clone()
    part[:, :, :16] = True
    made = apc(**{**PATCH_TO_PIXEL, "label_scores": "peak"}).pixel_labels(image, scores, labels, part)
    assert torch.equal(made[0, ::4, 4::4], ((1 - background) / 0.4 > background).long()[:, 1:]) and (made[0, :, :4] == 255).all()


def kept(side: int, **keys: Any) -> tuple[float, float]:
    """Which share of an object's pixels, a quarter of a smooth image, are labelled as it, and which of the others; with scores as a network gives them."""
    patches = side // 16
    inside = torch.zeros(patches, patches, dtype=torch.bool)
    inside[patches // 4 :, patches // 4 :][: patches // 2, : patches // 2] = True
    sure = torch.where(inside, 0.6 + 0.3 * torch.rand(patches, patches, generator=torch.Generator().manual_seed(0)), 0.04)
    scores = torch.stack([1 - sure, sure, torch.zeros_like(sure), torch.zeros_like(sure)])[None]
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    image = torch.stack([torch.sin(2 * x + y), torch.cos(x - 2 * y), torch.sin(3 * y)])[None]
    made = apc(crop_size=side, **keys).pixel_labels(
        image, scores, torch.tensor([[1.0, 1, 0, 0]]), torch.zeros(1, side, side, dtype=torch.bool)
    )
    cells = inside.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    return (made[0] == 1)[cells].float().mean().item(), (made[0] == 1)[~cells].float().mean().item()


@pytest.mark.parametrize("side", [160, 384])
@pytest.mark.parametrize("scores", ["peak", "probability"])
def test_the_refinement_of_labels_leaves_an_object_its_pixels(side: int, scores: str) -> None:
    """At 40 and at 96 cells; with ten steps at distances of up to 24 cells two thirds and a third were left to the background."""
    own, others = kept(side, label_scores=scores)
    assert own >= 0.8 and others < 0.02
    assert kept(side, label_refinement="none", label_scores=scores) == (1, 0)
    assert kept(side, label_scores=scores, **AFA)[0] < own


def test_the_reach_of_the_refinement_grows_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], int]] = []

    def refine(images: Tensor, scores: Tensor, dilations: list[int], iterations: int) -> Tensor:
        seen.append((dilations, iterations))
        return scores

    monkeypatch.setattr("wsss_core.systems.apc.pixel_adaptive_refine", refine)
    for side, keys in ((64, {}), (160, {}), (384, {}), (160, AFA), (640, AFA)):
        kept(side, **keys)  # type: ignore[arg-type]
    assert seen == [([1], 3), ([1, 2], 3), ([2, 5], 3), ([1, 2, 3, 6], 10), ([1, 2, 4, 8, 12, 24], 10)]


def test_a_crf_may_refine_the_labels() -> None:
    """The image is black and white; one patch at the edge is wrong."""
    system = apc(label_refinement="crf", label_scores="probability")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (system.mean, system.std))
    image = torch.zeros(3, 64, 64)
    image[:, :, 32:] = 1
    scores = torch.full((1, 4, 4, 4), 0.02)
    scores[:, 1, :, :2] = scores[:, 2, :, 2:] = 0.94
    scores[0, 1, 0, 2], scores[0, 2, 0, 2] = 0.5, 0.46
    labels = torch.tensor([[1.0, 1, 1, 0]])
    made = system.pixel_labels(((image - mean) / std)[None], scores, labels, torch.zeros(1, 64, 64, dtype=torch.bool))
    assert (made[0, :, :8] == 1).all() and (made[0, :, 8:] == 2).all()


def test_the_transformer_learns_after_the_head() -> None:
    system = apc(head_epochs=2, label_confidence=0)
    model, batch = network(system).train(), batch_of()
    for epoch, learns in ((0, False), (1, False), (2, True), (3, True)):
        model.zero_grad()
        system.before_epoch(epoch, Run(model, (), pytest.fail))
        torch.stack(list(system.losses(model, batch, Progress(epoch, 0, 10)).values())).sum().backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.features.parameters()) == learns
        assert all(p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if not name.startswith("features."))
    assert len(system.parameter_groups(network(system))[0]["params"]) == len(list(model.features.parameters()))


def test_of_the_transformer_the_last_blocks_alone_may_learn() -> None:
    system = apc(head_epochs=1, train_blocks=1)
    model, batch = network(system).train(), batch_of()
    blocks = len(model.features.net.blocks)  # type: ignore[arg-type]
    for epoch in (0, 1, 2):
        model.zero_grad()
        system.before_epoch(epoch, Run(model, (), pytest.fail))
        torch.stack(list(system.losses(model, batch, Progress(epoch, 0, 10)).values())).sum().backward()
        learns = {name for name, p in model.features.net.named_parameters() if p.grad is not None and bool(p.grad.any())}
        own = (f"blocks.{blocks - 1}.", "norm.")
        assert all(name.startswith(own) for name in learns) and {name.partition(".")[0] for name in learns} == (
            {"blocks", "norm"} if epoch else set()
        )
    with pytest.raises(UserError, match=f"train_blocks: test_vit has {blocks} blocks, got {blocks + 1}"):
        apc(train_blocks=blocks + 1).build()


def index_of(picture: np.ndarray, place: Path) -> DataIndex:
    from PIL import Image

    (place / "images").mkdir()
    Image.fromarray(picture).save(place / "images" / "a.png")
    return DataIndex(("background", "a", "b", "c"), {"train": (Record("a", "prepared:images/a.png", (2,), None),)}, "made", None, place)


@pytest.mark.parametrize(("resize", "padded"), [("square", 0.0), ([64, 64], 0.5), ({"at_least": 32, "at_most": 32}, 1 - 16 * 32 / 64**2)])
def test_a_sample_is_a_square_of_the_whole_image_and_padding_is_marked(tmp_path: Path, resize: Any, padded: float) -> None:
    index = index_of(np.full((40, 80, 3), 200, np.uint8), tmp_path)
    sample = apc(resize=resize).load(index, {})(index.split("train")[0])
    assert sample["image"].shape == (3, 64, 64) and torch.equal(sample["label"], torch.tensor([0.0, 1, 0]))
    assert sample["padded"].float().mean() == pytest.approx(padded)
    assert not sample["image"][:, sample["padded"]].any() and (sample["image"][:, ~sample["padded"]] > 0.1).all()


@pytest.mark.parametrize(("resize", "grid"), [("square", (6, 6)), ([64, 64], (3, 6))])
def test_test_images_are_squares_if_those_of_the_training_are(resize: Any, grid: tuple[int, int]) -> None:
    system = apc(resize=resize)
    model, images = network(system).eval(), torch.randn(2, 3, 48, 96)
    maps, logits = system.cams(model, images)
    assert maps.shape == (2, 3, *grid) and system.segment(model, images).shape == (2, 4, *grid)
    scores = model(system._squared(images)).scores
    torch.testing.assert_close(maps, scores[:, 1:])
    torch.testing.assert_close(logits.sigmoid(), adaptive_k_pool(scores.flatten(2).transpose(1, 2), 6, 0.9)[0][:, 1:])
    assert system.embed(model, images).shape == (2, 64, *grid)


TRAINED = {
    "classifier": {"system": "apc", **NETWORK, "resize": "square", "epochs": 3, "head_epochs": 1, "batch_size": 4},
    "segmenter": None,
    "predict": {"resize": 80, "crf": "vitpcm"},
}


def test_a_single_stage_labels_and_predicts(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    plan = planned(TRAINED)
    index, predictor = read_index(do(plan, "data"), None), Predictor(do(plan, "classifier"), {"resize": 80, "crf": "vitpcm"})
    by_patches = Predictor(do(plan, "classifier"), {"resize": 80, "crf": "vitpcm", "source": "patches"})
    subjects = [
        ("pseudo", "train", True),
        ("end_to_end", "val", False),
        ("end_to_end-labels", "val", True),
        ("end_to_end-patches", "val", False),
    ]
    for name, split, known in subjects:
        directory, patches = do(plan, name), name == "end_to_end-patches"
        for record in index.split(split):
            image = read_image(index.image_path(record))
            expected = (by_patches if patches else predictor).labels(image, record.labels if known else None)
            mask = read_mask(directory / "masks" / f"{record.id}.png")
            assert (
                mask == expected
            ).mean() > 0.99  # the store rounds to float16, and so little trained networks are of two minds in many places
            assert not known or set(np.unique(mask).tolist()) <= {0, *record.labels}
        figures = read_json(do(plan, f"evaluate-{name}") / "figures.json")
        assert figures["subject"] == name.partition("-")[0] and figures["split"] == split and figures["protocol"]["image_labels"] is known
        assert figures["protocol"]["source"] == ("patches" if patches else "decoder")
    (distances,) = read_json(do(plan, "evaluate-patches") / "figures.json")["figures"]
    assert {"inter_class", "intra_class"} <= distances.keys()
    assert read_json(do(plan, "evaluate-classifier") / "figures.json")["figures"][0]["rule"] == "none"
    model = do(plan, "classifier")
    assert find_model(model) == model
    image = np.zeros((40, 57, 3), np.uint8)
    assert Predictor(model).probabilities(image, (2,))[[1, 3]].max() == 0 < Predictor(model).probabilities(image)[[1, 3]].min()


def test_the_chain_ends_at_the_predictions_or_goes_on_with_a_second_segmenter(planned: Callable[..., Plan]) -> None:
    alone, further = planned(TRAINED).chains[0], planned({**TRAINED, "segmenter": {"epochs": 2}}).chains[0]
    predictions = ["pseudo", "end_to_end", "end_to_end-labels", "end_to_end-patches"]
    assert list(alone.stages) == ["data", "classifier", "cams", "cams-threshold", *predictions]
    assert list(alone.evaluations) == ["classifier", "cams", *predictions, "patches"]
    assert all(alone.all_stages[name].id == further.all_stages[name].id for name in alone.all_stages)
    assert further.stages["segmenter"].upstream["pseudo"].id == alone.stages["pseudo"].id
    assert alone.stages["pseudo"].parameters["image_labels"] is True and "image_labels" not in alone.stages["end_to_end"].parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": {"system": "apc", "lambda_segmentation": 0}}, "classifier.lambda_segmentation: "),
        ({"classifier": {"system": "apc", "head_epochs": 15}}, "classifier: head_epochs must be smaller than epochs, got 15 and 15"),
        ({"classifier": {"system": "apc", "label_from": 15}}, "classifier: label_from must be smaller than epochs, got 15 and 15"),
        ({"classifier": {"system": "apc", "label_confidence": 1}}, "classifier.label_confidence: "),
        ({"classifier": {"system": "apc", "label_dilations": [0]}}, "classifier.label_dilations"),
        ({"classifier": {"system": "apc", "label_dilations": []}}, "classifier.label_dilations: "),
        ({"classifier": {"system": "apc", "label_iterations": 0}}, "classifier.label_iterations: "),
        ({"classifier": {"system": "apc", "train_blocks": 0}}, "classifier.train_blocks: "),
        ({"classifier": {"system": "apc"}, "predict": {"source": "pixels"}}, "predict.source: "),
        ({"classifier": {"system": "apc", "epsilon": 0.4}}, "classifier.epsilon: "),
        ({"classifier": {"system": "apc", "resize": "sqare"}}, "classifier.resize: "),
        (
            {"classifier": {"system": "apc"}, "segmenter": {"loss": "beacon", "decoder": "bifpn"}},
            "segmenter.loss beacon needs the scores behind the pseudo masks",
        ),
    ],
)
def test_wrong_values_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config({"dataset": {"source": "shapes"}, "experiments": {"a": {}}, **changes}, "my.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        ({}, {"theta": 0.5}, False),
        ({"pooling": "topk"}, {"theta": 0.5}, True),
        ({"pooling": "topk"}, {"k": 3}, False),
        ({"pooling": "max"}, {"theta": 0.5, "k": 3}, True),
        ({}, {"epsilon": 0.9}, False),
        ({"lambda_contrast": 0}, {"epsilon": 0.9}, True),
        ({}, {"label_dilations": [0.1]}, False),
        ({}, {"label_iterations": 9}, False),
        ({"label_refinement": "none"}, {"label_dilations": [0.1], "label_iterations": 9}, True),
        ({}, {"label_from": 2}, False),
        ({}, {"train_blocks": 2}, False),
    ],
)
def test_what_is_not_used_is_in_no_id(planned: Callable[..., Plan], base: dict[str, Any], change: dict[str, Any], same: bool) -> None:
    one, other = (
        planned({**TRAINED, "classifier": {**TRAINED["classifier"], **keys}}).chains[0].stages["classifier"].id
        for keys in (base, {**base, **change})
    )
    assert (one == other) is same


def test_the_rate_falls_where_the_transformer_starts_unless_told_otherwise() -> None:
    assert apc(epochs=8, head_epochs=2).config.milestones == (0.25,)
    assert apc(epochs=8, head_epochs=2, milestones=[0.5]).config.milestones == (0.5,)
    assert apc().config.milestones == (2 / 15,)


def test_of_a_test_split_no_tags_are_taken_as_known(planned: Callable[..., Plan]) -> None:
    chain = planned({**TRAINED, "predict": {"split": "test"}}).chains[0]
    assert "end_to_end" in chain.stages and not {"end_to_end-labels", "end_to_end-patches"} & chain.all_stages.keys()


def test_predictions_are_the_decoders_or_the_patches(planned: Callable[..., Plan]) -> None:
    decoder, patches = (
        planned({**TRAINED, "predict": {**TRAINED["predict"], "source": each}}).chains[0] for each in ("decoder", "patches")
    )
    assert decoder.stages["classifier"].id == patches.stages["classifier"].id
    names = ("pseudo", "end_to_end", "end_to_end-labels")
    assert {decoder.stages[name].parameters["source"] for name in names} == {"decoder"}
    assert {patches.stages[name].parameters["source"] for name in names} == {"patches"}
    assert "end_to_end-patches" not in patches.all_stages
    assert decoder.stages["end_to_end-patches"].id == patches.stages["end_to_end"].id
    # A segmenter has one output: its predictions are the same, whatever the source of others.
    plain, other = (planned({"predict": {"source": each}}).chains[0] for each in ("decoder", "patches"))
    assert plain.stages["predict"].id == other.stages["predict"].id and "source" not in plain.stages["predict"].parameters
    assert "source" not in plain.evaluations["segmenter"].parameters["protocol"]


def test_the_patches_own_probabilities_are_a_prediction(tmp_path: Path) -> None:
    system = apc()
    model = network(system)
    save_model(tmp_path, model, system.config.model_dump(mode="json"), ("background", "a", "b", "c"))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    made = Predictor(tmp_path, {"source": "patches", "scales": [1.0], "flip": False}).probabilities(image)
    pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(system.mean).view(3, 1, 1)) / torch.tensor(system.std).view(
        3, 1, 1
    )
    with torch.no_grad():
        scores = model.eval()(pixels[None]).scores
    logits = nn.functional.interpolate(scores.log(), size=(64, 64), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(made, logits.softmax(dim=1)[0].numpy(), atol=1e-5)
    assert np.abs(made - Predictor(tmp_path, {"scales": [1.0], "flip": False}).probabilities(image)).max() > 1e-3


def test_an_exported_model_gives_the_predictors_probabilities(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = apc()
    save_model(tmp_path, system.build(), system.config.model_dump(mode="json"), ("background", "a", "b", "c"))
    export_model(tmp_path, tmp_path / "apc.pt", 64)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    given = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    expected = Predictor(tmp_path, {"scales": [1.0], "flip": False}).probabilities(image)
    np.testing.assert_allclose(torch.jit.load(tmp_path / "apc.pt")(given)[0].detach().numpy(), expected, atol=1e-5)


PEAK = """
import torch
from wsss_core.systems import make_system

torch.set_num_threads(2)
system = make_system({"system": "apc", "backbone": "vit_base_patch16_384", "weights": "none"}, 21, "test")
model = system.build().eval()
with torch.inference_mode():
    logits = system.segment(model, torch.rand(1, 3, 720, 960))
assert logits.shape == (1, 21, 60, 60)
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) / 1024**2 for line in lines if line.startswith("VmHWM")))
"""


def test_inference_at_960_pixels_with_vit_b_16_stays_below_3_gb() -> None:
    """The attention of 3,601 tokens would be 622 MB for each block, were it kept."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 3
