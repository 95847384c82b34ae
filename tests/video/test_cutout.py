"""Cutouts of objects: images and videos with an alpha channel."""

import cv2
import numpy as np
import pytest

from uvos_jax.errors import UserError
from uvos_jax.video import Frame, OutputOptions, ResultWriter
from uvos_jax.video.rendering import cut_out

av = pytest.importorskip("av")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (35, 47, 3), np.uint8)


def some_labels(t: int = 0) -> np.ndarray:
    """Returns labels of a moving object, a static object and void."""
    labels = np.zeros((35, 47), np.uint8)
    cv2.ellipse(labels, (15 + 2 * t, 17), (9, 13), 0, 0, 360, 4, -1)
    labels[5:15, 30:47], labels[:, :3] = 200, 255
    return labels


def test_cutout_is_opaque_in_objects_and_black_elsewhere():
    labels, image = some_labels(), picture()
    objects = (labels == 4) | (labels == 200)
    cut = cut_out(image, labels)
    np.testing.assert_array_equal(cut[..., 3], np.where(objects, 255, 0))
    np.testing.assert_array_equal(cut[..., :3], image * objects[..., None])


def test_alpha_equals_probability():
    probability = np.random.default_rng(1).integers(0, 256, (35, 47), np.uint8)
    probability[:9] = 0
    cut = cut_out(picture(), some_labels(), probability)
    np.testing.assert_array_equal(cut[..., 3], probability)
    np.testing.assert_array_equal(cut[..., :3], picture() * (probability > 0)[..., None])


def test_margin_keeps_colors_around_objects():
    labels = np.zeros((1, 20), bool)
    labels[0, 8:10] = True
    cut = cut_out(np.full((1, 20, 3), 7, np.uint8), labels, margin=3)
    assert cut[0, :, 0].nonzero()[0].tolist() == [*range(5, 13)]
    assert cut[0, :, 3].nonzero()[0].tolist() == [8, 9]


def test_cutout_of_a_single_pixel():
    for label, opacity in [(0, 0), (1, 255), (255, 0)]:
        cut = cut_out(np.full((1, 1, 3), 9, np.uint8), np.full((1, 1), label, np.uint8), margin=8)
        assert cut.tolist() == [[[9 * (opacity > 0)] * 3 + [opacity]]]


def test_mismatched_shapes_are_rejected():
    with pytest.raises(ValueError, match="labels .* do not fit"):
        cut_out(picture(), some_labels().T)
    with pytest.raises(ValueError, match="probability .* does not fit"):
        cut_out(picture(), some_labels(), some_labels().T)


def write(folder, cutout, images, probabilities=None, json=False, overlay=False) -> None:
    soft = probabilities is not None
    with ResultWriter(folder, 25, outputs=OutputOptions(overlay, soft=soft, json=json, cutout=cutout)) as writer:
        for t, image in enumerate(images):
            writer.add(Frame(f"{t:05d}", image, t / 25), some_labels(t), probabilities[t] if soft else None, 0.5)


def test_png_cutouts_equal_cut_out(tmp_path):
    from PIL import Image

    write(tmp_path, "png", [picture()] * 3)
    for t in range(3):
        with Image.open(tmp_path / f"cutout/{t:05d}.png") as file:
            assert file.mode == "RGBA"
            np.testing.assert_array_equal(np.array(file), cut_out(picture(), some_labels(t)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cutout", "masks"]


def decoded(path) -> tuple[list[np.ndarray], object]:
    """Returns the RGBA frames and the stream of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # FFmpeg's native VP9 decoder drops the alpha channel.
        decoder = av.CodecContext.create("libvpx-vp9", "r") if path.suffix == ".webm" else stream.codec_context
        packets = [packet for packet in container.demux(stream) if packet.size]
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
        return [frame.to_ndarray(format="rgba") for frame in frames], stream


@pytest.mark.parametrize("kind", ["mov", "webm"])
def test_videos_keep_alpha_and_object_colors(tmp_path, kind):
    # Objects have the background color, so a black background bleeding into their edges would darken them.
    images = [np.full((35, 47, 3), (200, 120, 60), np.uint8)] * 6
    write(tmp_path, kind, images)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cutout.{kind}", "masks"]
    frames, stream = decoded(tmp_path / f"cutout.{kind}")
    assert len(frames) == 6 and stream.average_rate == 25
    assert (stream.metadata.get("ALPHA_MODE") == "1") == (kind == "webm")
    for t, frame in enumerate(frames):
        objects = np.isin(some_labels(t), [4, 200])
        assert frame.shape == (35, 47, 4)  # odd sizes are kept
        np.testing.assert_array_equal(frame[..., 3] >= 128, objects)
        np.testing.assert_allclose(frame[..., 3], objects * 255, atol=0 if kind == "mov" else 40)
        np.testing.assert_allclose(frame[objects][:, :3], np.full((objects.sum(), 3), (200, 120, 60)), atol=8)


@pytest.mark.parametrize(("kind", "error"), [("mov", 1), ("webm", 6)])
def test_videos_keep_probabilities(tmp_path, kind, error):
    ramp = np.tile(np.linspace(0, 255, 47).astype(np.uint8), (35, 1))
    ramps = [ramp, ramp[:, ::-1].copy(), ramp]
    write(tmp_path, kind, [picture()] * 3, ramps)
    frames, _ = decoded(tmp_path / f"cutout.{kind}")
    np.testing.assert_allclose([frame[..., 3] for frame in frames], ramps, atol=error)


def test_unknown_cutout_formats_are_rejected(tmp_path):
    with pytest.raises(UserError, match="Unknown cutout format 'gif'"):
        ResultWriter(tmp_path / "out", 25, outputs=OutputOptions(cutout="gif"))
    with pytest.raises(UserError, match="Did you mean 'webm'"):
        ResultWriter(tmp_path / "out", 25, outputs=OutputOptions(cutout="webn"))
    assert not list(tmp_path.iterdir())


def test_missing_encoder_is_reported_before_any_output(tmp_path, monkeypatch):
    def no_such_codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.codec, "Codec", no_such_codec)
    with pytest.raises(UserError, match="no encoder prores_ks"):
        ResultWriter(tmp_path / "out", 25, outputs=OutputOptions(overlay=False, cutout="mov"))
    assert not list(tmp_path.iterdir())
