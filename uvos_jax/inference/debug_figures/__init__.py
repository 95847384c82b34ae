"""Debug figures (``--debug``): visualizations of a model's internals, one module per system."""

from pathlib import Path

from uvos_jax.errors import UserError
from uvos_jax.inference.debug_figures import adnet, dpa, f2net
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.video import Source

_MODULES = {"adnet": adnet, "dpa": dpa, "f2net": f2net}


def check_figures(segmenter: Segmenter, source: Source) -> None:
    """Raises ``UserError`` if :func:`write_figures` does not support this model or source."""
    if segmenter.name not in _MODULES:
        raise UserError(f"No debug figures for {segmenter.name}. Leave out --debug, or use {', '.join(_MODULES)}.")
    _MODULES[segmenter.name].check(segmenter.model)
    if not source.rereadable:
        raise UserError("--debug reads the video twice, which an iterator does not allow. Leave it out.")


def write_figures(segmenter: Segmenter, source: Source, results: Path, count: int) -> list[Path]:
    """Draws the figures of the model's paper for a video; reads the video and its masks again.

    Args:
        segmenter: The model with its weights.
        source: The video, which must allow a second reading.
        results: Output folder with ``masks/``; figures are written to ``debug/`` in it.
        count: Number of frames of the video.

    Returns:
        The paths of the figures.

    Raises:
        UserError: If there are no figures for the model, or they cannot be written.
    """
    check_figures(segmenter, source)
    import matplotlib

    matplotlib.use("agg")
    folder = results / "debug"
    try:
        folder.mkdir(exist_ok=True)
        return _MODULES[segmenter.name].write(segmenter, source, results, count)
    except OSError as error:
        raise UserError(f"Cannot write figures to '{folder}': {error.strerror}.") from error
