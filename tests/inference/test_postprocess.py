import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.inference.postprocess import STAGES, FrameContext


def _staged(name, scores):
    """Applies a stage to ``[t, h, w]`` scores, frame by frame."""
    init, apply = STAGES[name]
    _, kept = jax.lax.scan(lambda state, score: apply(state, score, 0.5, None), init(scores.shape[1:]),
                           jnp.asarray(scores)[:, None, :, :, None])
    return np.asarray(kept)[:, 0, :, :, 0]


def _scores():
    """Returns scores of a drifting blob, a second one far away from frame 2, a full frame, and a nearly empty one."""
    scores = np.full((8, 260, 420), -1.0, np.float32)
    for t in range(8):
        scores[t, 60:170, 20 + 5 * t:110 + 5 * t] = 2.0
        scores[t, 3:6, 300:303] = 2.0  # a speck that the opening removes
    scores[2:, 150:240, 330:410] = 1.0
    scores[5] = 1.0
    scores[6] = -1.0
    scores[6, 10:40, 10:40] = 3.0
    return scores


def test_temporal_gate_equals_published_opencv_rule():
    expected, last = [], np.zeros((260, 420), np.uint8)
    for score in _scores():
        if 5000 < last.sum() < 100000:
            opened = cv2.morphologyEx(last, cv2.MORPH_OPEN, np.ones((15, 15), np.uint8))
            gate = cv2.dilate(opened, np.ones((101, 101), np.uint8))
        else:
            gate = np.ones_like(last)
        expected.append(score * gate)
        last = (score > 0.5).astype(np.uint8)
    expected = np.stack(expected)

    np.testing.assert_array_equal(_staged("temporal_gate", _scores()), expected)
    # Covered cases: first frame, second blob gated, previous area too large (frame 6), too small (frame 7).
    changed = (expected != _scores()).any((1, 2))
    assert changed.tolist() == [False, True, True, True, True, True, False, False]


def _several_parts():
    """Returns scores with a large and a small component; frames 2 to 9 vary the conditions of the stage."""
    scores = np.full((10, 300, 420), -1.0, np.float32)
    for t in range(8):
        cv2.ellipse(scores[t], (130 + 3 * t, 150), (105, 130), 0, 0, 360, 2.0, -1)
        cv2.circle(scores[t], (130 + 3 * t, 150), 20, -1.0, -1)  # a hole
        scores[t, 100:160, 320:380] = 1.5
    scores[2, 100:160, 200:380] = 1.5  # the components are connected
    scores[3, :, 260:] = -1.0  # no small component
    scores[4] = -1.0  # far from the main component of the previous frame
    scores[4, 20:220, 215:415] = 2.0
    scores[4, 270:290, 5:200] = 2.0
    scores[5] = 2.0  # foreground area too large
    scores[6, 220:] = -1.0  # foreground area too small
    # 171 x 121 pixels dilate to 201 x 151 pixels, whose contour encloses an area of exactly 30,000.
    scores[8:, 60:179, 230:401] = scores[8:, 60:181, 15:186] = scores[9, 181, 15:186] = 2.0
    return scores


@pytest.mark.slow
def test_main_component_equals_published_opencv_rule():
    expected, last = [], None
    for score in _several_parts():
        mask, score = (score > 0.5).astype(np.uint8), score.copy()
        if 40_000 < mask.sum() < 100_000:
            opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((15, 15), np.uint8))
            outlines, _ = cv2.findContours(cv2.dilate(opened, np.ones((31, 31), np.uint8)), cv2.RETR_EXTERNAL,
                                           cv2.CHAIN_APPROX_NONE)
            main = max(outlines, key=cv2.contourArea)
            x, y, w, h = cv2.boundingRect(main)
            box = np.zeros(mask.shape, bool)
            box[y:y + h, x:x + w] = True
            overlap = 1 if last is None else (last & box).sum() / (last | box).sum()
            if len(outlines) > 1 and cv2.contourArea(main) > 30_000 and overlap > 0.3:
                score *= box
        last = score > 0.5
        expected.append(score)
    expected = np.stack(expected)

    np.testing.assert_array_equal(_staged("main_component", _several_parts()), expected)
    changed = (expected != _several_parts()).any((1, 2))
    assert changed.tolist() == [True, True, False, False, False, False, False, True, False, True]


def _compiled(name):
    init, apply = STAGES[name]
    return init, jax.jit(apply, static_argnums=2)


def test_refine_edges_sharpens_coarse_score_only_at_edges():
    init, apply = _compiled("refine_edges")
    frame = np.full((320, 480, 3), 60, np.uint8)
    cv2.circle(frame, (240, 160), 90, (200, 120, 90), -1)
    truth = (frame[..., 0] > 100).astype(np.float32)
    coarse = cv2.resize(cv2.resize(truth, (30, 20), interpolation=cv2.INTER_AREA), (480, 320))
    context = FrameContext(jnp.asarray(frame), None)
    _, sharp = apply(init((320, 480)), jnp.asarray(coarse)[None, :, :, None], 0.5, context)
    sharp = np.asarray(sharp)[0, :, :, 0]
    assert sharp.min() >= 0 and sharp.max() <= 1
    assert ((sharp > 0.5) != (truth > 0)).mean() < 0.3 * ((coarse > 0.5) != (truth > 0)).mean()
    _, same = apply((), jnp.asarray(coarse)[None, :, :, None], 0.5,
                    FrameContext(jnp.full((320, 480, 3), 77, jnp.uint8), None))
    assert (np.abs(np.asarray(same)[0, :, :, 0] - coarse) < 0.25).all()


def _drifting(length=6, size=(128, 192), step=5):
    """Returns a textured square that moves ``step`` pixels to the right per frame over a static background.

    The tuple holds frames, masks, forward flow and backward flow.
    """
    ground = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8), size[::-1])
    square = cv2.resize(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8), (48, 48))
    frames, masks = np.repeat(ground[None], length, 0), np.zeros((length, *size), np.float32)
    for t in range(length):
        frames[t, 40:88, 30 + step * t:78 + step * t] = square
        masks[t, 40:88, 30 + step * t:78 + step * t] = 1
    ahead = masks[..., None] * np.float32([step, 0])
    return frames, masks, ahead, -ahead


def _followed(scores, frames, flow, causal=False):
    init, apply = _compiled("smooth_over_time")
    state, out = init(scores.shape[1:]), []
    for score, frame, its in zip(scores, frames, flow, strict=True):
        state, kept = apply(state, jnp.asarray(score)[None, :, :, None], 0.5,
                            FrameContext(jnp.asarray(frame), jnp.asarray(its), causal))
        out.append(np.asarray(kept)[0, :, :, 0])
    return np.stack(out)


def test_smooth_over_time_propagates_previous_scores():
    frames, masks, ahead, back = _drifting()
    scores = 0.9 * masks
    scores[3] = 0.3 * masks[3]  # a weak detection in one frame
    kept = _followed(scores, frames, ahead)
    np.testing.assert_allclose(kept[0], scores[0], atol=1e-6)
    inside = masks[3, :, :] * (np.roll(masks[3], 8, 1) * np.roll(masks[3], -8, 1) * np.roll(masks[3], 8, 0)) > 0
    assert inside.sum() > 500 and kept[3][inside].min() > 0.6 and scores[3].max() < 0.5
    assert np.abs(kept[3][masks[3] == 0]).mean() < 0.02
    # Backward flow, as for streams, gives the same.
    np.testing.assert_allclose(_followed(scores, frames, back, causal=True)[3][inside], kept[3][inside], atol=0.05)


def test_smooth_over_time_drops_previous_scores_where_colors_differ():
    frames, masks, ahead, _ = _drifting()
    frames[3:] = 255 - frames[3:]  # a cut
    scores = 0.9 * masks
    scores[3] = 0.3 * masks[3]
    kept = _followed(scores, frames, ahead)
    assert np.abs(kept[3] - scores[3]).mean() < 0.02
    assert np.abs(kept[2] - scores[2]).mean() < 0.05


def _colored(scores, frames):
    init, apply = _compiled("refine_by_color")
    state, out = init(scores.shape[1:]), []
    for score, frame in zip(scores, frames, strict=True):
        state, kept = apply(state, jnp.asarray(score)[None, :, :, None], 0.5, FrameContext(jnp.asarray(frame), None))
        out.append(np.asarray(kept)[0, :, :, 0])
    return np.stack(out)


def _red_before_green(length=2, size=(240, 320)):
    noise = np.random.default_rng(0).integers(-20, 21, (length, *size, 3))
    frames = np.full((length, *size, 3), (60, 140, 70)) + noise
    masks = np.zeros((length, *size), bool)
    masks[:, 60:180, 100:220] = True
    frames[masks] += (120, -80, -20)
    return frames.clip(0, 255).astype(np.uint8), masks


def test_refine_by_color_completes_object_and_removes_background():
    frames, masks = _red_before_green(1)
    score = np.where(masks, 0.8, 0.1).astype(np.float32)
    score[:, 130:180, 100:220] = 0.35  # a missed part
    score[:, 60:120, 220:250] = 0.6  # a false positive beside it
    kept = _colored(score, frames)
    inner = np.zeros_like(masks)
    inner[:, 66:174, 106:214] = True
    assert ((score > 0.5) != masks).sum() > 7_000 > 70 > ((kept > 0.5) != masks)[inner].sum()
    assert (kept[:, 66:114, 226:244] < 0.5).mean() > 0.98
    assert kept.min() >= 0 and kept.max() <= 1


def test_refine_by_color_keeps_histograms_and_ignores_unseen_colors():
    frames, masks = _red_before_green(2)
    scores = np.stack([np.where(masks[0], 0.8, 0.1), np.full(masks[0].shape, 0.4)]).astype(np.float32)
    kept = _colored(scores, frames)
    assert kept[1][66:174, 106:214].mean() > 0.7 and kept[1][:50].mean() < 0.2
    # Uniform colors, and colors in neither histogram, leave the score unchanged.
    gray = np.full_like(frames, 90)
    np.testing.assert_allclose(_colored(scores[:1], gray[:1]), scores[:1], atol=0.01)
    strange = frames.copy()
    strange[1] = (40, 60, 250)
    np.testing.assert_allclose(_colored(scores, strange)[1], scores[1], atol=0.01)
    # An empty score stays empty.
    nothing = np.full_like(scores, 0.05)
    assert _colored(nothing, frames).max() < 0.1
