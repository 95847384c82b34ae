"""The table of evaluation protocols, and ``evaluate``, which scores predictions by one of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.evaluation import davis, fbms_youtube_objects, saliency_protocol, youtube_vis, youtube_vos
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.scoring import EvaluationRequest, no_progress

RULE_YOUTUBE_VIS = ("track IoU is the sum of the intersections over all frames divided by the sum of the unions; COCO's"
                    " greedy matching by score at IoU 0.50:0.05:0.95, 101 recall points, at most 100 tracks per video"
                    " and category, crowds ignored; AP is the mean over categories; small and large tracks have a mean"
                    " area below 128^2 and above 256^2; per frame, each mask has the score of its track and COCO's"
                    " size limits 32^2 and 96^2")


@dataclass(frozen=True)
class Protocol:
    """Rules of a benchmark.

    Attributes:
        rule: One-line summary of the rules.
        score: Scores a request.
        split: Default split.
    """

    rule: str
    score: Callable[[EvaluationRequest], Result]
    split: str


def _youtube_vis(request: EvaluationRequest) -> Result:
    """Computes AP of tracks, class-aware and class-agnostic, and class-agnostic AP of the masks of single frames.

    The class-aware part is skipped if no predicted track has a category, as with class-agnostic models.
    """
    if request.sequences:
        raise UserError("youtube-vis scores all videos of its JSON file together. Remove --sequences.")
    instances, results = _instances_file(request), _results_file(request.predictions)
    truth, tracks = youtube_vis.read_json(instances), youtube_vis.read_json(results)
    scores: dict[str, Any] = {}
    is_listed = isinstance(tracks, list) and tracks  # if not, the class-aware part raises the error
    if not is_listed or any(isinstance(track, dict) and "category_id" in track for track in tracks):
        scores["class_aware"] = youtube_vis.evaluate_tracks(truth, tracks)
    scores["class_agnostic"] = youtube_vis.evaluate_tracks(truth, tracks, class_agnostic=True)
    scores["frames_class_agnostic"] = youtube_vis.evaluate_frames(truth, tracks)
    first, tables = next(iter(scores.values())), {}
    if categories := first["per_category"]:
        header = ["name", *(key for key in categories[0] if key not in ("id", "name"))]
        tables[f"per-category_results-{request.split}.csv"] = (
            header, [[entry[key] for key in header] for entry in categories])
    by_video = {str(entry.pop("id")): entry for entry in first["per_video"]}
    for part in scores.values():
        del part["per_category"]
        part.pop("per_video", None)
    return Result("youtube-vis", RULE_YOUTUBE_VIS, request.split, scores, by_video, list(by_video.items()),
                  tables=tables)


PROTOCOLS = {
    "davis2016": Protocol(davis.RULE_2016, davis.evaluate_2016, "val"),
    "davis2017-semi": Protocol(davis.RULE_SEMI, davis.evaluate_2017_semi, "val"),
    "davis2017-unsup": Protocol(davis.RULE_UNSUPERVISED, davis.evaluate_2017_unsupervised, "val"),
    "youtube-vos": Protocol(youtube_vos.RULE, youtube_vos.evaluate, "valid"),
    "fbms-j": Protocol(fbms_youtube_objects.RULE_FBMS_J, fbms_youtube_objects.evaluate_fbms_j, "test"),
    "fbms-f": Protocol(fbms_youtube_objects.RULE_FBMS_F, fbms_youtube_objects.evaluate_fbms_f, "test"),
    "youtube-objects": Protocol(fbms_youtube_objects.RULE_YOUTUBE_OBJECTS,
                                fbms_youtube_objects.evaluate_youtube_objects, "test"),
    "saliency": Protocol(saliency_protocol.RULE, saliency_protocol.evaluate, "val"),
    "youtube-vis": Protocol(RULE_YOUTUBE_VIS, _youtube_vis, "valid"),
}


def get_protocol(name: str) -> Protocol:
    """Returns the protocol called ``name``.

    Raises:
        UserError: There is no such protocol.
    """
    if name not in PROTOCOLS:
        # Names that start with ``name`` come first: for davis2017 suggest davis2017-semi, not davis2016.
        likely = [known for known in PROTOCOLS if name and known.startswith(name)] or PROTOCOLS
        raise UserError(f"Unknown protocol '{name}'.{nearest_hint(name, likely)} Valid protocols:"
                        f" {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def evaluate(name: str, predictions: str | Path, dataset: str | Path, split: str | None = None, *,
             sequences: tuple[str, ...] = (), workers: int = 1, progress: Callable = no_progress,
             temporal: bool = True) -> Result:
    """Scores predictions by the rules of a benchmark.

    Args:
        name: A key of ``PROTOCOLS``.
        predictions: Folder of masks, ``<sequence>/<frame>.png``; for ``youtube-vis`` a JSON file.
        dataset: Folder of the dataset as published; for ``youtube-vis`` its JSON file of instances.
        split: Split of the dataset; None selects the protocol's default.
        sequences: Names of the sequences to score; all if empty.
        workers: Number of processes. With more than one, the calling script needs ``if __name__ == "__main__":``.
        progress: Takes the number of sequences and returns a context manager; its value is called after each sequence.
        temporal: Whether to compute T of ``davis2016``, which is slow; NaN replaces it otherwise.

    Returns:
        The scores.

    Raises:
        UserError: The predictions break a rule of the protocol, or files are missing; the message lists all problems.
    """
    protocol = get_protocol(name)
    if split is not None and not re.fullmatch(r"[\w.-]+", split):
        raise UserError(f"A split is a plain name, such as {protocol.split}; got '{split}'.")
    result = protocol.score(EvaluationRequest(Path(predictions), Path(dataset), split or protocol.split,
                                              tuple(sequences), workers, progress, temporal))
    return replace(result, subset=tuple(sequences))


def _instances_file(request):
    path, split = request.dataset, request.split
    if not path.is_dir():
        return path
    names = (f"{split}/instances.json", f"annotations/instances_{split}.json", f"instances_{split}.json",
             f"{split}.json", "instances.json")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"'{path}' has no {split}/instances.json. Give the JSON file itself with --dataset.")
    return found


def _results_file(path):
    found = path / "results.json"
    if path.is_dir() and not found.is_file():
        raise UserError(f"'{path}' has no results.json. Give the JSON file itself with --predictions.")
    return found if path.is_dir() else path
