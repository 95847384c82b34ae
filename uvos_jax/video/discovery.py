"""Expanding the inputs of a user into single videos: folders of videos, folders of frame folders, glob patterns."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.image_io import IMAGE_SUFFIXES, is_image, list_images, natural_sort
from uvos_jax.video.result_writer import RESULTS

# Suffixes that count as a video inside a folder or a pattern. A file named directly may have any suffix.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".gif", ".apng", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".mts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".vob", ".y4m", ".h264", ".hevc"),
)
IMAGE_KINDS = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def list_sources(inputs: Sequence[str | os.PathLike]) -> list[str]:
    """Expands inputs that stand for several videos into single inputs of ``open_source``.

    Args:
        inputs: Each is a single video in any form that ``open_source`` takes; a folder of video files or of frame
            folders; or a glob pattern of these. Hidden files are ignored. A folder of images and a pattern of images
            are one video each.

    Returns:
        One item per video without duplicates, in the order of the inputs and in natural order within each.

    Raises:
        UserError: An input has neither videos nor frames, or has both.
    """
    inputs = [os.fspath(text) for text in inputs]
    if not inputs:
        raise UserError("No input given. Give a video file or a folder of frames.")
    images = [text for text in inputs if is_image(Path(text)) and os.path.isfile(text)]
    if len(images) > 1:
        parent = os.path.dirname(images[0]) or "."
        raise UserError(
            f"{len(images)} single images given, {quoted(images[0])} first. For the frames of one video, give "
            f"their folder, {quoted(parent)}, or put the pattern in quotes."
        )
    found = [source for text in inputs for source in _expanded(text)]
    return list({os.path.realpath(source) if os.path.exists(source) else source: source for source in found}.values())


def is_video_name(path: Path) -> bool:
    """Returns whether the name of ``path`` is that of a video; hidden files never count."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def is_pattern(text: str) -> bool:
    """Returns whether ``text`` contains a wildcard."""
    return any(wildcard in text for wildcard in "*?[")


def folder_frames(folder: Path) -> list[Path]:
    """Lists the frames in the folder of one video.

    Args:
        folder: An existing folder.

    Returns:
        The image files in natural order.

    Raises:
        UserError: The folder has no images, has videos beside them, or cannot be listed.
    """
    images, videos = list_images(folder), _videos_in(folder)
    if images and videos:
        raise _mixed_error(folder, images, videos)
    if images:
        return images
    if videos:
        raise UserError(
            f"The folder {quoted(folder)} has videos instead of frames: {_and_more(videos)}. Give one of them."
        )
    subfolders = _frame_folders(folder)
    if subfolders:
        raise UserError(
            f"The folder {quoted(folder)} has no frames, but subfolders with frames: {_and_more(subfolders)}. "
            "Give the folder of one video."
        )
    raise UserError(f"The folder {quoted(folder)} has no frames ({IMAGE_KINDS}).{_subfolder_hint(folder)}")


def _expanded(text: str) -> list[str]:
    path = Path(text)
    if os.path.isdir(text):
        images, videos = list_images(path), _videos_in(path)
        if images and videos:
            raise _mixed_error(path, images, videos)
        if images:
            return [text]
        found = videos or _frame_folders(path)
        if not found:
            raise UserError(
                f"The folder {quoted(path)} has neither videos, nor frames ({IMAGE_KINDS}), nor folders of "
                f"frames.{_subfolder_hint(path)}"
            )
        return [os.fspath(source) for source in found]
    if os.path.exists(text) or not is_pattern(text):
        return [text]
    matches = [Path(match) for match in glob.glob(text, recursive=True)]
    images = natural_sort(match for match in matches if is_image(match) and not match.is_dir())
    videos = natural_sort(
        match for match in matches if (_is_frame_folder(match) if match.is_dir() else is_video_name(match))
    )
    if images and videos:
        raise UserError(
            f"The pattern {quoted(text)} matches images ({images[0].name!r}) and videos ({videos[0].name!r}). "
            f"Give one kind: {quoted(Path(text).with_name('*' + images[0].suffix))} or "
            f"{quoted(Path(text).with_name('*' + videos[0].suffix))}."
        )
    if images:
        return [text]
    if not videos:
        problem = "matches no video and no image" if matches else "matches nothing"
        raise UserError(f"The pattern {quoted(text)} {problem}. Give a pattern of videos or of frames.")
    return [os.fspath(source) for source in videos]


def _videos_in(folder: Path) -> list[Path]:
    return natural_sort(path for path in _entries(folder) if is_video_name(path) and not path.is_dir())


def _frame_folders(folder: Path) -> list[Path]:
    return natural_sort(path for path in _entries(folder) if path.is_dir() and _is_frame_folder(path))


def _is_frame_folder(folder: Path) -> bool:
    """Returns whether a subfolder is one video; a folder that cannot be listed is not."""
    try:
        return not folder.name.startswith(".") and bool(list_images(folder)) and not _videos_in(folder)
    except UserError:
        return False


def _entries(folder: Path) -> Iterable[Path]:
    """Returns the content of a folder without the results of an earlier run."""
    try:
        entries = list(folder.iterdir())
        results = RESULTS if (folder / "run.json").is_file() else ()
        return [path for path in entries if path.name not in results]
    except OSError as error:
        raise UserError(f"Cannot list the folder {quoted(folder)}: {error_reason(error)}.") from error


def _subfolder_hint(folder: Path) -> str:
    """Returns a sentence about videos one level below, or an empty string."""
    for below in natural_sort(path for path in _entries(folder) if path.is_dir()):
        if os.access(below, os.R_OK | os.X_OK) and _videos_in(below):
            return f" Its subfolder {below.name!r} has videos. Give {quoted(below)} or {quoted(folder / '*' / '*')}."
    return ""


def _mixed_error(folder: Path, images: list[Path], videos: list[Path]) -> UserError:
    return UserError(
        f"The folder {quoted(folder)} has images ({images[0].name!r}) and videos ({videos[0].name!r}). Give one kind "
        f"with a pattern: {quoted(folder / ('*' + images[0].suffix))} or {quoted(folder / ('*' + videos[0].suffix))}."
    )


def _and_more(paths: list[Path]) -> str:
    return f"{paths[0].name!r}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
