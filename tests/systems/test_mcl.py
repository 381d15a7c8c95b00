"""System `mcl`: its pairs of crops, its terms and when they are on, and what one step changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from wsss_core.config import load_config
from wsss_core.data.index import read_index
from wsss_core.engine.models import load_model
from wsss_core.engine.optimiser import make_optimiser
from wsss_core.errors import UserError
from wsss_core.losses.classification import hybrid_loss, multilabel_soft_margin
from wsss_core.losses.contrast import PixelVectors, image_contrast, pixel_contrast, supervised_contrast
from wsss_core.losses.regional import regional_contrast
from wsss_core.nn.attention import PixelCorrelation, RegionalSelfAttention, SpatialAttention
from wsss_core.plan import Plan
from wsss_core.store import ScoreStore
from wsss_core.systems import make_system
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.mcl import Mcl, MclNet, Views, _overlap, crop_pair

NETWORK = {"backbone": "test_resnet", "weights": "none", "output_stride": 8, "crop_size": 64, "crop_pair": 48}
ALL_ON = Progress(12, 10, 20)


def mcl(**keys: Any) -> Mcl:
    made = make_system({"system": "mcl", **NETWORK, **keys}, 4, "test")
    assert isinstance(made, Mcl)
    return made


def network(system: Mcl) -> MclNet:
    torch.manual_seed(0)
    model = system.build()
    assert isinstance(model, MclNet)
    return model


def batch_of() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(4, 3, 64, 64, generator=generator),
        "label": torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 1]]),
        "crops": torch.randn(4, 2, 3, 48, 48, generator=generator),
        "overlap": torch.tensor([[[8.0, 0, 48, 40], [0, 8, 40, 48]]] * 4),
    }


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("place", [(0, 64, 0, 64), (10, 50, 0, 64), (20, 44, 5, 60), (30, 34, 40, 47), (0, 40, 24, 64)])
def test_crops_lie_in_the_picture_and_show_the_same_in_their_overlap(place: tuple[int, int, int, int]) -> None:
    """The picture's pixels are numbered, so that each tells where it is."""
    top, bottom, left, right = place
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    image = torch.arange(64 * 64.0).view(1, 64, 64).expand(3, -1, -1)
    starts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        crops, overlap = crop_pair(image, inside, 32)
        assert crops.shape == (2, 3, 32, 32) and overlap.shape == (2, 4)
        shown = []
        for crop, box in zip(crops, overlap.int().tolist(), strict=True):
            x0, y0, x1, y1 = box
            assert 0 <= x0 < x1 <= 32 and 0 <= y0 < y1 <= 32
            shown.append(crop[:, y0:y1, x0:x1])
            y, x = divmod(int(crop[0, 0, 0]), 64)
            starts.add((y, x))
            for begin, low, high in ((y, top, bottom), (x, left, right)):
                assert 0 <= begin <= 32
                if high - low >= 32:
                    assert low <= begin <= high - 32, "inside the picture"
                else:
                    assert begin <= low and begin + 32 >= high, "around the picture"
        assert torch.equal(shown[0], shown[1])
        assert shown[0].shape[1] >= 16 and shown[0].shape[2] >= 16, "at least half a crop in either direction"
    assert len(starts) > 10


def test_the_overlap_is_sampled_where_both_crops_show_it() -> None:
    """Maps that are linear in the place: the same point of the picture has the same value in both."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    whole = torch.stack([8 * rows + 4, 8 * columns + 4])[None]  # the centres of cells of 8 pixels, of a crop of 48
    boxes = torch.tensor([[8.0, 16, 40, 40]])
    sampled = _overlap(whole, boxes, 48)
    assert sampled.shape == (1, 2, 6, 6)
    expected_rows, expected_columns = 16 + (torch.arange(6) + 0.5) * 24 / 6, 8 + (torch.arange(6) + 0.5) * 32 / 6
    torch.testing.assert_close(sampled[0, 0], expected_rows[:, None].expand(6, 6))
    torch.testing.assert_close(sampled[0, 1], expected_columns.expand(6, 6))
    # The other crop begins 8 pixels further down and right: there the same points lie 8 pixels less far in, and have the same values.
    other = _overlap(whole + 8, boxes - 8, 48)
    torch.testing.assert_close(other[..., 1:, 1:], sampled[..., 1:, 1:])  # the first lie on its border, within half a cell


def test_terms_are_switched_on_one_after_another() -> None:
    system = mcl(epochs=16)
    model, batch = network(system).train(), batch_of()
    names = {epoch: list(system.losses(model, batch, Progress(epoch, 0, 1))) for epoch in (0, 3, 4, 7, 8, 11, 12, 15)}
    first, second, third = ["classification"], ["classification", "image"], ["classification", "image", "pixel"]
    assert names == {0: first, 3: first, 4: second, 7: second, 8: third, 11: third, 12: [*third, "region"], 15: [*third, "region"]}


@pytest.mark.parametrize("left_out", ["image", "pixel", "region"])
def test_each_term_can_be_left_out(left_out: str) -> None:
    system = mcl(**{f"lambda_{left_out}": 0})
    found = list(system.losses(network(system).train(), batch_of(), ALL_ON))
    assert found == [name for name in ("classification", "image", "pixel", "region") if name != left_out]


def test_without_crops_it_is_the_plain_classifier() -> None:
    system = mcl(lambda_pixel=0, lambda_region=0, lambda_image=0, classification_loss="bce")
    plain = make_system({"system": "cam", **{k: v for k, v in NETWORK.items() if k != "crop_pair"}}, 4, "test")
    model, cam, batch = network(system), plain.build(), batch_of()
    assert list(model.state_dict()) == list(cam.state_dict())
    cam.load_state_dict(model.state_dict())
    one, other = system.losses(model.train(), batch, ALL_ON), plain.losses(cam.train(), batch, ALL_ON)
    assert torch.equal(total(one), total(other))
    for mine, its in zip(system.cams(model.eval(), batch["image"]), plain.cams(cam.eval(), batch["image"]), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize(
    ("attention", "vectors", "pair"),
    [("sam", "background", "scores"), ("sam_plain", "relu", "probabilities"), ("pcm", "centred", "scores")],
)
def test_the_terms_are_the_papers(attention: str, vectors: PixelVectors, pair: Literal["scores", "probabilities"]) -> None:
    own = {"attention": attention, "pixel_vectors": vectors, "pair_loss": pair, "temperature": 0.5}
    system = mcl(lambda_image=2, lambda_pixel=3, lambda_region=5, **own)
    model, batch = network(system).eval(), batch_of()
    torch.manual_seed(5)
    losses = system.losses(model, batch, ALL_ON)
    final, _ = model.features(batch["image"])
    maps = model.classifier(final)
    torch.testing.assert_close(losses["classification"], hybrid_loss(maps.mean(dim=(2, 3)), batch["label"], pair))
    torch.testing.assert_close(losses["image"], 2 * image_contrast(final.mean(dim=(2, 3)), batch["label"], temperature=0.5))
    first, second = (model.features(batch["crops"][:, i])[0] for i in (0, 1))
    assert model.attention is not None
    attended = _overlap(model.attention(first, model.classifier(first)), batch["overlap"][:, 0], 48)
    other = _overlap(model.classifier(second), batch["overlap"][:, 1], 48)
    torch.testing.assert_close(losses["pixel"], 3 * pixel_contrast(attended, other, vectors=vectors, shortest=0.25))
    torch.manual_seed(5)
    torch.testing.assert_close(losses["region"], 5 * regional_contrast(attended, other))


def test_maps_before_and_after_the_attention_are_to_be_had_of_one_training() -> None:
    system, batch = mcl(attention="sam_plain"), batch_of()
    model = network(system).eval()
    attended, maps = model.maps_of(batch["image"])
    for given, expected in ((None, attended), ("attended", attended), ("plain", maps)):
        options = {} if given is None else {"test_maps": given}
        shown, logits = mcl(attention="sam_plain", **options).cams(model, batch["image"])
        assert torch.equal(shown, expected.relu()) and torch.equal(logits, maps.mean(dim=(2, 3)))
    assert not torch.equal(attended, maps)


@pytest.mark.parametrize(("attention", "temperature"), [("sam", 0.1), ("sam_plain", None)])
def test_without_crops_the_attention_is_to_be_had_as_it_starts(attention: str, temperature: float | None) -> None:
    without = {"lambda_pixel": 0, "lambda_region": 0}
    model, batch = network(mcl(**without)).eval(), batch_of()
    maps = model.classifier(model.features(batch["image"])[0])
    expected = SpatialAttention(3, temperature)(batch["image"], maps)
    shown, logits = mcl(**without, test_maps="attended", attention=attention).cams(model, batch["image"])
    torch.testing.assert_close(shown, expected.relu())
    assert not torch.equal(shown, maps.relu()) and torch.equal(logits, maps.mean(dim=(2, 3)))
    assert not any(name.startswith("attention.") for name in model.state_dict())


def test_khoslas_loss_and_the_plain_classification_are_to_be_had() -> None:
    system = mcl(image_loss="supervised", classification_loss="bce")
    model, batch = network(system).eval(), batch_of()
    losses = system.losses(model, batch, ALL_ON)
    views = model(batch["image"])
    torch.testing.assert_close(losses["image"], supervised_contrast(views.embeddings, batch["label"], temperature=1.0))
    torch.testing.assert_close(losses["classification"], multilabel_soft_margin(views.maps.mean(dim=(2, 3)), batch["label"]))


@pytest.mark.parametrize("attention", ["sam", "sam_plain", "pcm"])
def test_one_step_moves_every_part(attention: str) -> None:
    system = mcl(attention=attention, weight_decay=0)
    model = network(system).train()
    start = copy.deepcopy(model)
    optimiser = make_optimiser(system.config, system.parameter_groups(model))
    total(system.losses(model, batch_of(), ALL_ON)).backward()
    optimiser.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start.get_parameter(name))}
    parts = [name for name, _ in model.named_parameters() if not name.startswith("features.")]
    assert set(parts) <= moved
    assert any(name.startswith("features.") for name in moved)


def pixel_gradient(system: Mcl, attended: Tensor, other: Tensor) -> Tensor:
    """The gradient of PIXC in M' [N, G, 6, 6] of the first crops, both crops showing the same, when the network gives these maps."""
    attended = attended.clone().requires_grad_()
    views = Views(torch.zeros_like(attended), torch.randn(len(attended), 5), attended, other)

    class Given(nn.Module):
        def forward(self, images: Tensor, crops: Tensor) -> Views:
            return views

    batch = {**batch_of(), "overlap": torch.tensor([[[0.0, 0, 48, 48]] * 2] * 4)}
    return torch.autograd.grad(system.losses(Given(), batch, ALL_ON)["pixel"], attended)[0]


@pytest.mark.parametrize("keys", [{}, {"pixel_vectors": "background"}, {"pixel_vectors": "centred"}])
def test_an_object_that_the_first_crop_misses_is_switched_on_there(keys: dict[str, Any]) -> None:
    """M~ shows class 1 in a cell where M' shows nothing: all its maps are below 0."""
    attended, other = (-1 - torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    other[:, 1, 2, 3] = 2
    gradient = pixel_gradient(mcl(lambda_region=0, **keys), attended, other)[:, :, 2, 3]
    assert (gradient[:, 1] < -1e-4).all(), "a step down the gradient raises the map"


@pytest.mark.parametrize("keys", [{}, {"pixel_vectors": "relu"}, {"pixel_vectors": "centred"}])
def test_a_cell_that_is_nearly_empty_has_no_more_say_than_four_others(keys: dict[str, Any]) -> None:
    """Cosines are blind to lengths: without a limit a cell of 1e-4 weighs 10,000 times as much as one of 1."""
    generator = torch.Generator().manual_seed(0)
    attended, other = torch.rand(4, 3, 6, 6, generator=generator), torch.rand(4, 3, 6, 6, generator=generator)
    attended[:, :, 1, 1] = torch.tensor([1e-4, 2e-4, 1e-4])
    if keys.get("pixel_vectors") == "centred":
        attended[:, :, 1, 1] = 0
        attended[:, :, 1, 1] = attended.sum(dim=(2, 3)) / 35 + 1e-4  # nearly the mean over the cells
    gradient = pixel_gradient(mcl(lambda_region=0, **keys), attended, other)
    own_mean = 2 if keys.get("pixel_vectors") == "centred" else 1  # through which every cell has a part in all
    assert gradient.norm(dim=1).max() <= 4.01 * own_mean / (4 * 36)


def test_the_second_crop_learns_nothing() -> None:
    system = mcl(lambda_image=0)
    model, batch = network(system).eval(), batch_of()
    batch["crops"].requires_grad_()
    losses = system.losses(model, batch, ALL_ON)
    (losses["pixel"] + losses["region"]).backward()
    gradient = batch["crops"].grad
    assert gradient[:, 0].any() and not gradient[:, 1].any()


def projections(module: SpatialAttention) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    return module.query, module.key, module.value


def by_loop(module: SpatialAttention, maps: Tensor) -> Tensor:
    """Eq. 2, cell by cell, in float64."""
    result = torch.zeros_like(maps, dtype=torch.float64)
    query, key, value = (torch.einsum("dc,ncyx->ndyx", conv.weight[:, :, 0, 0].double(), maps.double()) for conv in projections(module))
    value = value + module.value.bias.double()[:, None, None]
    query, key = (m - m.mean(dim=(2, 3), keepdim=True) for m in (query, key))
    query, key = (m / m.norm(dim=1, keepdim=True) for m in (query, key))
    _, _, height, width = maps.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    for n in range(len(maps)):
        for y, x in cells:
            weights = torch.stack([(query[n, :, y, x] * key[n, :, v, u]).sum() / 0.1 for v, u in cells]).softmax(dim=0)
            result[n, :, y, x] = sum(w * value[n, :, v, u] for w, (v, u) in zip(weights, cells, strict=True))
    return result


def test_spatial_attention_is_the_loops() -> None:
    torch.manual_seed(0)
    module, maps = SpatialAttention(3), torch.randn(2, 3, 4, 5)
    identity = torch.eye(3)
    assert not module.value.bias.any()
    nn.init.normal_(module.value.bias)
    for conv in projections(module):
        assert torch.equal(conv.weight[:, :, 0, 0], identity)
        nn.init.normal_(conv.weight)
    torch.testing.assert_close(module(torch.empty(0), maps).double(), by_loop(module, maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 30, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spatial_attention_keeps_an_object_apart_whatever_the_size_of_the_logits(size: float, dtype: torch.dtype) -> None:
    """Maps as a classifier has them: nearly all negative, one class above zero on its object."""
    maps = -torch.rand(1, 15, 10, 10, generator=torch.Generator().manual_seed(0)) - 0.5
    maps[0, 3, 2:6, 3:8] += 1.2
    inside = torch.zeros(10, 10, dtype=torch.bool)
    inside[2:6, 3:8] = True
    module = SpatialAttention(15)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        attended = module(torch.empty(0), size * maps)
    shown = attended[0, 3]
    assert torch.isfinite(attended).all() and shown[inside].min() > shown[~inside].max()
    shown[inside].mean().backward()
    for conv in (module.query, module.key):
        assert conv.weight.grad is not None and conv.weight.grad.abs().max() > 1e-4 * size


def test_plain_spatial_attention_is_eq_2_as_printed() -> None:
    torch.manual_seed(0)
    module, maps = SpatialAttention(3, temperature=None), torch.randn(2, 3, 4, 5)
    for conv in projections(module):
        nn.init.normal_(conv.weight)
    g1, g2, g3 = (conv(maps).flatten(2) for conv in projections(module))
    expected = torch.einsum("npq,ncq->ncp", torch.einsum("ncp,ncq->npq", g1, g2).softmax(dim=2), g3)
    torch.testing.assert_close(module(torch.empty(0), maps).flatten(2), expected)


def test_pixel_correlation_compares_features_that_it_does_not_teach() -> None:
    torch.manual_seed(0)
    module = PixelCorrelation(6, width=5)
    features, maps = torch.randn(2, 6, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    attended = module(features, maps)
    torch.testing.assert_close(attended, RegionalSelfAttention("relu_cosine")(module.embed(features), maps))
    attended.square().sum().backward()
    assert features.grad is None and maps.grad is not None and module.embed.weight.grad is not None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": 10}, "region_from must be smaller than epochs (or lambda_region 0), got 12 and 10"),
        ({"crop_pair": 31}, "crop_pair must be at least twice output_stride (2 x 2 cells), got 31 and 16"),
        ({"crop_pair": 600}, "crop_pair must not be greater than crop_size, got 600 and 512"),
        ({"attention": "non-local"}, "classifier.attention: expected 'sam', 'sam_plain' or 'pcm', got 'non-local'"),
        (
            {"attention": "pcm", "test_maps": "attended", "lambda_pixel": 0, "lambda_region": 0},
            "test_maps attended without lambda_pixel and lambda_region needs attention sam or sam_plain, got 'pcm'",
        ),
    ],
)
def test_errors_name_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config({"dataset": {"source": "shapes"}, "classifier": {"system": "mcl", **keys}, "experiments": {"a": {}}}, "my.yaml")
    assert message in str(error.value)


def test_what_is_not_used_is_in_no_id(planned: Callable[..., Plan]) -> None:
    def classifier_id(**keys: Any) -> str:
        return planned({"classifier": {"system": "mcl", "epochs": 16, "crop_pair": 32, **keys}}).chains[0].stages["classifier"].id

    without = {"lambda_image": 0, "lambda_pixel": 0, "lambda_region": 0, "classification_loss": "bce"}
    unused = {
        "pair_loss": "probabilities",
        "pixel_vectors": "relu",
        "image_from": 1,
        "pixel_from": 1,
        "region_from": 1,
        "temperature": 3,
        "image_loss": "supervised",
        "attention": "pcm",
        "crop_pair": 48,
    }
    assert classifier_id(**without) == classifier_id(**without, **unused)
    assert len({classifier_id(), *(classifier_id(**{key: value}) for key, value in unused.items())}) == len(unused) + 1


def test_rows_that_differ_in_the_maps_alone_share_their_classifier(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    def plan(**keys: Any) -> Plan:
        return planned({"classifier": {"system": "mcl", "epochs": 1, "image_from": 0, "lambda_pixel": 0, "lambda_region": 0, **keys}})

    plain, attended = plan(), plan(test_maps="attended")
    stages = [each.chains[0].stages for each in (plain, attended)]
    assert stages[0]["classifier"].id == stages[1]["classifier"].id and stages[0]["cams"].id != stages[1]["cams"].id
    assert plan(test_maps="plain").chains[0].stages["cams"].id == stages[0]["cams"].id
    crops = {"lambda_pixel": 1, "pixel_from": 0, "crop_pair": 48}
    ids = [plan(**crops, **maps).chains[0].stages["cams"].id for maps in ({}, {"test_maps": "attended"}, {"test_maps": "plain"})]
    assert ids[0] == ids[1] != ids[2]
    maps = []
    for each in (plain, attended):
        with ScoreStore(do(each, "cams") / "scores.h5") as store:
            maps.append(np.concatenate([scores.ravel() for _, scores, _ in store]))
    assert np.isfinite(maps[1]).all() and maps[0].shape == maps[1].shape and np.abs(maps[0] - maps[1]).max() > 0.01


def test_a_chain_trains_all_terms_and_makes_cams(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    own = {"system": "mcl", "epochs": 4, "image_from": 1, "pixel_from": 2, "region_from": 3, "crop_pair": 48, "output_stride": 8}
    plan = planned({"classifier": own})
    do(plan, "cams")
    directory = plan.directory(plan.chains[0].stages["classifier"])
    frame = pd.read_csv(directory / "metrics.csv")
    for number, term in enumerate(("classification", "image", "pixel", "region")):
        assert np.isfinite(frame[term][number:]).all() and frame[term][:number].isna().all()
    trained = load_model(directory)
    index = read_index(plan.directory(plan.chains[0].stages["data"]), None)
    torch.manual_seed(0)
    sample = trained.system.load(index, {})(index.split("train")[0])
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "image": (3, 64, 64),
        "label": (3,),
        "crops": (2, 3, 48, 48),
        "overlap": (2, 4),
    }
