"""Whether objects keep their numbers through a video: switches of identity and fragmentations."""

from collections import Counter

import numpy as np
from scipy.optimize import linear_sum_assignment

_VOID = 255
_MATCH = 0.5


def identity_switches(truth: np.ndarray, prediction: np.ndarray) -> dict[str, int]:
    """Counts switches of identity and fragmentations of all objects of a video.

    Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", 2008, on
    masks: an object and a predicted number match in a frame if their IoU is 0.5 or more; an object's last known
    match that still holds is kept, and the rest is the assignment of largest total IoU. It is a switch when an object's
    match differs from its last known one, however long ago that was. It is a fragmentation (Li et al., "Learning to
    Associate", CVPR 2009) when an object is matched again, by any number, after frames in which it could be seen but
    was not matched; frames without the object count for nothing, which is ours.

    Args:
        truth: Integer [t, h, w], object numbers; 0 is background, and 255 is void: such pixels count for nobody.
        prediction: Integer [t, h, w], object numbers; 0 is background.

    Returns:
        ``switches`` and ``fragmentations``; ``objects`` of the truth; ``visible``, the sum over the frames of the
        objects in each; ``matched``, those of them that were matched.

    Raises:
        ValueError: The shapes differ.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    last, missed, seen, counts = {}, set(), set(), Counter()
    for true, predicted in zip(truth, prediction, strict=True):
        objects, numbers, iou = _ious(true, predicted)
        matches = _matches(objects, numbers, iou, last)
        for name in objects:
            if name in matches:
                counts["switches"] += last.get(name, matches[name]) != matches[name]
                counts["fragmentations"] += name in missed
                missed.discard(name)
            elif name in last:
                missed.add(name)
        last |= matches
        seen.update(objects)
        counts["visible"] += len(objects)
        counts["matched"] += len(matches)
    return {"switches": counts["switches"], "fragmentations": counts["fragmentations"], "objects": len(seen),
            "visible": counts["visible"], "matched": counts["matched"]}


def _ious(true, predicted):
    """The object numbers of two label maps, and the IoU of every pair, float64 [objects, numbers]."""
    width = int(predicted.max(initial=0)) + 1
    joint = np.bincount((true.astype(np.intp) * width + predicted).ravel(), minlength=(_VOID + 1) * width)
    shared = joint.reshape(-1, width)
    shared[_VOID] = 0
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    objects, numbers = (np.flatnonzero(shared.sum(axis)[1:]) + 1 for axis in (1, 0))
    iou = (shared / np.maximum(union, 1))[np.ix_(objects, numbers)]
    return objects.tolist(), numbers.tolist(), iou


def _matches(objects, numbers, iou, last):
    """The number that each matched object has in a frame."""
    kept = np.array([[last.get(name) == number for number in numbers] for name in objects]).reshape(iou.shape)
    # More than any two other matches could bring together.
    value = np.where(iou >= _MATCH, iou + 2 * kept, 0)
    pairs = zip(*linear_sum_assignment(value, maximize=True), strict=True)
    return {objects[row]: numbers[column] for row, column in pairs if value[row, column] > 0}
