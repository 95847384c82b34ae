"""Time and FLOPs per component of a frame, and FLOPs of prompted models per object."""

import numpy as np
import pytest

from tests.helpers.command_line import SMALL as SMALL_ADNET
from tests.helpers.command_line import uvos
from tests.helpers.prompted_model import SIZE as FOLLOWED
from tests.helpers.prompted_model import color_tracker
from tests.helpers.small_cfbi import SMALL, small
from uvos_jax.errors import UserError
from uvos_jax.inference.profiling.benchmark import benchmark
from uvos_jax.inference.profiling.components import frame_flops, synthetic_mask, time_components
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.inference.segmenter import Segmenter

NATIVE, NETWORK = (64, 80), (65, 81)
PIXELS = 17 * 21  # feature map of a network input at stride 4


def _segmenter(atrous=1, **options):
    """Returns a small CFBI segmenter with the smaller of the two heads."""
    return Segmenter("cfbi", *small(ensembler=False, atrous=atrous), **options)


@pytest.mark.slow
def test_component_names_and_flops_of_cfbi():
    segmenter = _segmenter()
    parts = time_components(segmenter, NATIVE, objects=2)
    assert [part.name for part in parts] == ["encoder", "global matching", "local matching", "ensembler, 3 x",
                                             "masks at native size", "commit", "rest", "whole frame"]
    flops = {part.name: part.flops for part in parts}
    assert flops["global matching"] == 2 * PIXELS**2 * SMALL["embedding"]
    model, frame = segmenter.model, np.zeros((1, *NETWORK, 3), np.float32)
    assert flops["encoder"] == count_flops(
        lambda x: model.apply(segmenter.variables, {"frame": x}, method="encode"), frame)
    *inside, whole = parts
    assert whole.flops == sum(part.flops for part in inside)
    assert whole.seconds > 0 and sum(part.seconds for part in inside) >= whole.seconds * (1 - 1e-9)


@pytest.mark.slow
def test_flops_grow_linearly_with_objects():
    segmenter = _segmenter()
    one, two, five = (frame_flops(segmenter, NATIVE, n) for n in (1, 2, 5))  # five objects exceed the initial slots
    assert five - two == 3 * (two - one) > 0
    seen = 2 * PIXELS * SMALL["embedding"] * (PIXELS - 9 * 11)  # atrous 2 keeps every second of 17 rows and 21 columns
    assert 2 * one - frame_flops(_segmenter(atrous=2, flip=True), NATIVE) == 2 * seen


@pytest.mark.parametrize("objects", [1, 3, 254])
def test_synthetic_mask_has_every_object_and_background(objects):
    labels = synthetic_mask((48, 300), objects)
    assert labels.dtype == np.uint8 and np.unique(labels).tolist() == list(range(objects + 1))
    assert (labels == 0).mean() == 0.5


def test_component_timing_rejects_multiple_scales():
    with pytest.raises(UserError, match="--scales"):
        time_components(_segmenter(scales=(1.0, 1.5)), NATIVE)


@pytest.mark.slow
def test_benchmark_parts_prints_components_of_adnet():
    code, out, err = uvos("benchmark", "--model", "adnet", "--weights", "random", "--size", "48x72", "--parts",
                          *SMALL_ADNET)
    assert code == 0, err
    rows = out.split("component ")[1].splitlines()[1:]
    assert [row.split("  ")[0] for row in rows] == ["encoder", "prediction", "masks at native size", "commit", "rest",
                                                    "whole frame"]
    assert "100%" in rows[-1]


def test_objects_option_needs_a_prompted_model():
    code, _, err = uvos("benchmark", "--model", "adnet", "--weights", "random", "--objects", "2", *SMALL_ADNET)
    assert code == 2 and "--objects" in err and "adnet" in err


@pytest.mark.slow
def test_benchmark_of_prompted_model_uses_given_object_count(monkeypatch):
    def once(function, at_least):
        function()
        return [0.5] * at_least

    monkeypatch.setattr("uvos_jax.inference.profiling.benchmark._time", once)
    segmenter = color_tracker()
    result = benchmark(segmenter, FOLLOWED, chunk=2, objects=5)  # more than its initial slots
    assert result.network.median == 0.25 and result.end_to_end.median == 0.125 and result.flow is None
    assert result.flops == frame_flops(segmenter, FOLLOWED, 5)
