"""``--debug`` pictures: a look inside a model at work, each system's own."""

from pathlib import Path

from uvos_jax.errors import UserError
from uvos_jax.inference.debug_figures import adnet as figures_adnet
from uvos_jax.inference.debug_figures import dpa as figures_dpa
from uvos_jax.inference.debug_figures import f2net as figures_f2net
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.video import Source

_DRAWN_BY = {"adnet": figures_adnet, "dpa": figures_dpa, "f2net": figures_f2net}


def check_figures(segmenter: Segmenter, source: Source) -> None:
    """Raises ``UserError`` if :func:`write_figures` could not work for this model or source."""
    if segmenter.name not in _DRAWN_BY:
        raise UserError(f"--debug knows nothing to draw of {segmenter.name}; it does of {', '.join(_DRAWN_BY)}.")
    _DRAWN_BY[segmenter.name].check(segmenter.model)
    if not source.rereadable:
        raise UserError("--debug reads the video a second time, which an iterator does not allow.")


def write_figures(segmenter: Segmenter, source: Source, results: Path, count: int) -> list[Path]:
    """Draws what the model's paper shows of its inside; reads the video and the masks written for it once more.

    Args:
      segmenter: with its weights.
      source: the video, which must allow a second reading.
      results: folder with ``masks/``; the pictures go to ``debug/`` in it.
      count: frames of the video.

    Returns:
      The pictures.

    Raises:
      UserError: if there is nothing to draw, or the pictures cannot be written.
    """
    check_figures(segmenter, source)
    import matplotlib

    matplotlib.use("agg")
    folder = results / "debug"
    try:
        folder.mkdir(exist_ok=True)
        return _DRAWN_BY[segmenter.name].write(segmenter, source, results, count)
    except OSError as error:
        raise UserError(f"The pictures in '{folder}' cannot be written: {error.strerror}.") from error
