"""Augmented samples of a new target: object and label move together, the background is inpainted."""

import numpy as np
import pytest

from uvos_jax.inference.tracking.augmentation import augmented_samples, inpaint_object

RED = (220, 30, 20)


def _scene(top=60, left=70, height=40, width=50, size=(160, 220)):
    """Returns a red box on a smooth blue and green background, uint8 [h, w, 3], and its bool mask [h, w]."""
    y, x = np.mgrid[:size[0], :size[1]]
    frame = np.stack([0 * x, 60 + 80 * x / size[1], 100 + 80 * y / size[0]], -1).astype(np.uint8)
    mask = np.zeros(size, bool)
    mask[top:top + height, left:left + width] = True
    frame[mask] = RED
    return frame, mask


def test_first_sample_is_the_unchanged_frame():
    frame, mask = _scene()
    frames, masks = augmented_samples(frame, mask)
    assert frames.shape == (5, *frame.shape) and frames.dtype == masks.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], frame)
    np.testing.assert_array_equal(masks[0], mask * 255)
    assert set(np.unique(masks)) == {0, 255}


def test_object_matches_its_label_in_every_sample():
    frame, mask = _scene()
    frames, masks = augmented_samples(frame, mask, count=12, seed=3)
    red = frames[..., 0].astype(int) - frames[..., 2]
    # Away from the blended edges, pixels are red exactly inside the label; the original position is inpainted.
    for reds, label in zip(red[1:], masks[1:] > 0, strict=True):
        assert (reds[_inside(label, 3)] > 150).all()
        assert (reds[_inside(~label, 3)] < 0).all()
    places = [np.argwhere(label).mean(0) for label in masks[1:]]
    assert np.std(places, axis=0).min() > 5  # it moves along both axes
    areas = np.array([(label > 0).mean() for label in masks[1:]]) / mask.mean()
    assert areas.min() < 0.9 and areas.max() > 1.1


def _inside(mask, steps):
    """Erodes the mask by ``steps`` pixels; the mask is extended beyond the border of the frame."""
    padded = np.pad(mask, steps, mode="edge")
    h, w = mask.shape
    return np.logical_and.reduce([padded[i:i + h, j:j + w] for i in range(2 * steps + 1) for j in range(2 * steps + 1)])


def test_half_of_the_samples_are_mirrored():
    frame, mask = _scene(height=60, width=60, size=(200, 240))
    frame[mask] = np.where(np.arange(60)[None, :, None] < 30, RED, (30, 220, 20)).repeat(60, 0).reshape(-1, 3)
    frames, masks = augmented_samples(frame, mask, count=40, seed=1)
    columns = np.arange(frame.shape[1])
    turned = []
    for picture, label in zip(frames[1:].astype(int), masks[1:] > 0, strict=True):
        left, right = ((label & (picture[..., a] > picture[..., b] + 60)) * columns for a, b in ((0, 1), (1, 0)))
        turned.append(left.sum() / (left > 0).sum() > right.sum() / (right > 0).sum())
    assert 10 < sum(turned) < 29


def test_inpainting_fills_the_object_from_its_surroundings():
    frame, mask = _scene()
    filled = inpaint_object(frame, mask)
    ground, _ = _scene(height=0)
    assert np.abs(filled.astype(int) - ground)[mask].max() < 25
    far = ~_inside(~mask, 0) | _inside(~mask, 4)
    np.testing.assert_array_equal(filled[far & ~mask], frame[far & ~mask])


def test_samples_depend_only_on_the_seed():
    frame, mask = _scene()
    once, again, other = (augmented_samples(frame, mask, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once[1:] != other[1:]).any((1, 2, 3)).all()


@pytest.mark.parametrize("box", [
    (0, 0, 160, 220),  # the whole frame
    (0, 0, 1, 1), (159, 219, 1, 1),  # single pixels in the corners
    (0, 0, 3, 220), (5, 5, 150, 212),  # a strip; nearly the whole frame
])
def test_extreme_masks_give_samples_with_an_object(box):
    frame, mask = _scene(*box)
    frames, masks = augmented_samples(frame, mask, count=8)
    assert masks.any((1, 2)).all() and frames.shape == (8, 160, 220, 3)


def test_count_of_one_gives_one_sample():
    frame, mask = _scene()
    frames, masks = augmented_samples(frame, mask, count=1)
    np.testing.assert_array_equal(frames, [frame])
    np.testing.assert_array_equal(masks, [255 * mask])


def test_empty_mask_is_rejected():
    frame, mask = _scene(height=0)
    with pytest.raises(ValueError, match="the mask is empty"):
        augmented_samples(frame, mask)
