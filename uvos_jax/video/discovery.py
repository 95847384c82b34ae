"""From what a user names to single videos: folders of videos, folders of folders of frames, patterns, many of them."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from uvos_jax.errors import UserError, error_reason, quoted
from uvos_jax.video.image_io import IMAGE_SUFFIXES, is_image, list_images, natural_sort
from uvos_jax.video.result_writer import RESULTS

# What counts as a video inside a folder or a pattern, where nobody has named the file itself.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".gif", ".apng", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".mts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".vob", ".y4m", ".h264", ".hevc"),
)
KINDS_OF_IMAGES = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def list_sources(inputs: Sequence[str | os.PathLike]) -> list[str]:
    """Expands what stands for many videos into what ``open_source`` takes.

    Args:
        inputs: Each a single video in any form that ``open_source`` takes; a folder of video files, or of folders of
            frames; or a glob pattern of these. Hidden files are ignored. A folder of images, and a pattern of images,
            is one video.

    Returns:
        One item for each video, in the order of the inputs and in natural order within each; none twice.

    Raises:
        UserError: There is nothing usable, or it cannot be told whether videos or frames are meant.
    """
    inputs = [os.fspath(given) for given in inputs]
    if not inputs:
        raise UserError("no input was given; name a video file or a folder of frames.")
    images = [text for text in inputs if is_image(Path(text)) and os.path.isfile(text)]
    if len(images) > 1:
        parent = os.path.dirname(images[0]) or "."
        raise UserError(
            f"{len(images)} single images were given, {quoted(images[0])} first; for the frames of one video give "
            f"their folder, {quoted(parent)}, or put the pattern in quotes."
        )
    found = [source for text in inputs for source in _expanded(text)]
    return list({os.path.realpath(source) if os.path.exists(source) else source: source for source in found}.values())


def is_video_name(path: Path) -> bool:
    """Tells by name alone whether ``path`` counts as a video; hidden files never do."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def is_pattern(text: str) -> bool:
    """Tells whether ``text`` holds a wildcard."""
    return any(wildcard in text for wildcard in "*?[")


def folder_frames(folder: Path) -> list[Path]:
    """Returns the frames in a folder that is to be one video.

    Args:
        folder: An existing folder.

    Raises:
        UserError: It holds no images, or videos beside them, or may not be listed.
    """
    images, videos = list_images(folder), _videos_in(folder)
    if images and videos:
        raise _both(folder, images, videos)
    if images:
        return images
    if videos:
        raise UserError(
            f"the folder {quoted(folder)} holds {_and_more(videos, 'video')}, not the frames of one; name one of them."
        )
    usable = _folders_of_frames(folder)
    if usable:
        others = f" (and {len(usable) - 1} more)" if len(usable) > 1 else ""
        raise UserError(
            f"the folder {quoted(folder)} holds no frames itself, but its subfolder {usable[0].name!r}{others} "
            "does; give the folder of one video."
        )
    raise UserError(f"the folder {quoted(folder)} holds no frames ({KINDS_OF_IMAGES}).{_where_videos_are(folder)}")


def _expanded(text: str) -> list[str]:
    path = Path(text)
    if os.path.isdir(text):
        images, videos = list_images(path), _videos_in(path)
        if images and videos:
            raise _both(path, images, videos)
        if images:
            return [text]
        found = videos or _folders_of_frames(path)
        if not found:
            raise UserError(
                f"the folder {quoted(path)} holds neither videos nor frames ({KINDS_OF_IMAGES}), nor folders of "
                f"frames.{_where_videos_are(path)}"
            )
        return [os.fspath(source) for source in found]
    if os.path.exists(text) or not is_pattern(text):
        return [text]
    matches = [Path(match) for match in glob.glob(text, recursive=True)]
    images = natural_sort(match for match in matches if is_image(match) and not match.is_dir())
    videos = natural_sort(
        match for match in matches if (_holds_frames(match) if match.is_dir() else is_video_name(match))
    )
    if images and videos:
        raise UserError(
            f"the pattern {quoted(text)} matches images ({images[0].name!r}) and videos ({videos[0].name!r}); "
            f"say which, as in {quoted(Path(text).with_name('*' + images[0].suffix))} or "
            f"{quoted(Path(text).with_name('*' + videos[0].suffix))}."
        )
    if images:
        return [text]
    if not videos:
        found = "matches no video and no image" if matches else "matches nothing"
        raise UserError(f"the pattern {quoted(text)} {found}; it should match videos, or the frames of one video.")
    return [os.fspath(source) for source in videos]


def _videos_in(folder: Path) -> list[Path]:
    return natural_sort(path for path in _entries(folder) if is_video_name(path) and not path.is_dir())


def _folders_of_frames(folder: Path) -> list[Path]:
    return natural_sort(path for path in _entries(folder) if path.is_dir() and _holds_frames(path))


def _holds_frames(folder: Path) -> bool:
    """Tells whether a folder that nobody has named is one video; one that may not be listed is none."""
    try:
        return not folder.name.startswith(".") and bool(list_images(folder)) and not _videos_in(folder)
    except UserError:
        return False


def _entries(folder: Path) -> Iterable[Path]:
    """Returns what lies in a folder, without what a run of uvos has made there."""
    try:
        entries = list(folder.iterdir())
        own = RESULTS if (folder / "run.json").is_file() else ()
        return [path for path in entries if path.name not in own]
    except OSError as error:
        raise UserError(f"cannot list the folder {quoted(folder)}: {error_reason(error)}.") from error


def _where_videos_are(folder: Path) -> str:
    """Returns a hint at videos one level below, or nothing."""
    for below in natural_sort(path for path in _entries(folder) if path.is_dir()):
        if os.access(below, os.R_OK | os.X_OK) and _videos_in(below):
            return f" Its subfolder {below.name!r} holds videos; give {quoted(below)} or {quoted(folder / '*' / '*')}."
    return ""


def _both(folder: Path, images: list[Path], videos: list[Path]) -> UserError:
    return UserError(
        f"the folder {quoted(folder)} holds images ({images[0].name!r}) and videos ({videos[0].name!r}); say which "
        f"with a pattern: {quoted(folder / ('*' + images[0].suffix))} or {quoted(folder / ('*' + videos[0].suffix))}."
    )


def _and_more(paths: list[Path], what: str) -> str:
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"the {what} {paths[0].name!r}{others}"
