"""Identity metrics of predicted tracks: identity switches and fragmentations."""

from collections import Counter

import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.labels import VOID

_MATCH_IOU = 0.5


def identity_switches(truth: np.ndarray, prediction: np.ndarray) -> dict[str, int]:
    """Counts identity switches and fragmentations over all objects of a video.

    The CLEAR MOT matching (Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT
    Metrics", 2008), applied to masks:

    - An object and a predicted id can match in a frame if their IoU is at least 0.5. The object's last match is kept
      where it is still valid; the remaining pairs are assigned by the largest total IoU.
    - A switch is a match that differs from the object's last match, regardless of the time between them.
    - A fragmentation (Li et al., "Learning to Associate", CVPR 2009) is a match, with any id, after frames in which the
      object was visible but unmatched. Ours: frames without the object are skipped.

    Args:
        truth: Integer [t, h, w], object ids; 0 is background. Pixels of 255 (void) are ignored.
        prediction: Integer [t, h, w], object ids; 0 is background.

    Returns:
        The counts ``switches`` and ``fragmentations``; ``objects``, the number of ground-truth objects; ``visible``,
        the number of visible objects summed over the frames; ``matched``, the number of those that are matched.

    Raises:
        ValueError: The shapes differ.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"ground truth {truth.shape} and prediction {prediction.shape} differ in shape")
    last_match, missed, seen, counts = {}, set(), set(), Counter()
    for true, predicted in zip(truth, prediction, strict=True):
        objects, predicted_ids, iou = _pairwise_iou(true, predicted)
        matches = _match(objects, predicted_ids, iou, last_match)
        for obj in objects:
            if obj in matches:
                counts["switches"] += last_match.get(obj, matches[obj]) != matches[obj]
                counts["fragmentations"] += obj in missed
                missed.discard(obj)
            elif obj in last_match:
                missed.add(obj)
        last_match |= matches
        seen.update(objects)
        counts["visible"] += len(objects)
        counts["matched"] += len(matches)
    return {"switches": counts["switches"], "fragmentations": counts["fragmentations"], "objects": len(seen),
            "visible": counts["visible"], "matched": counts["matched"]}


def _pairwise_iou(true, predicted):
    """Returns the ids in two label maps, and the IoU of all pairs, float64 [objects, predicted ids]."""
    width = int(predicted.max(initial=0)) + 1
    joint = np.bincount((true.astype(np.intp) * width + predicted).ravel(), minlength=(VOID + 1) * width)
    shared = joint.reshape(-1, width)
    shared[VOID] = 0
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    objects, predicted_ids = (np.flatnonzero(shared.sum(axis)[1:]) + 1 for axis in (1, 0))
    iou = (shared / np.maximum(union, 1))[np.ix_(objects, predicted_ids)]
    return objects.tolist(), predicted_ids.tolist(), iou


def _match(objects, predicted_ids, iou, last_match):
    """Returns the predicted id of each matched object in a frame."""
    kept = np.array([[last_match.get(obj) == predicted for predicted in predicted_ids] for obj in objects])
    # A bonus of 2 outweighs the IoU of the two pairs that could replace a kept match.
    value = np.where(iou >= _MATCH_IOU, iou + 2 * kept.reshape(iou.shape), 0)
    pairs = zip(*linear_sum_assignment(value, maximize=True), strict=True)
    return {objects[row]: predicted_ids[column] for row, column in pairs if value[row, column] > 0}
