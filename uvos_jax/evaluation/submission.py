"""Pack predictions for the evaluation servers of DAVIS-2017 and YouTube-VOS."""

import zipfile
from pathlib import Path

from uvos_jax.atomic_io import atomic_path
from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError, write_error
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import FrameProblems
from uvos_jax.evaluation.scoring import EvaluationRequest, no_progress
from uvos_jax.labels import VOID
from uvos_jax.video import encode_mask

_DAVIS_2017 = ("davis2017-semi", "davis2017-unsup")
PACKABLE_PROTOCOLS = (*_DAVIS_2017, "youtube-vos")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # a constant time stamp makes archives of equal masks byte-identical


def pack(protocol: str, predicted: str | Path, dataset: str | Path, split: str, archive: str | Path, *,
         workers: int = 1, progress=no_progress) -> int:
    """Packs a folder of predictions into the archive that the server accepts.

    - DAVIS-2017: one folder per sequence at the top of the archive, at least two; every frame of every sequence.
    - YouTube-VOS: one folder per video in ``Annotations/``; the frames named in ``meta.json``, without the other frames
      of the 30-fps input; the first frame of a video is the mask given in the dataset.

    All masks are written as indexed PNG. Object ids above 20, masks whose size differs from the frames and, in the
    semi-supervised tasks, objects without a given mask are errors.

    Args:
        protocol: One of ``PACKABLE_PROTOCOLS``.
        predicted: Folder of the predicted masks.
        dataset: Folder of the dataset; it must contain frames or masks of the split.
        split: Split of the dataset, such as test-dev or valid.
        archive: Path of the zip file; it is renamed into place once complete.
        workers: Number of processes that read and encode masks.
        progress: See ``EvaluationRequest``.

    Returns:
        The number of masks in the archive.

    Raises:
        UserError: The predictions break a rule, the protocol has no server, or the archive cannot be written.
    """
    if protocol not in PACKABLE_PROTOCOLS:
        raise UserError(f"{protocol} has no evaluation server; --pack supports {', '.join(PACKABLE_PROTOCOLS)}.")
    archive = Path(archive)
    if archive.suffix != ".zip":
        raise UserError(f"--pack needs the name of a .zip file; got '{archive}'.")
    request = EvaluationRequest(Path(predicted), Path(dataset), split, workers=workers, progress=progress)
    sequences, first = _sequences(protocol, request)
    if protocol in _DAVIS_2017 and len(sequences) < 2:
        raise UserError(f"The server rejects archives with a single folder, and the {split} split has only"
                        f" '{sequences[0].name}'. Pack the whole split.")
    wanted = {item.name: [frame for frame in item.frames if frame != first[item.name]] for item in sequences}
    paths = predictions.find_predictions(request.predictions, wanted)
    prefix = "Annotations/" if protocol == "youtube-vos" else ""
    is_semi_supervised = protocol != "davis2017-unsup"
    jobs = [(item, paths[item.name], first[item.name], is_semi_supervised) for item in sequences]
    try:
        with atomic_path(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
            count = 0
            for item, masks in zip(sequences, request.run(_encode, jobs), strict=True):
                for frame, data in masks.items():
                    entry = zipfile.ZipInfo(f"{prefix}{item.name}/{frame}.png", _FIXED_TIME)
                    entry.external_attr = 0o644 << 16  # permissions rw-r--r-- after extraction
                    packed.writestr(entry, data)
                    count += 1
    except OSError as error:
        raise write_error(archive, error) from error
    return count


def _sequences(protocol, request):
    """Returns the sequences and, by name, the frame whose mask is given (None if every frame is predicted)."""
    if protocol == "youtube-vos":
        sequences, _ = layouts.youtube_vos(request.dataset, request.split)
        missing = [item.name for item in sequences if item.frames[0] not in item.given]
        if missing:
            raise UserError(f"First-frame masks are missing in '{request.dataset}': {', '.join(missing)}.")
        return sequences, {item.name: item.frames[0] for item in sequences}
    if protocol == "davis2017-unsup":
        sequences = layouts.davis_unsupervised(request.dataset, request.split)
    else:
        sequences = layouts.davis(request.dataset, 2017, request.split)
    return sequences, {item.name: None for item in sequences}


def _encode(job):
    sequence, paths, first, is_semi_supervised = job
    problems = FrameProblems(sequence.name, sequence.frames)
    shape = truth.image_size((*sequence.images, *sequence.given.values())[0])
    # In the semi-supervised tasks predictions may contain only objects of the masks given in the dataset.
    largest = None
    if is_semi_supervised:
        largest = max((_largest_object_id(path) for path in sequence.given.values()), default=None)
    encoded = {}
    for frame in sequence.frames:
        if frame == first:
            encoded[frame] = _encode_given(sequence.given[frame])
            continue
        labels = problems.read(frame, paths[frame], predictions.read_objects, shape)
        if labels is None:
            continue
        if largest is not None and labels.max() > largest:
            problems.add(frame, f"contains object id {labels.max()}; the largest given id is {largest}")
        encoded[frame] = encode_mask(labels)
    return encoded, problems.report()


def _encode_given(path):
    """Returns a given mask as PNG: the bytes of the file if it is an indexed PNG, otherwise its labels re-encoded."""
    labels = truth.read_objects(path)
    data = path.read_bytes()
    return data if data.startswith(b"\x89PNG") and truth.read_pixels(path)[1] == "P" else encode_mask(labels)


def _largest_object_id(path):
    labels = truth.read_objects(path)
    return int(labels[labels != VOID].max(initial=0))
