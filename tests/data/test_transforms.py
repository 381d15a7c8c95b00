"""Joint augmentation: image and mask stay together, padding is ignore, and all randomness is torch's global generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsss_core.config import CamClassifier
from wsss_core.data import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(**keys) -> transforms.JointTransform:
    return transforms.training_transform(CamClassifier(**{"resize": None, "flip": 0, "crop_size": 64, **keys}), MEAN, STD)


def sample(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red channel is 10 times its mask."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height // 2, width // 8 : width // 2] = 7
    mask[height // 2 :, width // 2 :] = 20
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = mask * 10
    return image, mask


def red(image: torch.Tensor) -> torch.Tensor:
    return (image[0] * STD[0] + MEAN[0]) * 255


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (30, 20), (64, 64), (200, 150)])
@pytest.mark.parametrize("resize", [None, (32, 128)])
def test_shapes_and_types(size: tuple[int, int], resize: tuple[int, int] | None) -> None:
    image, mask = make(resize=resize)(*sample(*size))
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    assert mask is not None
    assert (mask.shape, mask.dtype) == ((64, 64), torch.int64)
    assert type(image) is type(mask) is torch.Tensor
    assert set(mask.unique().tolist()) <= {0, 7, 20, 255}


def test_without_mask() -> None:
    image, mask = make()(sample(70, 70)[0], None)
    assert image.shape == (3, 64, 64)
    assert mask is None


@pytest.mark.parametrize("size", [(40, 100), (30, 20), (100, 90)])
def test_crop_and_flip_move_image_and_mask_together(size: tuple[int, int]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        image, mask = make(flip=0.5)(*sample(*size))
        inside = mask != 255
        torch.testing.assert_close(red(image)[inside], 10.0 * mask[inside], atol=1e-2, rtol=0)


def test_padding_is_zero_and_ignore_and_the_whole_image_is_kept() -> None:
    image, mask = make()(np.full((30, 20, 3), 200, dtype=np.uint8), np.zeros((30, 20), dtype=np.uint8))
    inside = mask == 0
    assert int(inside.sum()) == 30 * 20
    assert set(mask.unique().tolist()) == {0, 255}
    assert not image[:, ~inside].any()
    assert image[:, inside].abs().min() > 0


def test_small_image_lies_anywhere_in_the_crop() -> None:
    transform, corners = make(), set()
    for seed in range(20):
        torch.manual_seed(seed)
        mask = transform(*sample(30, 20))[1]
        corners.add(tuple(torch.nonzero(mask != 255)[0].tolist()))
    assert len(corners) > 10


def test_longer_side_covers_its_range_and_keeps_the_aspect() -> None:
    transform, seen = make(resize=(32, 36), crop_size=48), set()
    for seed in range(40):
        torch.manual_seed(seed)
        inside = transform(*sample(50, 100))[1] != 255
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert abs(width / 2 - height) <= 0.5
        seen.add(width)
    assert seen == {32, 33, 34, 35, 36}


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 100), 64), ((30, 20), 48), ((50, 20), 50), ((48, 48), 48), ((20, 64), 64), ((9, 9), 48)]
)
def test_limits_resize_only_what_is_beyond_them(size: tuple[int, int], expected: int) -> None:
    apply = make(resize={"at_least": 48, "at_most": 64}, crop_size=64)
    for seed in range(3):
        torch.manual_seed(seed)
        _, mask = apply(np.full((*size, 3), 9, np.uint8), np.full(size, 3, np.uint8))
        assert mask is not None
        rows, columns = ((mask == 3).any(dim=1).sum().item(), (mask == 3).any(dim=0).sum().item())
        assert max(rows, columns) == expected
        assert abs(rows / columns - size[0] / size[1]) < 0.05 * size[0] / size[1]


@pytest.mark.parametrize("size", [(40, 100), (128, 64), (64, 64)])
def test_square_shows_the_whole_image_and_no_padding(size: tuple[int, int]) -> None:
    image, mask = make(resize="square")(*sample(*size))
    assert mask is not None and 255 not in mask
    height, width = size
    _, given = sample(*size)
    assert [int(mask[y, x]) for y, x in ((24, 20), (50, 50), (5, 60))] == [
        given[24 * height // 64, 20 * width // 64],
        given[50 * height // 64, 50 * width // 64],
        given[5 * height // 64, 60 * width // 64],
    ]
    torch.testing.assert_close(red(image)[[24, 50], [20, 50]], torch.tensor([70.0, 200]), atol=1, rtol=0)


def test_resized_mask_follows_the_image() -> None:
    """Red is 10 times the mask except at edges, where the image is smooth: the centres of gravity show any shift."""
    image, mask = make(resize=(51, 51), crop_size=51)(*sample(200, 200))
    columns = torch.arange(51.0)
    ours = (10.0 * mask).sum(0) @ columns / (10.0 * mask).sum()
    theirs = red(image).sum(0) @ columns / red(image).sum()
    assert abs(ours - theirs) < 0.2


def test_same_seed_same_sample() -> None:
    transform = make(resize=(32, 128), flip=0.5, color_jitter=0.4)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        np.random.seed(len(results))
        results.append(transform(*sample(50, 70)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_flip_probability() -> None:
    image, mask = sample(64, 64)
    assert torch.equal(make(flip=1)(image, mask)[1], torch.from_numpy(mask[:, ::-1].copy()).long())
    assert torch.equal(make(flip=0)(image, mask)[1], torch.from_numpy(mask).long())


def test_colour_jitter_changes_the_image_alone() -> None:
    image, mask = sample(64, 64)
    image += 40
    jittered = make(color_jitter=0.5)(image, mask)
    plain = make()(image, mask)
    assert not torch.equal(jittered[0], plain[0])
    assert torch.equal(jittered[1], plain[1])


def test_inputs_are_left_alone_and_may_be_read_only() -> None:
    image, mask = sample(64, 64)
    before = image.copy(), mask.copy()
    image.flags.writeable = mask.flags.writeable = False
    make(flip=1, color_jitter=0.5)(image, mask)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_normalise() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    result = transforms.normalise(image, MEAN, STD)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
