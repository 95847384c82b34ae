"""Which proposals of a frame belong to which targets, which become new ones, and whose memories are updated.

D-Net proposes objects in every frame, T-Net follows those it knows; this is what joins the two, on the host. NumPy and
SciPy only. Of two label maps nothing matters here but how many pixels every pair of labels shares: everything is
decided on that small table.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# FRTM leaves a memory alone where its target has fewer pixels than this.
_FEWEST_PIXELS = 10
_NONE = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What association goes by; the defaults are the paper's, where it gives any.

    Attributes:
      verification: whether proposals may replace what T-Net says, and bring lost targets back; off is a row of Table 4.
      memory_update: whether memories are updated at all; off is a row of Table 4.
      accept: a proposal replaces a mask where Eq. 10, 0..2, is above this.
      overlap: IoU of a proposal and a target above which they are compared at all.
      apart: IoU with every mask below which a proposal may be a new target.
      every: frames after which a memory is updated without a proposal that verifies it.
      most: ids in a video; DAVIS takes 20.
      return_above: mean cosine, 0..1, above which a proposal brings a lost target back; None switches that off. Ours.
      smallest: share of the frame below which a proposal is no new target, and a target counts as lost. Ours.
      shrunk: a target also counts as lost where T-Net's mask has less than this share of its last verified area: most
        of it is hidden, or T-Net does not find it any more. Ours.
    """

    verification: bool = True
    memory_update: bool = True
    accept: float = 0.6
    overlap: float = 0.5
    apart: float = 0.1
    every: int = 8
    most: int = 20
    return_above: float | None = 0.8
    smallest: float = 0.001
    shrunk: float = 0.5


class Tracks(NamedTuple):
    """What is known of ``s`` targets, in fixed shapes; a target keeps its slot and its id to the end of the video."""

    ids: np.ndarray
    """int32 [s], 1.. in the order of appearance; 0 is a free slot."""
    first: np.ndarray
    """float32 [s, d], embedding when it appeared, of length 1."""
    latest: np.ndarray
    """float32 [s, d], embedding of the last proposal that was accepted for it, of length 1."""
    verified: np.ndarray
    """int32 [s], frame of that proposal."""
    area: np.ndarray
    """int32 [s], pixels of its mask in that frame."""
    updated: np.ndarray
    """int32 [s], frame of the last update of its memory, or of its start."""
    score_sum: np.ndarray
    """float32 [s], sum of the scores of the proposals that were accepted for it."""
    frames: np.ndarray
    """int32 [s], their number; sum and number give a track's mean score."""


class Association(NamedTuple):
    """What becomes of the ``p`` proposals and ``s`` targets of a frame."""

    replace: np.ndarray
    """int32 [s], index of the proposal whose mask replaces the target's; -1 keeps T-Net's mask."""
    similarity: np.ndarray
    """float32 [s], 0..2, how much the two look alike; 0 where nothing is replaced."""
    new: np.ndarray
    """int32 [n], indices of the proposals that become targets, the strongest first."""
    slots: np.ndarray
    """int32 [n], the free slots they take."""
    update: np.ndarray
    """bool [s], targets whose memory gets this frame; never a new one, which starts from this frame anyway."""
    doubled: np.ndarray
    """bool [s], those of them whose sample weighs double."""
    area: np.ndarray
    """int32 [s], pixels that each target has in the end."""
    places: np.ndarray
    """uint8 [p + 1, s + 1], the label that a pixel of that proposal (0: none) and that target (0: none) gets."""


def empty_tracks(slots: int, dimension: int) -> Tracks:
    """Returns the tracks of a video before its first frame.

    Args:
      slots: s, at most 255.
      dimension: d, the length of an embedding.
    """
    counts = np.zeros(slots, np.int32)
    vectors = np.zeros((slots, dimension), np.float32)
    return Tracks(counts, vectors, vectors, counts, counts, counts, counts.astype(np.float32), counts)


def joint_areas(rows: np.ndarray, most_rows: int, columns: np.ndarray, most_columns: int) -> np.ndarray:
    """Counts the pixels that every label of one map shares with every label of another.

    Args:
      rows: integer [h, w], 0..r.
      most_rows: r.
      columns: integer [h, w], 0..c.
      most_columns: c.

    Returns:
      int64 [r + 1, c + 1].

    Raises:
      ValueError: a label is larger than was said.
    """
    if rows.max(initial=0) > most_rows or columns.max(initial=0) > most_columns:
        raise ValueError(f"labels up to {rows.max()} and {columns.max()}, more than {most_rows} and {most_columns}")
    pairs = _pair_numbers(rows, columns, most_columns + 1)
    return np.bincount(pairs.ravel(), minlength=(most_rows + 1) * (most_columns + 1)).reshape(most_rows + 1, -1)


def ious(joint: np.ndarray) -> np.ndarray:
    """Returns the IoU of every pair of labels but the background, of shared areas.

    Args:
      joint: integer [r + 1, c + 1], see ``joint_areas``.

    Returns:
      float64 [r, c], 0..1; 0 where both are empty.
    """
    union = joint.sum(1)[1:, None] + joint.sum(0)[None, 1:] - joint[1:, 1:]
    return joint[1:, 1:] / np.maximum(union, 1)


def associate(tracks: Tracks, frame_index: int, proposal_labels: np.ndarray, proposal_scores: np.ndarray,
              embeddings: np.ndarray, target_labels: np.ndarray, settings: Settings) -> Association:
    """Decides what becomes of the proposals and the targets of a frame.

    Eq. 10 of Zhou et al., CVPR 2021, gives a proposal i and a target j::

      s(i, j) = (cos(e_i, first e_j) + cos(e_i, latest e_j)) * [IoU(mask_i, mask_j) > 0.5]

    A proposal with s > 0.6 verifies the target and replaces its mask. One whose s is 0 with every target, and whose IoU
    with all current masks is below 0.1, becomes a target. A verified target's memory is updated at once and with
    doubled weight, others eight frames after their last update.

    Ours, for the paper is silent:

    - Negative cosines count as 0.
    - Of several pairs the one of highest s comes first, each proposal and each target once. (Proposals are disjoint
      and so are targets, so that an overlap of 0.5 or more never leaves two to choose from.)
    - Current masks are T-Net's, before replacement. After it, the second piece of an object that D-Net has split would
      be apart from the piece that has just become the target's mask, and be a target of its own.
    - A target that is lost keeps its id, and comes back where T-Net finds it again, or where a proposal that would
      become a new target but for the rest of its mask looks like it: the mean of the two cosines is above
      ``return_above``.
    - Where an accepted proposal meets the mask of a target that T-Net alone has found, the proposal lies above, unless
      that target is the smaller one and was verified in the last ``every`` frames: then the proposal has probably
      swallowed it, as proposals do when objects cross.
    - Targets with fewer than 10 pixels are not updated (FRTM's rule).

    Args:
      tracks: the targets so far.
      frame_index: number of the frame.
      proposal_labels: integer [h, w], 0..p; 0 is no proposal.
      proposal_scores: float [p], 0 for a proposal that does not exist.
      embeddings: float [p, d] of any length.
      target_labels: uint8 [h, w], 0..s, T-Net's result: slot + 1, 0 for background.
      settings: thresholds.

    Returns:
      The decision. It says the same of the same proposals in any other order, unless two have equal scores.
    """
    slots, scores = len(tracks.ids), np.asarray(proposal_scores)
    joint = joint_areas(proposal_labels, len(scores), target_labels, slots)
    alive, present = tracks.ids > 0, scores > 0
    alike = _resemblance(tracks, embeddings)
    overlap = ious(joint)
    similarity = np.where(present[:, None] & alive & (overlap > settings.overlap), alike, 0)
    replace = np.full(slots, -1, np.int32)
    if settings.verification:
        _match(replace, similarity, similarity > settings.accept, scores)

    trusted = alive & (frame_index - tracks.verified <= settings.every)
    smallest = settings.smallest * joint.sum()
    # So little overlap means that every s is 0, too; and new targets are apart, for proposals are disjoint.
    large, meets = present & (joint.sum(1)[1:] >= smallest), overlap >= settings.apart
    fresh = large & ~meets.any(1)
    if settings.verification and settings.return_above is not None:
        left = _areas(joint, _places(joint, replace, trusted))
        lost = alive & (replace < 0) & (left < np.maximum(smallest, settings.shrunk * tracks.area))
        meets_others = meets.sum(1)[:, None] > meets
        back = large[:, None] & ~meets_others & lost & (alike > 2 * settings.return_above)
        _match(replace, alike, back, scores)
    fresh[replace[replace >= 0]] = False
    new, free = _new_targets(tracks, fresh, scores, joint, settings)

    places = _places(joint, replace, trusted, new, free)
    verified = replace >= 0
    due = verified | (frame_index - tracks.updated >= settings.every)
    area = _areas(joint, places).astype(np.int32)
    update = alive & due & (area >= _FEWEST_PIXELS) & settings.memory_update
    looks = np.where(verified, alike[replace, np.arange(slots)], 0) if len(scores) else np.zeros(slots)
    return Association(replace, looks.astype(np.float32), new, free, update, update & verified, area, places)


def link_by_iou(tracks: Tracks, frame_index: int, proposal_labels: np.ndarray, proposal_scores: np.ndarray,
                embeddings: np.ndarray, target_labels: np.ndarray, settings: Settings) -> Association:
    """Links the proposals of a frame to those of the frame before by overlap alone: what there is without T-Net.

    Ours, a baseline: the assignment of largest total IoU, in which a pair needs ``settings.apart`` or more; proposals
    left over become targets, and targets left over are gone for good. Takes and returns what ``associate`` does, for
    use in its place.

    Args:
      tracks: the targets so far.
      frame_index: not used.
      proposal_labels: integer [h, w], 0..p; 0 is no proposal.
      proposal_scores: float [p], 0 for a proposal that does not exist.
      embeddings: not used.
      target_labels: uint8 [h, w], 0..s, the labels decided for the frame before: slot + 1, 0 for background.
      settings: thresholds.

    Returns:
      The decision; ``similarity`` is the IoU, no memory is updated, and pixels of no proposal are background.
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
    never, places = np.zeros(slots, bool), np.repeat(owner[:, None], slots + 1, axis=1)
    return Association(replace, similarity, new, free, never, never, _areas(joint, places).astype(np.int32), places)


def decided_labels(decision: Association, proposal_labels: np.ndarray, target_labels: np.ndarray) -> np.ndarray:
    """Returns the masks of all targets, new ones included, after a decision.

    Args:
      decision: made of these labels.
      proposal_labels: integer [h, w], 0..p.
      target_labels: uint8 [h, w], 0..s.

    Returns:
      uint8 [h, w], 0..s: slot + 1, 0 for background.
    """
    return decision.places.ravel()[_pair_numbers(proposal_labels, target_labels, decision.places.shape[1])]


def apply(tracks: Tracks, decision: Association, frame_index: int, proposal_scores: np.ndarray,
          embeddings: np.ndarray) -> Tracks:
    """Returns the tracks after a decision.

    Args:
      tracks: those it was made with; left as they are.
      decision: what was decided.
      frame_index: number of the frame.
      proposal_scores: float [p].
      embeddings: float [p, d] of any length.
    """
    tracks = Tracks(*map(np.array, tracks))  # copies
    known = np.flatnonzero(decision.replace >= 0)
    targets = np.concatenate([known, decision.slots])
    proposals = np.concatenate([decision.replace[known], decision.new])
    unit = _unit(embeddings)
    tracks.ids[decision.slots] = tracks.ids.max(initial=0) + 1 + np.arange(len(decision.new))
    tracks.first[decision.slots] = unit[decision.new]
    tracks.latest[targets] = unit[proposals]
    tracks.verified[targets], tracks.area[targets] = frame_index, decision.area[targets]
    tracks.updated[decision.update] = tracks.updated[decision.slots] = frame_index
    tracks.score_sum[targets] += np.asarray(proposal_scores)[proposals]
    tracks.frames[targets] += 1
    return tracks


def _pair_numbers(rows, columns, width):
    return rows.astype(np.intp) * width + columns


def _unit(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _resemblance(tracks, embeddings):
    """The sum of the cosines of Eq. 10, float64 [p, s] in 0..2, wherever the masks are."""
    unit = _unit(embeddings)
    return np.maximum(unit @ tracks.first.T, 0) + np.maximum(unit @ tracks.latest.T, 0)


def _match(replace, values, allowed, scores):
    """Enters allowed pairs of proposal and target into ``replace``, highest value first, each of both once."""
    proposals, targets = np.nonzero(allowed)
    taken = set()
    for pair in np.lexsort((-scores[proposals], -values[proposals, targets])):
        if replace[targets[pair]] < 0 and proposals[pair] not in taken:
            replace[targets[pair]] = proposals[pair]
            taken.add(proposals[pair])


def _new_targets(tracks, fresh, scores, joint, settings):
    """The proposals that become targets, strongest (then largest) first, and the slots they get, int32 [n] each."""
    free = np.flatnonzero(tracks.ids == 0)
    room = max(0, min(len(free), settings.most - tracks.ids.max(initial=0)))
    candidates = np.flatnonzero(fresh)
    order = np.lexsort((-joint.sum(1)[1:][candidates], -scores[candidates]))[:room]
    return candidates[order].astype(np.int32), free[: len(order)].astype(np.int32)


def _owners(rows, replace, new, free):
    """The place that each proposal's mask goes to, uint8 [p + 1]; 0 for those that are not taken."""
    owner = np.zeros(rows, np.uint8)
    owner[replace[replace >= 0] + 1] = np.flatnonzero(replace >= 0) + 1
    owner[new + 1] = free + 1
    return owner


def _places(joint, replace, trusted, new=_NONE, free=_NONE):
    """``Association.places``: replaced masks are taken away, and of those that meet one lies above (see ``associate``)."""
    owner = _owners(len(joint), replace, new, free)[:, None]
    kept = np.arange(joint.shape[1], dtype=np.uint8)
    kept[1:][replace >= 0] = 0
    smaller = joint.sum(0)[None] < joint.sum(1)[:, None]
    above = (kept > 0) & np.append(False, trusted) & smaller
    return np.where((owner > 0) & ~above, owner, kept)


def _areas(joint, places):
    """Pixels of the targets' decided masks, int64 [s]."""
    areas = np.zeros(joint.shape[1], np.int64)
    np.add.at(areas, places, joint)
    return areas[1:]
