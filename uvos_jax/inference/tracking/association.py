"""Association of D-Net's proposals with T-Net's targets, on the host.

D-Net proposes objects in every frame and T-Net segments the known targets. Association decides which proposals verify
which targets, which become new targets, and whose memories are updated. It needs NumPy and SciPy only. All decisions
rest on one small table: the number of pixels that each proposal shares with each target.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# FRTM does not update the memory of a target with fewer pixels.
_MIN_UPDATE_AREA = 10
_NONE = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class AssociationSettings:
    """Thresholds of association; defaults are the paper's where it gives them.

    Attributes:
        verification: Whether proposals may replace T-Net's masks and recover lost targets; False is an ablation of
            Table 4.
        memory_update: Whether memories are updated; False is an ablation of Table 4.
        accept: A proposal replaces a mask if Eq. 10, 0..2, exceeds this.
        overlap: Minimum IoU of a proposal and a target to compare them.
        apart: A proposal may become a new target if its IoU with every mask is below this.
        every: Frames after which a memory is updated without verification.
        max_ids: Maximum number of ids in a video; DAVIS allows 20.
        return_above: Mean cosine, 0..1, above which a proposal recovers a lost target; None disables recovery. Ours.
        smallest: Minimum area of a new target as a share of the frame; a smaller target counts as lost. Ours.
        shrunk: A target also counts as lost if T-Net's mask has less than this share of its last verified area, since
            most of it is then occluded or missed. Ours.
    """

    verification: bool = True
    memory_update: bool = True
    accept: float = 0.6
    overlap: float = 0.5
    apart: float = 0.1
    every: int = 8
    max_ids: int = 20
    return_above: float | None = 0.8
    smallest: float = 0.001
    shrunk: float = 0.5


class Tracks(NamedTuple):
    """State of ``s`` target slots, in fixed shapes. A target keeps its slot and id until the end of the video."""

    ids: np.ndarray
    """int32 [s], ids from 1 in the order of appearance; 0 for a free slot."""
    first: np.ndarray
    """float32 [s, d], unit embedding in its first frame."""
    latest: np.ndarray
    """float32 [s, d], unit embedding of the last accepted proposal."""
    verified: np.ndarray
    """int32 [s], frame of the last accepted proposal."""
    area: np.ndarray
    """int32 [s], pixels of its mask in the frame of the last accepted proposal."""
    updated: np.ndarray
    """int32 [s], frame of the last memory update, or its first frame."""
    score_sum: np.ndarray
    """float32 [s], sum of the scores of its accepted proposals."""
    frames: np.ndarray
    """int32 [s], number of its accepted proposals; the mean score is ``score_sum / frames``."""


class Association(NamedTuple):
    """Result of association for the ``p`` proposals and ``s`` target slots of a frame."""

    replace: np.ndarray
    """int32 [s], index of the proposal whose mask replaces the target's; -1 keeps T-Net's mask."""
    similarity: np.ndarray
    """float32 [s], 0..2, appearance similarity of the two; 0 where nothing is replaced."""
    new: np.ndarray
    """int32 [n], indices of the proposals that become targets, highest score first."""
    slots: np.ndarray
    """int32 [n], the slots of the new targets."""
    update: np.ndarray
    """bool [s], targets whose memory is updated with this frame; false for new ones, which start from it."""
    doubled: np.ndarray
    """bool [s], targets whose new sample has double weight."""
    area: np.ndarray
    """int32 [s], pixels of each target's final mask."""
    label_table: np.ndarray
    """uint8 [p + 1, s + 1], label (slot + 1) of a pixel of that proposal (0: none) and that target (0: none)."""


def empty_tracks(slots: int, dimension: int) -> Tracks:
    """Returns the tracks of a video before its first frame.

    Args:
        slots: s, at most 255.
        dimension: d, dimension of an embedding.
    """
    counts = np.zeros(slots, np.int32)
    vectors = np.zeros((slots, dimension), np.float32)
    return Tracks(counts, vectors, vectors, counts, counts, counts, counts.astype(np.float32), counts)


def joint_areas(rows: np.ndarray, max_row: int, columns: np.ndarray, max_column: int) -> np.ndarray:
    """Counts the pixels that each label of one map shares with each label of another.

    Args:
        rows: Integer [h, w], 0..r.
        max_row: r.
        columns: Integer [h, w], 0..c.
        max_column: c.

    Returns:
        int64 [r + 1, c + 1].

    Raises:
        ValueError: If a label exceeds its maximum.
    """
    if rows.max(initial=0) > max_row or columns.max(initial=0) > max_column:
        raise ValueError(f"labels up to {rows.max()} and {columns.max()}, more than {max_row} and {max_column}")
    pairs = _pair_indices(rows, columns, max_column + 1)
    return np.bincount(pairs.ravel(), minlength=(max_row + 1) * (max_column + 1)).reshape(max_row + 1, -1)


def ious(joint: np.ndarray) -> np.ndarray:
    """Returns the IoU of every pair of labels except the background.

    Args:
        joint: Integer [r + 1, c + 1], see ``joint_areas``.

    Returns:
        float64 [r, c], 0..1; 0 where both are empty.
    """
    union = joint.sum(1)[1:, None] + joint.sum(0)[None, 1:] - joint[1:, 1:]
    return joint[1:, 1:] / np.maximum(union, 1)


def associate(tracks: Tracks, frame_index: int, proposal_labels: np.ndarray, proposal_scores: np.ndarray,
              embeddings: np.ndarray, target_labels: np.ndarray, settings: AssociationSettings) -> Association:
    """Associates the proposals of a frame with the targets.

    Eq. 10 of Zhou et al., CVPR 2021, compares proposal i with target j::

      s(i, j) = (cos(e_i, first e_j) + cos(e_i, latest e_j)) * [IoU(mask_i, mask_j) > 0.5]

    A proposal with s > 0.6 verifies the target and replaces its mask. A proposal with s = 0 for every target and an IoU
    below 0.1 with all current masks becomes a new target. The memory of a verified target is updated at once and with
    double weight, other memories eight frames after their last update.

    Not stated in the paper; ours:

    - Negative cosines count as 0.
    - Pairs are accepted in descending order of s, each proposal and each target once. (Proposals are disjoint and so
      are targets, so an overlap of 0.5 or more never leaves a choice.)
    - Current masks are T-Net's before replacement. After it, the second part of an object that D-Net has split would be
      disjoint from the part that has just become the target's mask, and would start a target.
    - A lost target keeps its id. It returns if T-Net finds it again, or if a proposal that overlaps no other mask looks
      like it: the mean of the two cosines exceeds ``return_above``.
    - Where an accepted proposal overlaps the mask of a target that only T-Net has found, the proposal is on top. The
      exception is a smaller target that was verified within the last ``every`` frames: the proposal has then probably
      swallowed it, as happens when objects cross.
    - Targets with fewer than 10 pixels are not updated (FRTM's rule).

    Args:
        tracks: Current tracks.
        frame_index: Index of the frame.
        proposal_labels: Integer [h, w], 0..p; 0 is no proposal.
        proposal_scores: Float [p], 0 for an unused proposal slot.
        embeddings: Float [p, d], not normalized.
        target_labels: uint8 [h, w], 0..s, T-Net's masks: slot + 1, 0 for background.
        settings: Thresholds.

    Returns:
        The association. It does not depend on the order of the proposals unless two have equal scores.
    """
    slots, scores = len(tracks.ids), np.asarray(proposal_scores)
    joint = joint_areas(proposal_labels, len(scores), target_labels, slots)
    alive, present = tracks.ids > 0, scores > 0
    appearance = _similarity(tracks, embeddings)
    overlap = ious(joint)
    similarity = np.where(present[:, None] & alive & (overlap > settings.overlap), appearance, 0)
    replace = np.full(slots, -1, np.int32)
    if settings.verification:
        _match(replace, similarity, similarity > settings.accept, scores)

    trusted = alive & (frame_index - tracks.verified <= settings.every)
    smallest = settings.smallest * joint.sum()
    # Such small overlaps imply s = 0, and new targets are disjoint since proposals are.
    large, meets = present & (joint.sum(1)[1:] >= smallest), overlap >= settings.apart
    fresh = large & ~meets.any(1)
    if settings.verification and settings.return_above is not None:
        left = _areas(joint, _label_table(joint, replace, trusted))
        lost = alive & (replace < 0) & (left < np.maximum(smallest, settings.shrunk * tracks.area))
        meets_others = meets.sum(1)[:, None] > meets
        back = large[:, None] & ~meets_others & lost & (appearance > 2 * settings.return_above)
        _match(replace, appearance, back, scores)
    fresh[replace[replace >= 0]] = False
    new, free = _new_targets(tracks, fresh, scores, joint, settings)

    label_table = _label_table(joint, replace, trusted, new, free)
    verified = replace >= 0
    due = verified | (frame_index - tracks.updated >= settings.every)
    area = _areas(joint, label_table).astype(np.int32)
    update = alive & due & (area >= _MIN_UPDATE_AREA) & settings.memory_update
    similarity = np.where(verified, appearance[replace, np.arange(slots)], 0) if len(scores) else np.zeros(slots)
    return Association(replace, similarity.astype(np.float32), new, free, update, update & verified, area, label_table)


def link_by_iou(tracks: Tracks, frame_index: int, proposal_labels: np.ndarray, proposal_scores: np.ndarray,
                embeddings: np.ndarray, target_labels: np.ndarray, settings: AssociationSettings) -> Association:
    """Links proposals to the targets of the previous frame by overlap alone; a baseline without T-Net.

    Ours: the assignment of maximum total IoU, in which a pair needs ``settings.apart`` or more. Unmatched proposals
    become targets; unmatched targets never return. Arguments and result are those of ``associate``.

    Args:
        tracks: Current tracks.
        frame_index: Not used.
        proposal_labels: Integer [h, w], 0..p; 0 is no proposal.
        proposal_scores: Float [p], 0 for an unused proposal slot.
        embeddings: Not used.
        target_labels: uint8 [h, w], 0..s, labels of the previous frame: slot + 1, 0 for background.
        settings: Thresholds.

    Returns:
        The association; ``similarity`` is the IoU, no memory is updated, and pixels outside proposals are background.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a third of a second; few runs need it

    slots, scores = len(tracks.ids), np.asarray(proposal_scores)
    joint = joint_areas(proposal_labels, len(scores), target_labels, slots)
    overlap = np.where((scores > 0)[:, None], ious(joint), 0)
    linked = np.where(overlap >= settings.apart, overlap, 0)
    proposals, targets = linear_sum_assignment(linked, maximize=True)
    kept = linked[proposals, targets] > 0
    replace, similarity = np.full(slots, -1, np.int32), np.zeros(slots, np.float32)
    replace[targets[kept]] = proposals[kept]
    similarity[targets[kept]] = linked[proposals, targets][kept]
    fresh = (scores > 0) & (joint.sum(1)[1:] >= settings.smallest * joint.sum())
    fresh[proposals[kept]] = False
    new, free = _new_targets(tracks, fresh, scores, joint, settings)
    owner = _owners(len(joint), replace, new, free)
    never, label_table = np.zeros(slots, bool), np.repeat(owner[:, None], slots + 1, axis=1)
    area = _areas(joint, label_table).astype(np.int32)
    return Association(replace, similarity, new, free, never, never, area, label_table)


def merge_labels(association: Association, proposal_labels: np.ndarray, target_labels: np.ndarray) -> np.ndarray:
    """Returns the masks of all targets, including new ones, after association.

    Args:
        association: Result of association for these labels.
        proposal_labels: Integer [h, w], 0..p.
        target_labels: uint8 [h, w], 0..s.

    Returns:
        uint8 [h, w], 0..s: slot + 1, 0 for background.
    """
    table = association.label_table
    return table.ravel()[_pair_indices(proposal_labels, target_labels, table.shape[1])]


def update_tracks(tracks: Tracks, association: Association, frame_index: int, proposal_scores: np.ndarray,
                  embeddings: np.ndarray) -> Tracks:
    """Returns the tracks after association.

    Args:
        tracks: Tracks it was made with; not modified.
        association: Result of association.
        frame_index: Index of the frame.
        proposal_scores: Float [p].
        embeddings: Float [p, d], not normalized.
    """
    tracks = Tracks(*map(np.array, tracks))  # copies
    known = np.flatnonzero(association.replace >= 0)
    targets = np.concatenate([known, association.slots])
    proposals = np.concatenate([association.replace[known], association.new])
    unit = _unit(embeddings)
    tracks.ids[association.slots] = tracks.ids.max(initial=0) + 1 + np.arange(len(association.new))
    tracks.first[association.slots] = unit[association.new]
    tracks.latest[targets] = unit[proposals]
    tracks.verified[targets], tracks.area[targets] = frame_index, association.area[targets]
    tracks.updated[association.update] = tracks.updated[association.slots] = frame_index
    tracks.score_sum[targets] += np.asarray(proposal_scores)[proposals]
    tracks.frames[targets] += 1
    return tracks


def _pair_indices(rows, columns, width):
    return rows.astype(np.intp) * width + columns


def _unit(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _similarity(tracks, embeddings):
    """Sum of the cosines of Eq. 10 regardless of overlap, float64 [p, s] in 0..2."""
    unit = _unit(embeddings)
    return np.maximum(unit @ tracks.first.T, 0) + np.maximum(unit @ tracks.latest.T, 0)


def _match(replace, values, allowed, scores):
    """Writes allowed pairs into ``replace``, highest value first, each proposal and target at most once."""
    proposals, targets = np.nonzero(allowed)
    taken = set()
    for pair in np.lexsort((-scores[proposals], -values[proposals, targets])):
        if replace[targets[pair]] < 0 and proposals[pair] not in taken:
            replace[targets[pair]] = proposals[pair]
            taken.add(proposals[pair])


def _new_targets(tracks, fresh, scores, joint, settings):
    """Proposals that become targets, by descending score, then area, and their slots, int32 [n] each."""
    free = np.flatnonzero(tracks.ids == 0)
    count = max(0, min(len(free), settings.max_ids - tracks.ids.max(initial=0)))
    candidates = np.flatnonzero(fresh)
    order = np.lexsort((-joint.sum(1)[1:][candidates], -scores[candidates]))[:count]
    return candidates[order].astype(np.int32), free[: len(order)].astype(np.int32)


def _owners(rows, replace, new, free):
    """Label (slot + 1) of each proposal's target, uint8 [p + 1]; 0 for unused proposals."""
    owner = np.zeros(rows, np.uint8)
    owner[replace[replace >= 0] + 1] = np.flatnonzero(replace >= 0) + 1
    owner[new + 1] = free + 1
    return owner


def _label_table(joint, replace, trusted, new=_NONE, free=_NONE):
    """``Association.label_table``: replaced masks are removed; overlaps are resolved as in ``associate``."""
    owner = _owners(len(joint), replace, new, free)[:, None]
    kept = np.arange(joint.shape[1], dtype=np.uint8)
    kept[1:][replace >= 0] = 0
    smaller = joint.sum(0)[None] < joint.sum(1)[:, None]
    above = (kept > 0) & np.append(False, trusted) & smaller
    return np.where((owner > 0) & ~above, owner, kept)


def _areas(joint, label_table):
    """Pixels of the targets' final masks, int64 [s]."""
    areas = np.zeros(joint.shape[1], np.int64)
    np.add.at(areas, label_table, joint)
    return areas[1:]
