import cv2
import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.inference.stages import STAGES


def _scores():
    """A blob that drifts, a second one that appears far away, then a flood, then next to nothing."""
    scores = np.full((8, 260, 420), -1.0, np.float32)
    for t in range(8):
        scores[t, 60:170, 20 + 5 * t:110 + 5 * t] = 2.0
        scores[t, 3:6, 300:303] = 2.0  # a speck, which opening removes
    scores[2:, 150:240, 330:410] = 1.0
    scores[5] = 1.0
    scores[6] = -1.0
    scores[6, 10:40, 10:40] = 3.0
    return scores


def test_temporal_gate_equals_the_published_rule_with_opencv():
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

    init, apply = STAGES["temporal_gate"]
    scores = jnp.asarray(_scores())[:, None, :, :, None]
    _, gated = jax.lax.scan(lambda state, score: apply(state, score, 0.5), init((260, 420)), scores)
    np.testing.assert_array_equal(np.asarray(gated)[:, 0, :, :, 0], expected)
    # The cases occur: first frame, gate closed on the newcomer, too large before (frame 6), too small before (7).
    changed = (expected != _scores()).any((1, 2))
    assert changed.tolist() == [False, True, True, True, True, True, False, False]
