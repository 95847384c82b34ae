"""objects.json: content, and agreement of its RLE with pycocotools."""

import json
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from uvos_jax.video import Frame, OutputOptions, ResultWriter
from uvos_jax.video.json_results import objects_of


def write(folder, labels, times=None, fps=12.5) -> None:
    image = np.zeros((*labels[0].shape, 3), np.uint8)
    with ResultWriter(folder, fps, outputs=OutputOptions(overlay=False, json=True)) as writer:
        for t, frame in enumerate(labels):
            writer.add(Frame(f"f{t}", image, times[t] if times else None), frame)


def read(folder) -> dict:
    return json.loads((folder / "objects.json").read_text())


def blobs(seed: int) -> np.ndarray:
    """Returns random blocky labels that include void; size and number of blocks depend on the seed."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice([0, 0, 0, 1, 2, 9, 254, 255], (int(rng.integers(1, 9)), int(rng.integers(1, 12))))
    return np.kron(numbers, np.ones((int(rng.integers(1, 5)), 3), int)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(20))
def test_objects_decode_to_the_mask(seed):
    labels = blobs(seed)
    objects = objects_of(labels)
    assert [entry["id"] for entry in objects] == [number for number in range(1, 255) if (labels == number).any()]
    for entry in json.loads(json.dumps(objects)):
        mask = labels == entry["id"]
        np.testing.assert_array_equal(mask_utils.decode(entry["segmentation"]), mask)
        rows, columns = mask.nonzero()
        assert entry["area"] == mask.sum() == mask_utils.area(entry["segmentation"])
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width - 1, y + height - 1] == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_file_contains_size_fps_names_times_and_empty_frames(tmp_path):
    empty, void, one = (np.full((3, 4), label, np.uint8) for label in (0, 255, 1))
    write(tmp_path, [empty, void, one, one.astype(bool)], [0.0, 0.08, 0.24, None])
    content = read(tmp_path)
    assert content["size"] == [3, 4] and content["fps"] == 12.5
    assert [(frame["name"], frame["time"], len(frame["objects"])) for frame in content["frames"]] == [
        ("f0", 0.0, 0), ("f1", 0.08, 0), ("f2", 0.24, 1), ("f3", None, 1)]
    counts = mask_utils.encode(np.asfortranarray(one))["counts"].decode()
    full = {"id": 1, "segmentation": {"size": [3, 4], "counts": counts}, "bbox": [0, 0, 4, 3], "area": 12}
    assert content["frames"][2]["objects"] == content["frames"][3]["objects"] == [full]
    assert len((tmp_path / "objects.json").read_text().splitlines()) == 4 + 2  # one line per frame


def test_names_are_escaped(tmp_path):
    name = 'a "b", \\ ü'
    with ResultWriter(tmp_path, 25, outputs=OutputOptions(overlay=False, json=True, soft=True)) as writer:
        writer.add(Frame(name, np.zeros((2, 2, 3), np.uint8)), np.eye(2, dtype=bool), np.eye(2, dtype=np.uint8), 0.5)
    assert read(tmp_path)["frames"][0]["name"] == name


def test_file_is_valid_after_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), ResultWriter(tmp_path, 25,
                                                        outputs=OutputOptions(overlay=False, json=True)) as writer:
        for t in range(3):
            writer.add(Frame(f"f{t}", np.zeros((2, 2, 3), np.uint8)), np.ones((2, 2), bool))
        raise KeyboardInterrupt
    assert [frame["name"] for frame in read(tmp_path)["frames"]] == ["f0", "f1", "f2"]


def test_memory_is_independent_of_video_length(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (200, 200), np.uint8)
    write(tmp_path / "warm", [labels] * 3)
    tracemalloc.start()
    write(tmp_path / "long", [labels] * 150)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "long/objects.json").stat().st_size > 4e6 > 2 * peak
