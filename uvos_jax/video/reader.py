"""One way to open whatever holds frames: a video file, a folder, a glob pattern, arrays."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from pathlib import Path
from typing import Literal

import numpy as np

from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.video.files import quoted
from uvos_jax.video.image_files import IMAGE_SUFFIXES, is_image, list_images, natural_sort, read_image
from uvos_jax.video.source import DEFAULT_FPS, Frame, Source
from uvos_jax.video.video_file import probe_video, read_video

_KINDS_OF_IMAGES = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def open_source(source: str | os.PathLike | np.ndarray | Iterable | Source) -> Source:
    """Opens the frames of a video, refusing at once what could not be read later.

    Args:
        source: The path of a video file, of a folder of images (natural order; other and hidden files are
            ignored) or of a single image; a glob pattern of images; an array [t, h, w, 3] uint8; or any
            iterable of arrays [h, w, 3] uint8. Arrays are RGB. An opened source is returned as it is.

    Returns:
        The source, of which at most the first frame has been decoded.

    Raises:
        UserError: There is nothing there, or it cannot be used as a video.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source))
    if hasattr(source, "__array__"):  # NumPy's own and what converts to them, such as JAX's
        return _open_array(np.asarray(source))
    if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, Mapping, Set)):
        return _open_iterable(source)
    raise UserError(
        f"cannot read frames from {_described(source)}; "
        "give a video file, a folder of frames, a glob pattern or uint8 arrays [h, w, 3]."
    )


def _open_path(text: str) -> Source:
    path = Path(text)
    if not text:
        raise UserError("the source is an empty path; give a video file or a folder of frames.")
    if os.path.isdir(path):
        paths = list_images(path)
        if not paths:
            raise _no_images(path)
        return _open_images(paths, kind="folder", name=_folder_name(path))
    if os.path.exists(path):
        if is_image(path):
            return _open_images([path], kind="file", name=path.stem)
        info = probe_video(path)
        return Source(
            name=path.stem,
            kind="file",
            start=lambda: _video_frames(path),
            fps=info.fps or DEFAULT_FPS,
            length=info.length,
            paths=(path,),
        )
    if _is_pattern(text):
        return _open_glob(text)
    raise _missing(path)


def _open_glob(pattern: str) -> Source:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    paths = natural_sort(match for match in matches if is_image(match) and not match.is_dir())
    if not paths:
        found = "matches no image" if matches else "matches nothing"
        raise UserError(
            f"the pattern {quoted(pattern)} {found}; "
            f"it should match the frames of one video ({_KINDS_OF_IMAGES})."
        )
    folder = Path(pattern).parent
    while _is_pattern(os.fspath(folder)):
        folder = folder.parent
    return _open_images(paths, kind="glob", name=_folder_name(folder))


def _open_images(paths: list[Path], kind: Literal["file", "folder", "glob"], name: str) -> Source:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"{quoted(other)} and {quoted(path)} would overwrite each other's masks; "
                "keep one of them or rename it."
            )
    read_image(paths[0])
    return Source(
        name=name,
        kind=kind,
        start=lambda: (Frame(path.stem, read_image(path)) for path in paths),
        length=len(paths),
        paths=tuple(dict.fromkeys(path.parent for path in paths)),
    )


def _open_array(array: np.ndarray) -> Source:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(
            f"the video is {_described(array)}; "
            "it must be a uint8 array [frames, height, width, 3] in RGB order, and not empty."
        )
    return Source(name="frames", kind="iterator", start=lambda: _numbered(array), length=len(array))


def _open_iterable(frames: Iterable) -> Source:
    length = len(frames) if isinstance(frames, Sized) else None
    if length == 0:
        raise UserError(f"the {type(frames).__name__} given as the source holds no frame.")
    if isinstance(frames, Sequence):
        _checked_array(frames[0], "00000")
    return Source(
        name="frames",
        kind="iterator",
        # What makes its frames one by one may fill the same buffer again and again.
        start=lambda: _numbered(frames, copy=not isinstance(frames, Sequence)),
        length=length,
        live=length is None,
        rereadable=not isinstance(frames, Iterator),
    )


def _numbered(images: Iterable, copy: bool = False) -> Iterator[Frame]:
    for index, image in enumerate(images):
        name = f"{index:05d}"
        image = _checked_array(image, name)
        yield Frame(name, image.copy() if copy else image)


def _checked_array(item: object, name: str) -> np.ndarray:
    image = np.asarray(item)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise UserError(
            f"frame {name!r} is {_described(item)}; it must be a uint8 array [height, width, 3] in RGB order."
        )
    return image


def _video_frames(path: Path) -> Iterator[Frame]:
    # Closes the file as soon as the consumer stops, not when the collector comes by.
    with contextlib.closing(read_video(path)) as images:
        yield from _numbered(images)


def _described(item: object) -> str:
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        return f"a {item.dtype} array of shape {tuple(item.shape)}"
    return f"an object of type {type(item).__name__!r}"


def _is_pattern(text: str) -> bool:
    return any(wildcard in text for wildcard in "*?[")


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or "frames"  # the root folder has no name


def _no_images(folder: Path) -> UserError:
    """Returns the error for a folder without frames, which may be one level too high."""
    usable = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and list_images(path)]
    if usable:
        others = f" (and {len(usable) - 1} more)" if len(usable) > 1 else ""
        return UserError(
            f"the folder {quoted(folder)} holds no frames itself, but its subfolder {usable[0]!r}{others} "
            "does; give the folder of one video."
        )
    return UserError(f"the folder {quoted(folder)} holds no frames ({_KINDS_OF_IMAGES}).")


def _missing(path: Path) -> UserError:
    """Returns the error for a path that leads nowhere, blaming its first part that does not exist."""
    absent = path
    while not os.path.exists(absent.parent):
        absent = absent.parent
    try:
        hint = nearest_hint(absent.name, os.listdir(absent.parent))
    except OSError:  # the parent is a file, or may not be listed
        hint = ""
    where = f": there is no {absent.name!r} in {quoted(absent.parent)}" if absent != path else ""
    return UserError(f"{quoted(path)} does not exist{where}.{hint}")
