"""Readers of ground-truth files. ``evaluation.predictions`` has stricter rules for predictions."""

import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.video import read_mask
from uvos_jax.video.mask_io import check_palette

# Some FBMS sequences use other gray levels; the published conversion scripts have exceptions for them.
_FBMS_THRESHOLD = {"marple7": 0.05, "marple2": 0.4}
_FBMS_DEFAULT_THRESHOLD = 0.1


def read_foreground(path: Path) -> np.ndarray:
    """Reads a mask as in DAVIS-2016: foreground is any channel except alpha above 0.

    Args:
        path: The file.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = read_pixels(path)
    if image.ndim == 2:
        return image > 0
    return (image[..., :-1] if mode.endswith("A") else image).any(-1)


def read_salient(path: Path, lowest: int = 129) -> np.ndarray:
    """Reads a salient-object mask.

    Foreground is the upper half of the range in any channel except alpha, or any object of a label image. Indexed
    images, 1-bit images and images with levels 0 and 1 are label images.

    Args:
        path: The file.
        lowest: Lowest foreground level; 129 is the level used for scoring.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = read_pixels(path)
    if mode in ("P", "1"):
        return image > 0
    if image.ndim == 3:
        image = (image[..., :-1] if mode.endswith("A") else image).max(-1)
    return image >= (1 if image.max() <= 1 else lowest)


def read_objects(path: Path) -> np.ndarray:
    """Reads object ids, 255 for void.

    Args:
        path: The file.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file cannot be read, or is not a label image.
    """
    return read_mask(path, numbered=True)


def read_objects_without_void(path: Path) -> np.ndarray:
    """Reads object ids; void becomes background, as in the semi-supervised protocols.

    Args:
        path: The file.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file cannot be read, or is not a label image.
    """
    labels = read_objects(path)
    return np.where(labels == VOID, np.uint8(0), labels)


def read_fbms_foreground(path: Path, sequence: str) -> np.ndarray:
    """Reads a ground-truth file of FBMS-59 as one foreground that merges all moving objects.

    Objects are gray levels or colors. In color files (.ppm) white is background. Gray is divided by 255 and compared
    with 0.1, with 0.05 in marple7 and with 0.4 in marple2, as in the published conversion scripts.

    Args:
        path: The file, PGM, PPM or PNG.
        sequence: Name of the sequence.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = read_pixels(path)
    gray = _gray(image, mode) / 255.0
    if path.suffix.lower() == ".ppm":
        gray[gray > 0.99] = 0.0
    return gray > _FBMS_THRESHOLD.get(sequence, _FBMS_DEFAULT_THRESHOLD)


def image_size(path: Path) -> tuple[int, int]:
    """Reads the size of an image from the header of its file.

    Args:
        path: The file.

    Returns:
        ``(height, width)`` in pixels.

    Raises:
        UserError: The file cannot be read.
    """
    with _opened(path) as image:
        return image.height, image.width


def read_pixels(path: Path) -> tuple[np.ndarray, str]:
    """Reads an image as it is stored.

    Args:
        path: The file.

    Returns:
        An array [h, w] or [h, w, channels] of the file's dtype, and Pillow's mode, such as ``"L"``.

    Raises:
        UserError: The file cannot be read.
    """
    with _opened(path) as image:
        array = np.array(image)
        check_palette(image, array, path)
        return array, image.mode


def _gray(image, mode):
    """Returns the luma of a gray or color image, 0..255, with the channel weights of Pillow and OpenCV."""
    if mode in ("L", "P"):
        return image.astype(np.float64)
    if mode == "1":
        return image * 255.0
    if mode == "LA":
        return image[..., 0].astype(np.float64)
    if image.ndim == 3 and image.shape[2] >= 3:
        return np.round(image[..., :3] @ np.array([0.299, 0.587, 0.114]))
    return image * (255.0 / max(np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1, 1))


@contextmanager
def _opened(path):
    from PIL import Image

    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            opened = Image.open(path)
        with opened as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on broken files
        raise UserError(f"'{path}' cannot be read as an image: {' '.join(str(error).split())}.") from error
