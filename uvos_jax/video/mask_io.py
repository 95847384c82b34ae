"""Label masks as image files: reading what people have, writing indexed PNG."""

import io
import os
from pathlib import Path

import numpy as np

from uvos_jax.atomic_io import atomic_write
from uvos_jax.errors import UserError, error_reason, nearest_hint, quoted

VOID = 255
# Gray levels from 1 up to this one are taken as object numbers; DAVIS and YouTube-VOS stay below.
LARGEST_GRAY_ID = 20
# A mask with more gray levels than this is a blurred one, not one with oddly numbered objects.
_FEW_LEVELS = 8
# Above this zlib level the time doubles or worse, and the files shrink little.
_COMPRESS_LEVEL = 3


def _voc_palette() -> np.ndarray:
    """Computes the color map of PASCAL VOC and DAVIS.

    The bits of a label are dealt to red, green and blue in turn, and each channel is filled from its highest
    bit downwards: bit 3k + c of the label is bit 7 - k of channel c.

    Returns:
        uint8 [256, 3], RGB.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        place, channel = divmod(bit, 3)
        palette[:, channel] |= ((labels >> bit & 1) << (7 - place)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


def read_mask(path: str | os.PathLike, numbered: bool = False) -> np.ndarray:
    """Reads the labels of a mask file.

    What the pixels mean depends on how they are stored:

    - indexed (palette): their indices, with 255 for void;
    - 1 bit: 0 and 1;
    - gray holding one value, or 0 and one other value: 0 and 1, whatever the other value is (an image
      all of one value other than 0 is all 1);
    - gray whose levels, apart from 255, are two or more and at most 20: object numbers, with 255 for void.
      So {0, 255} is one object, and {0, 1, 255} is one object and void. JPEG is excluded here, since its
      losses turn one number into another;
    - gray with a fully opaque alpha channel: as gray with one object (DAVIS-2016 has such files).

    Args:
        path: An image file, best a PNG.
        numbered: The mask is known to hold object numbers, so that gray levels stand for themselves, {0, 2} for
            object 2 and {0, 255} for void.

    Returns:
        uint8 [h, w].

    Raises:
        UserError: There is no such file, it is no image, or its pixels cannot be read as labels without
            guessing: a color picture, an antialiased or compressed mask, 16 bits.
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
            raise UserError(f"{quoted(path)} is partly transparent, not a plain mask; save it without alpha.")
        return _labels_of_gray(path, pixels[..., 0], "alpha", numbered)
    raise UserError(
        f"{quoted(path)} is {_kind_of_picture(mode)}, not a label mask; "
        "save it as an indexed (palette) PNG or as one gray channel holding 0/255 or object numbers."
    )


def read_palette(path: str | os.PathLike) -> np.ndarray | None:
    """Reads the colors of an indexed mask, for masks that are to look like it.

    Args:
        path: A mask that ``read_mask`` takes.

    Returns:
        uint8 [256, 3], RGB, with the colors of ``PALETTE`` where the file has none; None of a mask that is not
        indexed, and of one with a color darker than its background's, which could not be told from a picture.
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
    """Writes labels as an indexed PNG, in one step.

    Args:
        path: The file to write, in an existing folder; an existing file is replaced.
        labels: Integer or bool [h, w], 0..255.
        palette: uint8 [256, 3], RGB.

    Raises:
        ValueError: The labels are of another shape, dtype or range.
        UserError: The operating system refused to write the file.
    """
    atomic_write(path, encode_mask(labels, palette))


def encode_mask(labels: np.ndarray, palette: np.ndarray = PALETTE) -> bytes:
    """Returns labels as the content of an indexed PNG.

    Args:
        labels: Integer or bool [h, w], 0..255.
        palette: uint8 [256, 3], RGB.

    Raises:
        ValueError: The labels are of another shape, dtype or range.
    """
    from PIL import Image

    image = Image.fromarray(_as_uint8(labels))
    image.putpalette(palette.tobytes())  # makes a gray image an indexed one, with the same bytes
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
    """Returns the pixels of an image file as they are stored, its Pillow mode and its format."""
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
        raise UserError(f"the mask {quoted(path)} does not exist.{nearest_hint(path.name, names)}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"the mask {quoted(path)} is not an image file.") from error
    except Exception as error:  # on broken files Pillow's decoders raise whatever they stumble over
        raise UserError(f"the mask {quoted(path)} cannot be read: {error_reason(error)}.") from error


def check_palette(image, pixels: np.ndarray, path: str | os.PathLike) -> None:
    """Raises a UserError for an indexed image whose indices number colors and not objects.

    Programs that reduce a picture to few colors number these as they please. Background is 0 and black in
    masks, so it tells that entry 0 is bright, or that a pixel has a darker color.

    Args:
        image: A Pillow image of any mode.
        pixels: Its pixels.
        path: Its file, for the message.
    """
    if image.mode != "P":
        return
    brightness = np.array(image.getpalette("RGB") or PALETTE.ravel(), int).reshape(-1, 3).sum(1)
    used = np.flatnonzero(np.bincount(pixels.ravel()))
    used = used[used < len(brightness)]
    if brightness[0] > 3 * 128 or (brightness[used] < brightness[0]).any():
        raise UserError(f"{quoted(path)} has a palette whose entry 0 is not the dark background, so its indices number "
                        "colors, not objects; save it with object numbers as indices, and black as entry 0.")


def _labels_of_gray(path: str | os.PathLike, gray: np.ndarray, form: str, numbered: bool) -> np.ndarray:
    """``form`` is "plain", "alpha" where there is a channel of it, or "JPEG", which no numbers survive."""
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
            f"{quoted(path)} has the gray levels {', '.join(map(str, levels))}, which are neither 0/255 nor "
            f"object numbers up to {LARGEST_GRAY_ID}; "
            "threshold it at 128, or save it as an indexed (palette) PNG of object numbers."
        )
    if levels.size <= _FEW_LEVELS and form == "alpha":
        raise UserError(
            f"{quoted(path)} has the gray levels {', '.join(map(str, levels))} beside an alpha channel, where one "
            "level beside 0 marks one object; save it without the alpha channel."
        )
    raise UserError(
        f"{quoted(path)} has more gray levels than a mask, so it was antialiased or saved as JPEG; "
        "threshold it at 128 (or save with nearest-neighbor resizing) and save again as PNG."
    )


def _kind_of_picture(mode: str) -> str:
    if mode[0] in "IF":  # Pillow's names for gray of 16 and 32 bits
        return "a picture of 16 bits or more"
    return f"an {mode} picture" if mode[0] in "RLH" else f"a {mode} picture"
