"""Label masks as image files: reading common mask formats, writing indexed PNG."""

import io
import os
from pathlib import Path

import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError, error_reason, nearest_hint, quoted
from uvos_jax.labels import VOID

# Gray levels from 1 up to this one are read as object ids; DAVIS and YouTube-VOS stay below.
LARGEST_GRAY_ID = 20
# A mask with more gray levels than this is antialiased rather than one with large object ids.
_FEW_LEVELS = 8
# Higher zlib levels at least double the time for little smaller files.
_COMPRESS_LEVEL = 3


def _voc_palette() -> np.ndarray:
    """Computes the color map of PASCAL VOC and DAVIS.

    The bits of a label go to red, green and blue in turn, filling each channel from its highest bit: bit 3k + c of the
    label is bit 7 - k of channel c.

    Returns:
        uint8 [256, 3], RGB.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        shift, channel = divmod(bit, 3)
        palette[:, channel] |= ((labels >> bit & 1) << (7 - shift)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


def read_mask(path: str | os.PathLike, numbered: bool = False) -> np.ndarray:
    """Reads the labels of a mask file.

    The meaning of the pixels depends on how they are stored:

    - indexed (palette): the indices are labels, 255 is void;
    - 1 bit: labels 0 and 1;
    - gray with one value, or with 0 and one other value: labels 0 and 1 (an image of one nonzero value is all 1);
    - gray with two or more levels other than 255, none above 20: object ids, 255 is void. So {0, 255} is one object,
      and {0, 1, 255} is one object and void. JPEG is excluded, since its compression changes levels;
    - gray with a fully opaque alpha channel: one object, as in gray (DAVIS-2016 has such files).

    Args:
        path: An image file, preferably PNG.
        numbered: The mask is known to hold object ids, so gray levels are labels: {0, 2} is object 2, and {0, 255} is
            void.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: The file does not exist, is not an image, or its pixels are not clearly labels: a color image, an
            antialiased or compressed mask, 16 bits.
    """
    pixels, mode, file_format = _decode(Path(path))
    if mode == "P":
        return pixels
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "L":
        return _labels_of_gray(path, pixels, "JPEG" if file_format == "JPEG" else "plain", numbered)
    if mode == "LA":
        if pixels[..., 1].min() < 255:
            raise UserError(f"The mask {quoted(path)} is partly transparent. Save it without an alpha channel.")
        return _labels_of_gray(path, pixels[..., 0], "alpha", numbered)
    raise UserError(
        f"The mask {quoted(path)} is {_mode_text(mode)}, not a label image. "
        "Save it as an indexed (palette) PNG, or as one gray channel of 0/255 or object ids."
    )


def read_palette(path: str | os.PathLike) -> np.ndarray | None:
    """Reads the palette of an indexed mask, to write masks in the same colors.

    Args:
        path: A mask that ``read_mask`` takes.

    Returns:
        uint8 [256, 3], RGB, completed with the colors of ``PALETTE``. None for a mask that is not indexed, or whose
        palette has a color darker than the background: ``check_palette`` would reject masks written with it.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode != "P":
            return None
        colors = np.array(image.getpalette("RGB") or PALETTE.ravel(), np.uint8).reshape(-1, 3)
    palette = np.concatenate([colors, PALETTE[len(colors):]])
    brightness = palette.sum(1, dtype=int)
    return palette if brightness.min() == brightness[0] else None


def write_mask(path: str | os.PathLike, labels: np.ndarray, palette: np.ndarray = PALETTE) -> None:
    """Writes labels as an indexed PNG, atomically.

    Args:
        path: The file to write, in an existing folder; an existing file is replaced.
        labels: Integer or bool [h, w], 0..255.
        palette: uint8 [256, 3], RGB.

    Raises:
        ValueError: The labels have another shape, dtype or range.
        UserError: The file cannot be written.
    """
    atomic_write(path, encode_mask(labels, palette))


def encode_mask(labels: np.ndarray, palette: np.ndarray = PALETTE) -> bytes:
    """Encodes labels as the content of an indexed PNG file.

    Args:
        labels: Integer or bool [h, w], 0..255.
        palette: uint8 [256, 3], RGB.

    Raises:
        ValueError: The labels have another shape, dtype or range.
    """
    from PIL import Image

    image = Image.fromarray(_as_uint8(labels))
    image.putpalette(palette.tobytes())  # turns the gray image into an indexed one with the same bytes
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()


def _as_uint8(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "bui":
        raise ValueError(f"labels must be integers [h, w], not {labels.dtype} {list(labels.shape)}")
    if labels.dtype not in (bool, np.uint8) and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"labels must be 0..255, not {labels.min()}..{labels.max()}")
    return np.ascontiguousarray(labels, np.uint8)


def _decode(path: Path) -> tuple[np.ndarray, str, str]:
    """Returns the stored pixels of an image file, its Pillow mode and its format."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image)
            check_palette(image, pixels, path)
            return pixels, image.mode, image.format
    except UserError:
        raise
    except FileNotFoundError as error:
        names = [name for name in os.listdir(path.parent) if name != path.name] if path.parent.is_dir() else ()
        raise UserError(f"The mask {quoted(path)} does not exist.{nearest_hint(path.name, names)}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"The mask {quoted(path)} is not an image file.") from error
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UserError(f"Cannot read the mask {quoted(path)}: {error_reason(error)}.") from error


def check_palette(image, pixels: np.ndarray, path: str | os.PathLike) -> None:
    """Checks that the indices of an indexed image are labels and not colors of a quantized image.

    In masks the background is index 0 and black. Programs that reduce an image to few colors order the palette
    differently, so a bright entry 0, or a used color darker than entry 0, shows that the indices are not labels.

    Args:
        image: A Pillow image of any mode; only mode P is checked.
        pixels: Its pixels.
        path: Its file, for the message.

    Raises:
        UserError: The indices are not labels.
    """
    if image.mode != "P":
        return
    brightness = np.array(image.getpalette("RGB") or PALETTE.ravel(), int).reshape(-1, 3).sum(1)
    used = np.flatnonzero(np.bincount(pixels.ravel()))
    used = used[used < len(brightness)]
    if brightness[0] > 3 * 128 or (brightness[used] < brightness[0]).any():
        raise UserError(f"The mask {quoted(path)} has a palette whose entry 0 is not the dark background, so its "
                        "indices are not object ids. Save it with object ids as indices and black as entry 0.")


def _labels_of_gray(path: str | os.PathLike, gray: np.ndarray, form: str, numbered: bool) -> np.ndarray:
    """Returns the labels of a gray mask; ``form`` is "plain", "alpha" (it has that channel) or "JPEG"."""
    may_hold_ids = form == "plain" or (form == "alpha" and numbered)
    levels = np.flatnonzero(np.bincount(gray.ravel()))
    if not numbered and (levels.size == 1 or (levels.size == 2 and levels[0] == 0)):
        return (gray > 0).astype(np.uint8)
    numbers = levels[levels != VOID]
    if may_hold_ids and numbers.size >= 2 - numbered and numbers[-1] <= LARGEST_GRAY_ID:
        return gray
    if may_hold_ids and numbered and not numbers.size:
        return gray
    if levels.size <= _FEW_LEVELS and may_hold_ids:
        raise UserError(
            f"The mask {quoted(path)} has the gray levels {', '.join(map(str, levels))}, which are neither 0/255 nor "
            f"object ids up to {LARGEST_GRAY_ID}. Threshold it at 128, or save it as an indexed (palette) PNG of "
            "object ids."
        )
    if levels.size <= _FEW_LEVELS and form == "alpha":
        raise UserError(
            f"The mask {quoted(path)} has the gray levels {', '.join(map(str, levels))} and an alpha channel, which "
            "allows one object only. Save it without the alpha channel."
        )
    raise UserError(
        f"The mask {quoted(path)} has too many gray levels, so it was antialiased or saved as JPEG. "
        "Threshold it at 128, or resize with nearest neighbor, and save it as PNG."
    )


def _mode_text(mode: str) -> str:
    if mode[0] in "IF":  # Pillow's modes for gray of 16 and 32 bits
        return "an image of 16 bits or more"
    return f"an {mode} image" if mode[0] in "RLH" else f"a {mode} image"
