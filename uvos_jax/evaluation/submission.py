"""Packing results for the servers of DAVIS-2017 and YouTube-VOS."""

import zipfile
from pathlib import Path

from uvos_jax.atomic_io import atomic_path
from uvos_jax.data.datasets import ground_truth as truth
from uvos_jax.data.datasets import layouts
from uvos_jax.errors import UserError, write_error
from uvos_jax.evaluation import predictions
from uvos_jax.evaluation.predictions import Complaints
from uvos_jax.evaluation.scoring import Request, no_progress
from uvos_jax.video import encode_mask

_DAVIS = ("davis2017-semi", "davis2017-unsup")
PACKED = (*_DAVIS, "youtube-vos")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # so that the same masks make the same file


def pack(protocol: str, predicted: str | Path, dataset: str | Path, split: str, archive: str | Path, *,
         workers: int = 1, progress=no_progress) -> int:
    """Packs a folder of results into the archive that a server accepts.

    - DAVIS-2017: the sequences' folders at the top of the archive, at least two; every frame of every sequence.
    - YouTube-VOS: everything in ``Annotations/``; every frame that ``meta.json`` names, which leaves out those of the
      30-fps input; the first frame of a video is the mask given with the dataset.

    All masks become indexed PNG. Numbers above 20, masks of another size than the frames, and for the semi-supervised
    tasks objects that were never given are refused.

    Args:
        protocol: One of ``PACKED``.
        predicted: The masks.
        dataset: The dataset; frames or masks of the split must be there.
        split: Such as test-dev, or valid.
        archive: The file to write; it appears once it is complete.
        workers: Processes that read and encode.
        progress: See ``Request``.

    Returns:
        The number of masks.

    Raises:
        UserError: The results break a rule, the protocol has no server, or the archive cannot be written.
    """
    if protocol not in PACKED:
        raise UserError(f"There is no server for {protocol}; --pack is for {', '.join(PACKED)}.")
    archive = Path(archive)
    if archive.suffix != ".zip":
        raise UserError(f"--pack wants the name of a zip file; got '{archive}'.")
    request = Request(Path(predicted), Path(dataset), split, workers=workers, progress=progress)
    sequences, first = _sequences(protocol, request)
    if protocol in _DAVIS and len(sequences) < 2:
        raise UserError(f"The server refuses an archive with a single folder, and the {split} split has only"
                        f" '{sequences[0].name}'.")
    wanted = {item.name: [frame for frame in item.frames if frame != first[item.name]] for item in sequences}
    files = predictions.find(request.predictions, wanted)
    above = "Annotations/" if protocol == "youtube-vos" else ""
    limited = protocol != "davis2017-unsup"
    jobs = [(item, files[item.name], first[item.name], limited) for item in sequences]
    try:
        with atomic_path(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
            count = 0
            for item, masks in zip(sequences, request.each(_encode, jobs), strict=True):
                for frame, data in masks.items():
                    entry = zipfile.ZipInfo(f"{above}{item.name}/{frame}.png", _FIXED_TIME)
                    entry.external_attr = 0o644 << 16  # readable by all once unpacked
                    packed.writestr(entry, data)
                    count += 1
    except OSError as error:
        raise write_error(archive, error) from error
    return count


def _sequences(protocol, request):
    """The sequences, and for each the frame whose mask is given (None where every frame is predicted)."""
    if protocol == "youtube-vos":
        sequences, _ = layouts.youtube_vos(request.dataset, request.split)
        without = [item.name for item in sequences if item.frames[0] not in item.given]
        if without:
            raise UserError(f"The masks of the first frames are not in '{request.dataset}': {', '.join(without)}.")
        return sequences, {item.name: item.frames[0] for item in sequences}
    if protocol == "davis2017-unsup":
        sequences = layouts.davis_unsupervised(request.dataset, request.split)
    else:
        sequences = layouts.davis(request.dataset, 2017, request.split)
    return sequences, {item.name: None for item in sequences}


def _encode(job):
    sequence, files, first, limited = job
    complaints = Complaints(sequence.name, sequence.frames)
    shape = truth.image_size((*sequence.images, *sequence.given.values())[0])
    # What may be predicted in the semi-supervised tasks: the objects of the masks that come with the dataset.
    largest = max((_objects(path) for path in sequence.given.values()), default=None) if limited else None
    encoded = {}
    for frame in sequence.frames:
        if frame == first:
            encoded[frame] = _given(sequence.given[frame])
            continue
        labels = complaints.read(frame, files[frame], predictions.read_objects, shape)
        if labels is None:
            continue
        if largest is not None and labels.max() > largest:
            complaints.note(frame, f"holds object {labels.max()}, but {largest} were given")
        encoded[frame] = encode_mask(labels)
    return encoded, complaints.found()


def _given(path):
    """The content of a given mask: the file's own where it is an indexed PNG already."""
    labels = truth.read_objects(path)
    data = path.read_bytes()
    return data if data.startswith(b"\x89PNG") and truth.pixels(path)[1] == "P" else encode_mask(labels)


def _objects(path):
    labels = truth.read_objects(path)
    return int(labels[labels != 255].max(initial=0))
