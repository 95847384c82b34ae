"""Endpoint error of optical flow and the share of vectors that miss, as the flow benchmarks count them."""

import numpy as np

_LIMITS = (1, 3, 5)  # pixels


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes the distance between estimated and true vectors (EPE; Baker et al., IJCV 2011, call it endpoint error).

    Args:
        flow: float [..., h, w, 2], (dx, dy) in pixels.
        truth: The same of the true flow.

    Returns:
        float64 [..., h, w], pixels.

    Raises:
        ValueError: The two differ in shape, or are no flow.
    """
    if flow.shape != truth.shape or flow.shape[-1:] != (2,):
        raise ValueError(f"flow {list(flow.shape)} and its truth {list(truth.shape)} do not fit each other")
    return np.linalg.norm(flow.astype(np.float64) - truth, axis=-1)


def flow_scores(flow: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Scores a flow field.

    Args:
        flow: float [h, w, 2], (dx, dy) in pixels.
        truth: The same of the true flow.
        valid: bool [h, w], pixels that count; all if None.

    Returns:
        ``"epe"``, the mean endpoint error in pixels; ``"over_1px"``, ``"over_3px"`` and ``"over_5px"``, the shares of
        vectors that are further off than that. All of them NaN where no pixel counts.
    """
    error = endpoint_error(flow, truth)
    error = error.ravel() if valid is None else error[valid]
    if not error.size:
        return dict.fromkeys(("epe", *(f"over_{limit}px" for limit in _LIMITS)), float("nan"))
    return {"epe": float(error.mean())} | {f"over_{limit}px": float((error > limit).mean()) for limit in _LIMITS}
