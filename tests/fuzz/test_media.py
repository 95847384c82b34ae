"""Fuzz: damaged videos, frames and masks, decoded by FFmpeg, OpenCV and Pillow in child processes."""

import io
import json
import zlib
from functools import cache, partial

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.fuzz import command, damaged, left_behind, survey
from uvos_jax.errors import UserError
from uvos_jax.video import ClipOptions, OutputOptions, open_source, read_mask
from uvos_jax.video.image_io import read_image

SIZE = (48, 64)
FRAMES = 8
# libpng, libjpeg, libtiff and Pillow print warnings about damaged images, which cannot be disabled.
NOISE = "(?!Traceback)"
VIDEOS = {".mp4": ("libx264", "yuv420p"), ".mkv": ("mpeg4", "yuv420p"), ".avi": ("mjpeg", "yuvj420p"),
          ".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8"), ".mov": ("prores_ks", "yuva444p10le"),
          ".ts": ("mpeg2video", "yuv420p")}


def _frame(t):
    """A disk that moves over a gradient, uint8 [h, w, 3]."""
    image = np.dstack([np.tile(np.linspace(0, 255, SIZE[1]), (SIZE[0], 1))] * 3).astype(np.uint8)
    return cv2.circle(image, (10 + 5 * t, 24), 9, (250, 200, 40), -1)


@cache
def video(suffix: str, frames: int = FRAMES) -> bytes:
    """Encodes a small video in memory."""
    import av

    encoder, pixels = VIDEOS[suffix]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format={".mkv": "matroska", ".ts": "mpegts"}.get(suffix, suffix[1:])) as container:
        stream = container.add_stream(encoder, rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, pixels
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_frame(t), format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _watched(source):
    """Reads a source to its end and returns the frame names."""
    names = []
    for frame in source:
        assert frame.image.dtype == np.uint8 and frame.image.ndim == 3 and frame.image.shape[2] == 3
        names.append(frame.name)
        assert len(names) < 2000, "a small file that never ends"
    assert names and len(set(names)) == len(names)
    return names


def _video_case(seed, folder):
    rng = np.random.default_rng([1, seed])
    suffix, other = (list(VIDEOS)[(seed + step) % len(VIDEOS)] for step in (0, int(rng.integers(1, len(VIDEOS)))))
    path = folder / f"clip{suffix}"
    path.write_bytes(damaged(video(suffix), rng, video(other)))
    # Reading yields frames or raises a one-line error.
    _watched(open_source(path, ClipOptions(on_error="skip")))
    _watched(open_source(path))


def _encoded(image, suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, suffix, **options)
    return buffer.getvalue()


@cache
def _pictures():
    """Frames and masks in many image formats, by file name."""
    gray = cv2.cvtColor(_frame(2), cv2.COLOR_RGB2GRAY)
    palette = Image.fromarray((gray > 128).astype(np.uint8))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    files = {"mask.png": io.BytesIO(), "bits.png": io.BytesIO(), "moving.png": io.BytesIO()}
    palette.save(files["mask.png"], "PNG")
    Image.fromarray(gray > 128).save(files["bits.png"], "PNG")
    Image.fromarray(_frame(0)).save(files["moving.png"], "PNG", save_all=True,
                                    append_images=[Image.fromarray(_frame(t)) for t in (1, 2)])
    made = {name: file.getvalue() for name, file in files.items()}
    alpha = np.dstack([_frame(1), gray])
    made |= {"gray.png": _encoded(((gray > 128) * 255).astype(np.uint8), "PNG"),
             "deep.png": _encoded(gray.astype(np.uint16) * 257, "PNG"), "alpha.png": _encoded(alpha, "PNG"),
             "color.jpg": _encoded(_frame(3), "JPEG"), "gradual.jpg": _encoded(_frame(3), "JPEG", progressive=True),
             "color.webp": _encoded(_frame(4), "WEBP"), "color.bmp": _encoded(_frame(6), "BMP"),
             "packed.tif": _encoded(_frame(5), "TIFF", compression="tiff_lzw"), "gray.pgm": _encoded(gray, "PPM")}
    made["woven.png"] = _interlaced(gray)
    return made


def _interlaced(gray):
    """An Adam7-interlaced PNG (seven passes), which Pillow and OpenCV can read but not write."""
    rows = b""
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                                   (1, 0, 2, 1)):
        rows += b"".join(b"\0" + row.tobytes() for row in gray[top::down, left::right])
    return png(gray.shape[1], gray.shape[0], zlib.compress(rows), interlace=1)


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 0, interlace: int = 0,
        extra: bytes = b"") -> bytes:
    """A PNG from arbitrary header values, extra chunks and compressed data."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, color, 0, 0, interlace])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _repaired(data):
    """The PNG with correct checksums, so that damage passes the checksum test."""
    place, parts = 8, [data[:8]]
    while place + 12 <= len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        body = data[place + 4:place + 8 + length]
        parts += [data[place:place + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        place += 12 + length
    return b"".join(parts)


def _picture_case(seed, folder):
    from uvos_jax.data.datasets.ground_truth import read_fbms_foreground, read_foreground, read_objects, read_salient

    rng = np.random.default_rng([2, seed])
    names = list(_pictures())
    name, other = names[seed % len(names)], names[int(rng.integers(len(names)))]
    data = damaged(_pictures()[name], rng, _pictures()[other])
    if name.endswith("png") and rng.random() < 0.7:
        data = _repaired(data)
    path = folder / name
    path.write_bytes(data)
    refused = 0
    readers = (read_image, read_mask, read_foreground, read_salient, read_objects,
               partial(read_fbms_foreground, sequence="cars"))
    for reader in readers:
        try:
            made = reader(path)
        except UserError:
            refused += 1
        else:
            assert made.dtype in (np.uint8, bool) and made.size and made.ndim == 2 + (reader is read_image)
    if refused == len(readers):
        raise UserError("Refused by all.")


def _flow_case(seed, folder):
    from uvos_jax.video.flow_io import read_flow, write_flow

    rng = np.random.default_rng([5, seed])
    path = folder / f"flow{('.flo', '.npy', '.png')[seed % 3]}"
    write_flow(path, rng.standard_normal((6, 8, 2)).astype(np.float32))
    path.write_bytes(damaged(path.read_bytes(), rng, _pictures()["bits.png"]))
    flow = read_flow(path)
    assert flow.dtype == np.float32 and flow.shape[2] == 2 and np.isfinite(flow).all()


def _folder_case(seed, folder):
    """A folder with one broken frame: reading stops and names it, or skips it."""
    rng = np.random.default_rng([3, seed])
    suffix = (".png", ".jpg", ".webp")[seed % 3]
    kind = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    for t in range(4):
        (folder / f"{t:05d}{suffix}").write_bytes(_encoded(_frame(t), kind))
    # Not the first frame, which defines the expected size.
    broken = folder / f"{int(rng.integers(1, 4)):05d}{suffix}"
    broken.write_bytes(damaged(broken.read_bytes(), rng, _pictures()["deep.png"]))
    frames = list(open_source(folder, ClipOptions(on_error="skip")))
    assert [frame.name for frame in frames] == [f"{t:05d}" for t in range(4)]
    assert all(frame.broken is None for frame in frames if frame.name != broken.stem)
    try:
        names = _watched(open_source(folder))
    except UserError as error:
        assert broken.stem in str(error), error
        assert frames[int(broken.stem)].broken, "stops there, but does not skip it"
        raise
    assert names == [frame.name for frame in frames] and frames[int(broken.stem)].broken is None


def _prediction_case(seed, folder):
    """A damaged mask in the predictions or the ground truth of a benchmark."""
    from tests.helpers.synthetic_store import davis, rectangle, save_masks
    from uvos_jax.evaluation.protocols import evaluate

    rng = np.random.default_rng([6, seed])
    unsupervised = bool(seed % 2)
    masks = [rectangle(5, 40, 5 + t, 30 + t, SIZE) for t in range(4)]
    davis(folder / "data", {"disc": masks}, *((2017,) if unsupervised else (2016,)),
          annotations="Annotations_unsupervised" if unsupervised else "Annotations")
    save_masks(folder / "results/disc", masks)
    truth = folder / "data" / ("Annotations_unsupervised" if unsupervised else "Annotations") / "480p/disc"
    names = [name for name in _pictures() if name.endswith(".png")]
    data, other = (_pictures()[names[int(rng.integers(len(names)))]] for _ in range(2))
    data = data if rng.random() < 0.3 else damaged(data, rng, other)
    spoilt = (folder / "results/disc" if seed % 3 else truth) / "00001.png"
    spoilt.write_bytes(_repaired(data) if rng.random() < 0.7 else data)
    protocol = "davis2017-unsup" if unsupervised else "davis2016"
    if seed % 5:
        scores = evaluate(protocol, folder / "results", folder / "data", temporal=False).scores
        assert 0 <= scores["J"]["mean"] <= 1
    else:
        command("evaluate", protocol, "--predictions", folder / "results", "--dataset", folder / "data", "--workers", 1,
                "--output", folder / "scores")
        assert left_behind(folder, "data", "results", "scores") == []


@cache
def _segmenter():
    from tests.helpers.small_adnet import small_segmenter

    return small_segmenter(short_side=33)


def _job_case(seed, folder):
    """From video to masks: one mask per readable frame, and no partial files."""
    from tests.helpers.small_adnet import SMALL
    from uvos_jax.inference.jobs.segment import segment_to_folder

    rng = np.random.default_rng([4, seed])
    suffix = (".mp4", ".avi", ".mkv", ".webm")[seed % 4]
    path, output = folder / f"clip{suffix}", folder / "results"
    path.write_bytes(damaged(video(suffix), rng, video(".gif")))
    try:
        on_error = "stop" if seed % 2 else "skip"
        if seed % 5:
            segment_to_folder(_segmenter(), open_source(path, ClipOptions(on_error=on_error)), output, chunk=4,
                              outputs=OutputOptions(json=True))
        else:
            settings = [f"--set={name}={json.dumps(value)}" for name, value in SMALL.items() if name != "short_side"]
            command("segment", path, "--output", output, "--on-error", on_error, "--model", "adnet", "--weights",
                    "random", "--size", 33, "--chunk", 4, "--json", *settings)
    except UserError:
        if output.exists():
            run = json.loads((output / "run.json").read_text())
            assert not run["finished"] and run["stopped"] and run["frames"] == len(_masks(output)) > 0
        raise
    finally:
        assert left_behind(folder, path.name, output.name) == []
        assert {found.name for found in folder.rglob(".*")} <= {".resume.npz"}
    run = json.loads((output / "run.json").read_text())
    assert run["finished"] and run["source"]["frames"] == len(_masks(output))
    assert left_behind(output, *run["results"]) == []


def _masks(output):
    return [read_mask(path, numbered=True) for path in (output / "masks").glob("*")]


@pytest.mark.slow
@pytest.mark.parametrize(("check", "count", "noise"), [(_video_case, 280, None), (_picture_case, 200, NOISE),
                                                       (_flow_case, 90, NOISE), (_folder_case, 45, NOISE),
                                                       (_prediction_case, 60, NOISE)],
                         ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_media_load_or_give_one_line_errors(check, count, noise):
    result = survey(check, count, noise=noise)
    assert result.defects == []
    # The damage is strong enough to cause errors, but not in every case.
    assert result.refused > count // 4 and result.taken > count // 20, result[:2]


@pytest.mark.slow
def test_segmenting_damaged_videos_leaves_consistent_results():
    result = survey(_job_case, 20, cpu_seconds=60, mebibytes=1500)
    assert result.defects == [] and result.refused > 3 and result.taken > 3, result[:2]


# Regression tests for small files that once took all memory or time, found by the surveys above or in review.

def _after(data, mark, offset, value):
    """Replaces bytes at an offset from a marker."""
    place = data.index(mark) + offset
    return data[:place] + value + data[place + len(value):]


@cache
def _claims():
    """Small files with headers that declare huge contents, by name; the first one is intact."""
    side, many, zeros = (16_000).to_bytes(2, "big"), b"\xff\xff\xff\xff", zlib.compress(bytes(100_000_000), 1)
    jpeg, plain, gif, avi, mp4 = (_encoded(_frame(0), "JPEG"), _encoded(_frame(0), "PNG"), video(".gif"),
                                  video(".avi"), video(".mp4"))
    return {
        "healthy.png": plain,
        "square.png": png(100_000, 100_000, zlib.compress(bytes(1000))),
        "long.png": png(2**31 - 1, 1, zlib.compress(bytes(1000))),
        "deep.png": png(40_000, 40_000, zlib.compress(bytes(1000)), depth=16, color=6),
        "frame.jpg": _after(jpeg, b"\xff\xc0", 5, side + side),
        "data.png": _repaired_length(plain, many),
        "text.png": plain[:33] + chunk(b"zTXt", b"a\0\0" + zeros) + plain[33:],
        "profile.png": plain[:33] + chunk(b"iCCP", b"a\0\0" + zeros) + plain[33:],
        "screen.gif": gif[:6] + (16_000).to_bytes(2, "little") * 2 + gif[10:],
        "count.avi": _after(avi, b"avih", 24, many),
        "count.mp4": _after(mp4, b"stts", 12, b"\x7f\xff\xff\xff"),
        "duration.mp4": _after(mp4, b"mdhd", 20, many),
    }


def _repaired_length(data, length):
    """The PNG with another declared length of its pixel data."""
    return _after(data, b"IDAT", -4, length)


def _claim_case(seed, folder):
    name, data = list(_claims().items())[seed % len(_claims())]
    path = folder / name
    path.write_bytes(data)
    refused = 0
    for read in (read_image, read_mask, lambda path: _watched(open_source(path, ClipOptions(every=3, on_error="skip"))),
                 lambda path: _watched(open_source(path))):
        try:
            read(path)
        except UserError:
            refused += 1
    if refused == 4:
        raise UserError("Refused by all.")


def test_small_files_with_huge_declared_sizes():
    """Each file is read or gives an error within 64 MiB and a few seconds."""
    result = survey(_claim_case, len(_claims()), workers=1, cpu_seconds=3, mebibytes=64, noise=NOISE)
    assert result.defects == []
