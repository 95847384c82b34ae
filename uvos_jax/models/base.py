"""The contract of a model: what training, streaming, conversion and benchmarks use, with defaults for what is optional.

Axes are ``b t h w c`` (batch, time, height, width, channels), arrays are NHWC. Suffixes say the range: ``_logits``,
``_prob``, ``_mask`` (bool), ``_labels`` (int). ``docs/contract.md`` explains the contract, ``docs/adding_a_model.md``
walks through a small model that implements it.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvos_jax.nn.layers import Policy
from uvos_jax.ops.preprocess import Preprocess

Task = Literal["foreground", "prompted", "tracks", "flow"]
Rules = tuple[tuple[str, str, str], ...]


class ParityTrace(NamedTuple):
    """How to run a model on a file of reference tensors (``uvos parity``).

    Attributes:
        inputs: Names of the input tensors in the file.
        run: ``run(model, variables, inputs, expected) -> {name: array}``, arrays in PyTorch's layout (NCHW). A large
            attention matrix may be a function of the number of rows to compute (None: all).
        overrides: Hyper-parameters beside the variant, which the file names.
    """

    inputs: tuple[str, ...]
    run: Callable[[Any, dict, Mapping, Mapping], dict]
    overrides: Mapping[str, Any] = {}


class Model(nn.Module):
    """Base of all systems.

    A subclass declares its hyper-parameters as dataclass fields (``variant``, ``short_side``, ``axis_name``, ``dtype``
    and ``remat`` among them), sets the class attributes below where the defaults do not fit, and implements

    - for training: ``__call__``, ``training_batch``, ``example_batch`` and ``loss``;
    - for inference: ``encode``, ``init_state``, ``predict``, ``to_native`` and ``frame_size``, and ``commit`` if its
      state changes from frame to frame. Models of the task "tracks" implement ``propose`` and ``embed_proposals`` in
      place of ``predict`` and ``commit``; models of the task "flow" need neither.

    Attributes:
        task: "foreground": one foreground, found by the model. "prompted": objects whose first masks are given.
            "tracks": many objects, found and tracked by the model. "flow": optical flow, no masks.
        VARIANTS: Values of the field ``variant``.
        CHOICES: Values of other fields that take one of a few names.
        CHANGEABLE: Fields that may be changed when weights are loaded, beside ``ALWAYS_CHANGEABLE``; all others are
            fixed by the weights.
        BACKBONES: Paths of the submodules that can start from an ImageNet classifier, ``/`` between modules.
        PREPROCESS: Channel order, scale, mean, standard deviation and resizing rule of frames; None where the model
            takes frames as they are.
        TRACES: Reference files that the model can be compared with, by the file's ``system``.
        categories: Number of object categories that the model distinguishes.
        max_objects: Object slots of a prompted model, which declares it as a field.
    """

    task: ClassVar[Task] = "foreground"
    VARIANTS: ClassVar[tuple[str, ...]] = ("paper",)
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    CHANGEABLE: ClassVar[tuple[str, ...]] = ()
    ALWAYS_CHANGEABLE: ClassVar[tuple[str, ...]] = ("variant", "short_side", "dropout", "axis_name", "dtype", "remat")
    BACKBONES: ClassVar[tuple[str, ...]] = ()
    PREPROCESS: ClassVar[Preprocess | None] = None
    TRACES: ClassVar[Mapping[str, ParityTrace]] = {}
    categories: ClassVar[int] = 1
    max_objects: ClassVar[int] = 1

    # What a model needs and how its scores are used.

    @property
    def policy(self) -> Policy:
        """Computation dtype and mapped axis of the batch statistics, for the model's blocks."""
        return Policy(self.dtype, self.axis_name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs of ``encode``: ``("frame",)``, or ``("frame", "flow")`` for models that use optical flow."""
        return ("frame",)

    @property
    def preprocess(self) -> Preprocess | None:
        """The frame transform of this variant."""
        return self.PREPROCESS

    @property
    def threshold(self) -> float:
        """Fused scores above it are foreground."""
        return 0.5

    @property
    def postprocess(self) -> tuple[str, ...]:
        """Names of the post-processing stages (``inference/postprocess.py``) that follow the fused score."""
        return ()

    @property
    def notes(self) -> dict[str, str]:
        """Flags in ``aux["notes"]`` of ``predict`` that are counted over a video: name -> sentence for the user."""
        return {}

    # Inference.

    @nn.nowrap
    def reference_frames(self, length: int | None) -> tuple[int, ...]:
        """Returns the indices of the frames that ``init_state`` needs; by default the first frame.

        Args:
            length: Number of frames of the video; None for a source that can be read only once, whose references must
                lie in the first chunk.
        """
        del length
        return (0,)

    @nn.nowrap
    def commit(self, state: Any, features: Mapping[str, jax.Array], labels: jax.Array, aux: Mapping[str, Any],
               new_labels: jax.Array | None = None) -> Any:
        """Returns the state after a frame; by default the state never changes.

        Args:
            state: State before the frame.
            features: ``encode`` of the frame.
            labels: ``[b, H, W]`` int labels that the driver decided on, at native size.
            aux: Second result of ``predict``.
            new_labels: ``[b, H, W]`` int masks given for this frame, 0 elsewhere; None if there are none.
        """
        del features, labels, aux, new_labels
        return state

    @nn.nowrap
    def to_probability(self, score: jax.Array) -> jax.Array:
        """Returns the foreground probability (float32, 0..1) of a fused score; by default the score itself."""
        return score

    # Weights.

    @nn.nowrap
    def torch_rules(self) -> Rules | None:
        """Returns the name rules for published checkpoints (see ``weights/convert.py``); None if there are none."""
        return None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Paths of the backbones that this configuration of the model has."""
        return self.BACKBONES


def nhwc(x: Any) -> jax.Array:
    """Brings ``[b, c, h, w]`` (PyTorch's layout) to ``[b, h, w, c]``."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def nchw(x: jax.Array) -> jax.Array:
    """Brings ``[b, h, w, c]`` to ``[b, c, h, w]`` (PyTorch's layout)."""
    return jnp.moveaxis(x, -1, 1)


def flatten_pixels(x: jax.Array) -> jax.Array:
    """Returns ``[b, h, w, c]`` as ``[b, h * w, c]``."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
