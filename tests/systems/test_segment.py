"""The segmenter with BEACON: soft masks follow their image, and the loss reaches the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from wsss_core.config import load_config
from wsss_core.data.index import read_index
from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.files import read_json, write_json
from wsss_core.losses.beacon import beacon_loss
from wsss_core.losses.segmentation import pixel_cross_entropy
from wsss_core.plan import Plan
from wsss_core.refine.soft_masks import SoftMasks, one_hot
from wsss_core.stage import read_spec
from wsss_core.store import ScoreStore, ScoreWriter
from wsss_core.systems import make_system
from wsss_core.systems.base import Progress
from wsss_core.systems.segment import Dense

BEACON: dict[str, Any] = {
    "decoder": "bifpn",
    "loss": "beacon",
    "bifpn_layers": 1,
    "decoder_channels": 16,
    "output_stride": 16,
    "lambda_beacon": 0.5,
}
Planned = Callable[..., Plan]
Do = Callable[[Plan, str], Path]


def test_it_trains_on_the_masks_and_the_scores_they_were_cut_from(planned: Planned, do: Do) -> None:
    plan = planned({"segmenter": {**BEACON, "epochs": 2}, "evaluate": {"boundary_tolerance": 2}})
    chain = plan.chains[0]
    upstream = chain.stages["segmenter"].upstream
    assert upstream["scores"] is chain.stages["refine"] and upstream["pseudo"] is chain.stages["pseudo"]
    figure = read_json(do(plan, "evaluate-segmenter") / "figures.json")["figures"][0]
    assert 0 <= figure["boundary_f"] <= 1 and 0 <= figure["boundary_agnostic_f"] <= 1 and figure["boundary_tolerance"] == 2
    frame = pd.read_csv(plan.directory(chain.stages["segmenter"]) / "metrics.csv")
    columns = ["segmentation", "beacon", "observed.beacon_wrong"]
    assert np.isfinite(frame[columns].to_numpy()).all() and (frame["beacon"] != 0).any() and frame[columns[2]].between(0, 1).all()


def test_the_soft_mask_is_cut_as_the_image_is(planned: Planned, do: Do) -> None:
    """After a CRF the mask is the soft mask's argmax, before and after all augmentation."""
    plan = planned({"segmenter": {**BEACON, "resize": [50, 80], "crop_size": 72}})
    do(plan, "pseudo")
    stage = plan.chains[0].stages["segmenter"]
    spec = read_spec(plan.directory(stage) / "spec.json")
    index = read_index(spec.inputs["data"], None)
    system = make_system(spec.parameters, index.num_classes, "test")
    load = system.load(index, spec.inputs)
    seen, padded = set(), False
    for seed, record in enumerate(index.split("train")):
        torch.manual_seed(seed)
        sample = load(record)
        target, soft = sample["target"][2::4, 2::4], sample["soft"]
        assert soft.shape == (4, 18, 18) and soft.dtype == torch.uint8
        inside = target != 255
        sure = soft.float().topk(2, dim=0).values.diff(dim=0)[0].abs() > 5  # steps of 1/255 may have tied
        assert torch.equal(soft.argmax(dim=0)[inside & sure], target[inside & sure])
        assert not soft[[c for c in range(1, 4) if c not in record.labels]][:, inside].any()
        assert not soft[:, ~inside].any()
        padded |= not inside.all()
        seen |= set(target[inside].tolist())
    assert len(seen) > 1 and padded


@pytest.mark.parametrize("sign", ["point", "pair"])
def test_the_losses_are_the_papers(planned: Planned, do: Do, sign: Literal["point", "pair"]) -> None:
    plan = planned({"segmenter": {**BEACON, "beacon_steps": 9, "beacon_samples": 30, "beacon_threshold": 0.4, "beacon_sign": sign}})
    trained = load_model(do(plan, "segmenter"))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "target": torch.randint(0, 4, (2, 64, 64), generator=generator),
        "soft": torch.randint(0, 256, (2, 4, 16, 16), generator=generator).to(torch.uint8),
    }
    batch["target"][0, :, 41:] = 255
    torch.manual_seed(3)
    losses = trained.system.losses(trained.model, batch, Progress(0, 1, 4))
    assert list(trained.system.losses(trained.model, batch, Progress(0, 0, 4))) == ["segmentation"], "no boundaries yet"
    dense = trained.model(batch["image"], dense=True)
    assert isinstance(dense, Dense) and dense.features.shape == (2, 16, 16, 16)
    torch.testing.assert_close(dense.logits, trained.model(batch["image"]))
    torch.testing.assert_close(losses["segmentation"], pixel_cross_entropy(dense.logits, batch["target"]))
    torch.manual_seed(3)
    ignore = torch.zeros(2, 64, 64, dtype=torch.bool)
    ignore[0, :, 41:] = True
    options: dict[str, Any] = {"steps": 9, "samples": 30, "threshold": 0.4, "ignore": ignore, "sign": sign}
    expected = beacon_loss(dense.features, dense.logits, batch["soft"] / 255, **options)
    torch.testing.assert_close(losses["beacon"], 0.5 * expected)
    assert losses["beacon"] != 0
    (torch.stack(list(losses.values())).sum()).backward()


def test_scores_without_background_get_the_threshold_of_the_masks(tmp_path: Path) -> None:
    with ScoreWriter(tmp_path / "scores.h5", 4) as writer:
        writer.add("a", np.array([[[0.2, 0.9]], [[0.0, 0.3]]]), np.array([1, 3]), (1, 2))
        writer.add("b", np.zeros((0, 1, 2)), np.zeros(0, int), (1, 2))
    write_json(tmp_path / "summary.json", {"threshold": 0.3})
    masks = SoftMasks(tmp_path, tmp_path)
    soft, classes = masks.read("a", np.zeros((1, 2), np.uint8))
    assert classes.tolist() == [0, 1, 3]
    np.testing.assert_allclose(soft[:, 0, 0] / 255, [0.3 / 0.5, 0.2 / 0.5, 0], atol=0.003)
    np.testing.assert_allclose(soft[:, 0, 1] / 255, [0.3 / 1.5, 0.9 / 1.5, 0.3 / 1.5], atol=0.003)
    soft, classes = masks.read("b", np.zeros((1, 2), np.uint8))
    assert classes.tolist() == [0] and (soft == 255).all()
    write_json(tmp_path / "summary.json", {"threshold": None})
    with pytest.raises(UserError, match="has no background channel, and the pseudo masks name no threshold"):
        SoftMasks(tmp_path, tmp_path).read("a", np.zeros((1, 2), np.uint8))


def test_soft_masks_after_a_crf_are_its_probabilities(planned: Planned, do: Do) -> None:
    plan = planned()
    pseudo = do(plan, "pseudo")
    refine = plan.directory(plan.chains[0].stages["refine"])
    masks = SoftMasks(refine, pseudo)
    with ScoreStore(refine / "scores.h5") as store:
        for image_id, scores, classes in store:
            soft, numbers = masks.read(image_id, np.zeros(store.size(image_id), np.uint8))
            assert numbers.tolist() == classes.tolist()
            np.testing.assert_allclose(soft / 255, scores, atol=1e-6)


def test_a_true_mask_is_sure_of_itself_and_knows_nothing_where_it_is_ignored() -> None:
    soft, classes = one_hot("a", np.array([[0, 2], [255, 2]], np.uint8))
    assert classes.tolist() == [0, 2]
    assert soft.tolist() == [[[255, 0], [0, 0]], [[0, 255], [0, 255]]]


def test_the_upper_bound_trains_with_beacon_too(planned: Planned, do: Do) -> None:
    plan = planned({"segmenter": BEACON, "supervision": "masks"})
    assert "scores" not in plan.chains[0].stages["segmenter"].upstream
    assert np.isfinite(pd.read_csv(do(plan, "segmenter") / "metrics.csv")["beacon"]).all()


def test_what_is_not_used_is_in_no_id(planned: Planned) -> None:
    def segmenter_id(**keys: Any) -> str:
        return planned({"segmenter": keys}).chains[0].stages["segmenter"].id

    plain = segmenter_id()
    assert plain == segmenter_id(
        lambda_beacon=3, beacon_steps=2, beacon_samples=9, beacon_threshold=0.1, bifpn_layers=2, beacon_sign="point", beacon_from=0
    )
    assert "loss" not in planned().chains[0].stages["segmenter"].parameters
    pyramid = segmenter_id(decoder="bifpn")
    beacon = [{"beacon_steps": 2}, {"beacon_sign": "point"}, {"beacon_from": 0.5}]
    others = [{"loss": "beacon"}, *({"loss": "beacon", **keys} for keys in beacon), {"bifpn_layers": 2}]
    assert len({plain, pyramid, *(segmenter_id(decoder="bifpn", **keys) for keys in others)}) == 7


def test_the_segmenter_starts_with_the_encoder_of_the_classifier(planned: Planned, do: Do) -> None:
    """MuSCLe, Fig. 1: one encoder, for the maps and for the segmentation."""
    plan = planned({"segmenter": {"initial": "classifier", "mean": [0.1, 0.2, 0.3], "output_stride": 8}})
    stages = plan.chains[0].stages
    assert stages["segmenter"].upstream["classifier"] is stages["classifier"]
    assert stages["segmenter"].parameters["mean"] == stages["classifier"].parameters["mean"]
    do(plan, "pseudo")
    spec = read_spec(plan.directory(stages["segmenter"]) / "spec.json")
    system = make_system(spec.parameters, 4, "test")
    model, other = system.build(), system.build()
    system.start(model, spec.inputs)
    given = load_file(plan.directory(stages["classifier"]) / "model.safetensors")
    state = model.state_dict()
    encoder = [name for name in state if name.startswith("features.")]
    assert encoder and all(torch.equal(state[name], given[name]) for name in encoder)
    assert any(not torch.equal(other.state_dict()[name], given[name]) for name in encoder)
    do(plan, "predict")


def test_weights_of_its_own_leave_the_ids_as_they_were(planned: Planned) -> None:
    plain, named = planned().chains[0].stages["segmenter"], planned({"segmenter": {"initial": "weights"}}).chains[0].stages["segmenter"]
    assert plain.id == named.id and "initial" not in plain.parameters and "classifier" not in plain.upstream
    assert planned({"segmenter": {"initial": "classifier"}}).chains[0].stages["segmenter"].id != plain.id


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (
            {"supervision": "masks"},
            "segmenter.initial classifier needs a classifier, and supervision masks has none; use `initial: weights`",
        ),
        (
            {"classifier": {"backbone": "resnet18"}},
            "segmenter.initial classifier needs the classifier's backbone, 'resnet18'; got 'resnet50'",
        ),
    ],
)
def test_it_cannot_start_from_a_classifier_that_is_none_or_another(experiment: dict[str, Any], message: str) -> None:
    values = {"dataset": {"source": "shapes"}, "segmenter": {"initial": "classifier"}, "experiments": {"a": experiment}}
    with pytest.raises(UserError) as error:
        load_config(values, "my.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "beacon"}, "loss beacon needs the decoder bifpn, got deeplabv3plus"),
        ({"decoder": "bifpn", "batch_size": 1}, "at least 2 for bifpn"),
    ],
)
def test_errors_name_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config({"dataset": {"source": "shapes"}, "segmenter": keys, "experiments": {"a": {}}}, "my.yaml")
    assert message in str(error.value)
