"""The table of protocols, and ``evaluate``, which scores a folder of results by one of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.evaluation import davis, youtube_vis, youtube_vos
from uvos_jax.evaluation import fbms_youtube_objects as foreground
from uvos_jax.evaluation import saliency_protocol as salient
from uvos_jax.evaluation.report import Result
from uvos_jax.evaluation.scoring import Request, no_progress

RULE_YOUTUBE_VIS = ("IoU of two tracks is the sum of intersections over frames by that of unions; COCO's greedy"
                    " matching by score at IoU 0.50:0.05:0.95, 101 recall points, at most 100 tracks a video and"
                    " category, crowds ignored; AP is the mean over categories; sizes by a track's mean area, below"
                    " 128^2 and above 256^2; per frame, each mask with its track's score, sizes by COCO's 32^2 and"
                    " 96^2")


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored.

    Attributes:
        rule: Its fine print in one line.
        score: Scores a request.
        split: The usual split.
    """

    rule: str
    score: Callable[[Request], Result]
    split: str


def _youtube_vis(request: Request) -> Result:
    """Average precision of tracks, class-aware and class-agnostic, and of the masks of single frames.

    Results in which no track has a category, as of a class-agnostic model, are scored without the class-aware part.
    """
    if request.only:
        raise UserError("youtube-vis scores all videos of its JSON file together; leave --sequences out.")
    instances, results = _instances(request), _results(request.predictions)
    truth, tracks = youtube_vis.read_json(instances), youtube_vis.read_json(results)
    scores: dict[str, Any] = {}
    is_listed = isinstance(tracks, list) and tracks  # if not, the class-aware part says what is wrong
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
    "fbms-j": Protocol(foreground.RULE_FBMS_J, foreground.evaluate_fbms_j, "test"),
    "fbms-f": Protocol(foreground.RULE_FBMS_F, foreground.evaluate_fbms_f, "test"),
    "youtube-objects": Protocol(foreground.RULE_YOUTUBE_OBJECTS, foreground.evaluate_youtube_objects, "test"),
    "saliency": Protocol(salient.RULE, salient.evaluate, "val"),
    "youtube-vis": Protocol(RULE_YOUTUBE_VIS, _youtube_vis, "valid"),
}


def protocol(name: str) -> Protocol:
    """Returns the row of a protocol.

    Raises:
        UserError: There is no such protocol.
    """
    if name not in PROTOCOLS:
        # One that goes on as the name does comes first: davis2017 is meant for davis2017-semi, not for davis2016.
        likely = [known for known in PROTOCOLS if name and known.startswith(name)] or PROTOCOLS
        raise UserError(f"There is no protocol '{name}'.{nearest_hint(name, likely)} There are:"
                        f" {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def evaluate(name: str, predictions: str | Path, dataset: str | Path, split: str | None = None, *,
             sequences: tuple[str, ...] = (), workers: int = 1, progress: Callable = no_progress,
             temporal: bool = True) -> Result:
    """Scores a folder of results.

    Args:
        name: A key of ``PROTOCOLS``.
        predictions: The masks, ``<sequence>/<frame>.png``; for ``youtube-vis`` a JSON file.
        dataset: The dataset as published; for ``youtube-vis`` its JSON file of instances.
        split: The protocol's usual one if None.
        sequences: Those to score, all if empty.
        workers: Processes. With more than one, the calling script needs ``if __name__ == "__main__":``.
        progress: Given the number of sequences, returns a context manager whose value is called after each.
        temporal: Whether T of ``davis2016``, which takes long, is wanted; NaN stands in its place if not.

    Returns:
        The scores.

    Raises:
        UserError: The predictions break a rule of the protocol, or something is missing; all of it is named.
    """
    row = protocol(name)
    if split is not None and not re.fullmatch(r"[\w.-]+", split):
        raise UserError(f"A split is a plain name, such as {row.split}; got '{split}'.")
    result = row.score(Request(Path(predictions), Path(dataset), split or row.split, tuple(sequences), workers,
                               progress, temporal))
    return replace(result, only=tuple(sequences))


def _instances(request):
    path, split = request.dataset, request.split
    if not path.is_dir():
        return path
    names = (f"{split}/instances.json", f"annotations/instances_{split}.json", f"instances_{split}.json",
             f"{split}.json", "instances.json")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"'{path}' has no {split}/instances.json; give the JSON file itself with --dataset.")
    return found


def _results(path):
    found = path / "results.json"
    if path.is_dir() and not found.is_file():
        raise UserError(f"'{path}' has no results.json; give the JSON file itself with --predictions.")
    return found if path.is_dir() else path
