"""Small video files, and functions that damage them."""

import struct
from pathlib import Path

import cv2
import numpy as np

RED, GREEN = (220, 30, 60), (20, 150, 40)


def quarter_red(height: int, width: int) -> np.ndarray:
    """A green image with a red top left quarter."""
    image = np.full((height, width, 3), GREEN, np.uint8)
    image[: height // 2, : width // 2] = RED
    return image


def moving(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """A smooth pattern that moves by four pixels a frame: something for an encoder to do."""
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    image = cv2.resize(coarse, (width, height))
    return [np.roll(image, 4 * index, axis=1) for index in range(count)]


def grays(levels, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Even images by which a frame can be told."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def make_video(path: Path, codec="libx264", images=None, rate=12, pix_fmt="yuv420p", times=None, options=None,
               container_options=None) -> Path:
    """Writes a video; ``times`` are milliseconds, one for each image."""
    import av

    images = [quarter_red(48, 64)] * 9 if images is None else images
    options = dict(options or {})
    if codec == "libx265" and len(images) < 3:
        # Up to 4.2, x265 takes the time stamps of fewer frames than its reordering delays from memory it never set
        # (github.com/Multicorewareinc/x265/issues/781). So few frames have no use for reordering.
        options["x265-params"] = ":".join(filter(None, [options.get("x265-params"), "bframes=0"]))
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], pix_fmt
        if times is not None:
            from fractions import Fraction

            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, ...]) -> None:
    """Sets the display matrix in the track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def packets(path: Path) -> list[tuple[int, int, int]]:
    """Position in the file, size and place in the order of showing of every packet, in the order of decoding."""
    import av

    with av.open(str(path)) as container:
        found = [(bytes(packet), packet.pts) for packet in container.demux(video=0) if packet.size]
    data, stamps = path.read_bytes(), sorted(pts for _, pts in found)
    return [(data.index(content), len(content), stamps.index(pts)) for content, pts in found]


def damage(path: Path, packet: int, how: str) -> int:
    """Harms a packet of a video file and returns the number of its frame.

    Args:
        path: The file, which is altered.
        packet: Index of the packet.
        how: "flip" turns nine seeded bits of it over; "fill" makes all of it ones.
    """
    position, size, frame = packets(path)[packet]
    data = bytearray(path.read_bytes())
    if how == "fill":
        data[position : position + size] = b"\xff" * size
    else:
        rng = np.random.default_rng(packet)
        for offset in rng.integers(10, size, 9):
            data[position + offset] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return frame
