"""Optical flow metrics: endpoint error and outlier rates."""

import numpy as np

_OUTLIER_LIMITS = (1, 3, 5)  # pixels


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes the endpoint error (EPE; Baker et al., IJCV 2011): the distance of estimated and true flow vectors.

    Args:
        flow: float [..., h, w, 2], estimated (dx, dy) in pixels.
        truth: float [..., h, w, 2], ground truth in the same form.

    Returns:
        float64 [..., h, w], in pixels.

    Raises:
        ValueError: The shapes differ, or the last axis is not of size 2.
    """
    if flow.shape != truth.shape or flow.shape[-1:] != (2,):
        raise ValueError(f"flow and ground truth must have the same shape [..., h, w, 2], not {list(flow.shape)} and"
                         f" {list(truth.shape)}")
    return np.linalg.norm(flow.astype(np.float64) - truth, axis=-1)


def flow_scores(flow: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Computes the mean endpoint error and the outlier rates of a flow field.

    Args:
        flow: float [h, w, 2], estimated (dx, dy) in pixels.
        truth: float [h, w, 2], ground truth in the same form.
        valid: bool [h, w], pixels with ground truth; all if None.

    Returns:
        ``epe``, the mean endpoint error in pixels; ``over_1px``, ``over_3px`` and ``over_5px``, the fractions of
        vectors whose error exceeds 1, 3 and 5 pixels. All are NaN if no pixel is valid.
    """
    error = endpoint_error(flow, truth)
    error = error.ravel() if valid is None else error[valid]
    if not error.size:
        return dict.fromkeys(("epe", *(f"over_{limit}px" for limit in _OUTLIER_LIMITS)), float("nan"))
    rates = {f"over_{limit}px": float((error > limit).mean()) for limit in _OUTLIER_LIMITS}
    return {"epe": float(error.mean())} | rates
