"""Options of the prompts of a run, and loading of the models that they name."""

import dataclasses
import os
from typing import Any

from uvos_jax.errors import UserError
from uvos_jax.inference.instance_pruning import PruneInput, check_prunable
from uvos_jax.inference.prompts import AUTO, FirstMask
from uvos_jax.inference.segmenter import Segmenter, load
from uvos_jax.models import SYSTEMS

INSTANCE_MODEL = "dtnet"  # finds the instances of --prune dtnet


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """What a run is told about the objects beside the video.

    Attributes:
        first_mask: The objects to track, for semi-supervised models: masks as ``Segmenter.stream`` takes them, or
            "auto" for the object that an unsupervised model finds.
        first_model: Model for "auto"; None is the default network.
        first_weights: Weights of ``first_model``.
        prune: Instances to remove from a foreground, as ``Segmenter.stream`` takes them, or "dtnet" for those that
            D-Net finds.
        prune_weights: Weights of D-Net.
    """

    first_mask: FirstMask = None
    first_model: str | None = None
    first_weights: str | None = None
    prune: PruneInput = None
    prune_weights: str | None = None

    def load_models(self, segmenter: Segmenter) -> "PromptOptions":
        """Loads the models that the options name, once for all videos.

        Args:
            segmenter: Segments the videos; the options must fit its model.

        Returns:
            The options with a ``Segmenter`` in place of each name.

        Raises:
            UserError: Options contradict each other or do not fit the model, or weights cannot be loaded.
        """
        first_mask, prune = self._load_first(segmenter), self._load_prune(segmenter)
        segmenter.check_first_mask(first_mask)
        return dataclasses.replace(self, first_mask=first_mask, prune=prune)

    def as_json(self) -> dict[str, Any]:
        """``dataclasses.asdict`` for ``run.json``: the names of loaded models, and the shapes of arrays."""
        values = {field.name: _described(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return values | ({"first_mask": AUTO} if isinstance(self.first_mask, Segmenter) else {})

    def _load_first(self, segmenter):
        if isinstance(self.first_mask, Segmenter):
            return self.first_mask
        if not _is(self.first_mask, AUTO):
            for option, value in (("--first-model", self.first_model), ("--first-weights", self.first_weights)):
                if value is not None:
                    raise UserError(f"{option} is valid only with --first-mask auto.")
            return self.first_mask
        if segmenter.model.task != "prompted":
            return self.first_mask  # refused by check_first_mask
        if self.first_model is not None and self.first_weights is None:
            raise UserError(f"No weights of {self.first_model} are packaged. Give --first-weights, or leave"
                            " out --first-model to use the default network.")
        return load(self.first_model, self.first_weights)

    def _load_prune(self, segmenter):
        if self.prune is not None:
            check_prunable(segmenter)
        if isinstance(self.prune, Segmenter):
            return self.prune
        if not _is(self.prune, INSTANCE_MODEL):
            if self.prune_weights is not None:
                raise UserError(f"--prune-weights is valid only with --prune {INSTANCE_MODEL}.")
            return self.prune
        if INSTANCE_MODEL not in SYSTEMS:
            raise UserError(f"This version has no model '{INSTANCE_MODEL}'. Give --prune a JSON file of detections.")
        if self.prune_weights is None:
            raise UserError(f"No weights of {INSTANCE_MODEL} are packaged. Give --prune-weights a checkpoint"
                            " directory, or --prune a JSON file of detections.")
        return load(INSTANCE_MODEL, self.prune_weights)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name


def _described(value: Any) -> Any:
    """A JSON value that says what was given."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Segmenter):
        return value.name
    if isinstance(value, dict):
        return {str(key): _described(entry) for key, entry in value.items()}
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"array {list(shape)}"
