"""Ground truth as the datasets store it. Predictions are read by stricter rules, see ``predictions``."""

import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.labels import VOID
from uvos_jax.video import read_mask
from uvos_jax.video.mask_io import check_palette

# A few FBMS sequences are stored with other gray levels; the field's conversion scripts treat them apart.
_FBMS_THRESHOLD = {"marple7": 0.05, "marple2": 0.4}
_FBMS_USUAL_THRESHOLD = 0.1


def read_foreground(path: Path) -> np.ndarray:
    """Reads a mask as DAVIS-2016 does: foreground is where any channel but alpha is above 0.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = pixels(path)
    if image.ndim == 2:
        return image > 0
    return (image[..., :-1] if mode.endswith("A") else image).any(-1)


def read_salient(path: Path, lowest: int = 129) -> np.ndarray:
    """Reads a salient-object mask: above half of the range in any channel but alpha, or any object of a label image.

    A label image is an indexed one, one of 1 bit, or one of the levels 0 and 1.

    Args:
        path: The file.
        lowest: Lowest level of the foreground; 129 is how results are scored.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = pixels(path)
    if mode in ("P", "1"):
        return image > 0
    if image.ndim == 3:
        image = (image[..., :-1] if mode.endswith("A") else image).max(-1)
    return image >= (1 if image.max() <= 1 else lowest)


def read_objects(path: Path) -> np.ndarray:
    """Reads object numbers, 255 for void.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file cannot be read, or is no label image.
    """
    return read_mask(path, numbered=True)


def read_objects_without_void(path: Path) -> np.ndarray:
    """Reads object numbers; void becomes background, as the semi-supervised protocols have it.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file cannot be read, or is no label image.
    """
    labels = read_objects(path)
    return np.where(labels == VOID, np.uint8(0), labels)


def read_fbms_foreground(path: Path, sequence: str) -> np.ndarray:
    """Reads a ground-truth file of FBMS-59 as one foreground, all moving objects merged.

    Objects are gray levels or colors. In the color files (.ppm) white is the background. Gray is divided by 255
    and compared with 0.1, 0.05 in marple7 and 0.4 in marple2, as the field's conversion scripts have it.

    Returns:
        bool [h, w].

    Raises:
        UserError: The file cannot be read.
    """
    image, mode = pixels(path)
    gray = _gray(image, mode) / 255.0
    if path.suffix.lower() == ".ppm":
        gray[gray > 0.99] = 0.0
    return gray > _FBMS_THRESHOLD.get(sequence, _FBMS_USUAL_THRESHOLD)


def image_size(path: Path) -> tuple[int, int]:
    """Reads (height, width) from the head of an image file.

    Raises:
        UserError: The file cannot be read.
    """
    with _opened(path) as image:
        return image.height, image.width


def pixels(path: Path) -> tuple[np.ndarray, str]:
    """Reads an image as it is stored.

    Returns:
        An array [h, w] or [h, w, channels], and Pillow's name of the mode.

    Raises:
        UserError: The file cannot be read.
    """
    with _opened(path) as image:
        array = np.array(image)
        check_palette(image, array, path)
        return array, image.mode


def _gray(image, mode):
    """Luma of a gray or color image, 0..255, as Pillow and OpenCV weigh the channels."""
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
    except Exception as error:  # on broken files Pillow's decoders raise whatever they stumble over
        raise UserError(f"'{path}' cannot be read as an image: {' '.join(str(error).split())}.") from error
