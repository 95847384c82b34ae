"""Times the components of a model separately, next to the whole frame."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.engine import StepInputs
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.models.dtnet import reid
from uvos_jax.ops.matching import global_distance_no_grad, local_distance_at_half_size
from uvos_jax.ops.preprocess import preprocess

# Rounds end after _MAX_ROUNDS, or after _MAX_SECONDS if there have been _MIN_ROUNDS.
_MIN_ROUNDS, _MAX_ROUNDS, _MAX_SECONDS = 3, 20, 30


@dataclasses.dataclass(frozen=True)
class ComponentTime:
    """Time of one component.

    Attributes:
        name: Name of the component.
        seconds: Seconds per frame, median over the rounds.
        flops: Floating point operations per frame (convolutions and matrix products).
    """

    name: str
    seconds: float
    flops: int


@dataclasses.dataclass(frozen=True)
class _Component:
    """How to run a component.

    Attributes:
        function: Jitted function.
        arguments: Its arguments.
        times: Calls per frame.
        counted: Function with the same operations, where those of ``function`` cannot be counted.
    """

    function: Callable
    arguments: tuple
    times: int = 1
    counted: Callable | None = None

    @property
    def flops(self):
        return self.times * count_flops(self.counted or self.function, *self.arguments)


def time_components(segmenter: Segmenter, native_size: tuple[int, int], objects: int = 1) -> list[ComponentTime]:
    """Times the components of a model on one synthetic frame, in one view.

    The components run in turns, so that changes of the machine's speed affect all of them.

    Args:
        segmenter: The model with its weights.
        native_size: ``(height, width)`` of the video.
        objects: Number of objects in the prompt; for a model that tracks without a prompt, number of targets.

    Returns:
        The components in the order of their use, ``"rest"`` and ``"whole frame"``. The whole frame may be faster than
        the sum of its components, since it is compiled as one program; the rest is then 0. For a model that tracks
        without a prompt, the whole frame is the sum of its components for a frame in which every target is verified.
    """
    if segmenter.flip or segmenter.scales != (1.0,):
        raise UserError("--parts does not support test-time augmentation. Leave out --scales and --flip.")
    tracks = segmenter.model.task == "tracks"
    components = _components(segmenter, native_size, objects)
    if not tracks:
        components["whole frame"] = _whole_frame(segmenter, native_size, objects)
    seconds = {name: [] for name in components}
    for component in components.values():
        jax.block_until_ready(component.function(*component.arguments))
    started = time.perf_counter()
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() - started > _MAX_SECONDS:
            break
        for name, component in components.items():
            start = time.perf_counter()
            jax.block_until_ready(component.function(*component.arguments))
            seconds[name].append(component.times * (time.perf_counter() - start))
    whole = None if tracks else statistics.median(seconds.pop("whole frame"))
    times = [ComponentTime(name, statistics.median(values), components[name].flops) for name, values in seconds.items()]
    total_seconds, total_flops = sum(item.seconds for item in times), sum(item.flops for item in times)
    if whole is None:  # the work per frame depends on the proposals
        return [*times, ComponentTime("whole frame", total_seconds, total_flops)]
    rest = ComponentTime("rest", max(0.0, whole - total_seconds), 0)
    return [*times, rest, ComponentTime("whole frame", whole, total_flops)]


def frame_flops(segmenter: Segmenter, native_size: tuple[int, int], objects: int = 1) -> int:
    """Returns the floating point operations per frame in all views; arguments as for :func:`time_components`."""
    copies = 2 if segmenter.flip else 1
    return copies * sum(component.flops for scale in segmenter.scales
                        for component in _components(segmenter, native_size, objects, scale, only_shapes=True).values())


def synthetic_mask(native_size: tuple[int, int], objects: int) -> np.ndarray:
    """Returns labels uint8 ``[h, w]``: objects 1 to ``objects`` side by side, on half of the frame."""
    height, width = native_size
    labels = np.zeros(native_size, np.uint8)
    labels[height // 4:height - height // 4] = 1 + np.arange(width) * objects // width
    return labels


def _components(segmenter, native_size, objects, scale=1.0, only_shapes=False) -> dict[str, _Component]:
    """The components by name; with ``only_shapes`` nothing is computed."""
    model, variables = segmenter.model, segmenter.variables
    if model.task == "tracks":
        return _dtnet(segmenter.engine(native_size), variables, objects)
    size, labels, max_objects = model.frame_size(native_size, scale), None, 1
    if model.task == "prompted":
        max_objects = max(model.max_objects, objects)
        model = model.clone(max_objects=max_objects)
        labels = jnp.asarray(synthetic_mask(native_size, objects)[None], jnp.int32)

    def call(method, *static):
        return jax.jit(lambda variables, *arguments: model.apply(variables, *arguments, *static, method=method))

    def inputs(count):
        frames = np.random.default_rng(0).integers(0, 256, (count, *native_size, 3), np.uint8)
        batch = {"frame": preprocess(jnp.asarray(frames), size, model.preprocess)}
        if "flow" in model.inputs:
            batch["flow"] = model.flow_input(jnp.zeros((count, *native_size, 2)), size)
        return batch

    def decide(raw):
        score = model.to_native(raw, native_size)
        return score.argmax(-1) if model.task == "prompted" else (score[..., 0] > model.threshold).astype(jnp.uint8)

    evaluate = jax.eval_shape if only_shapes else lambda function, *arguments: function(*arguments)
    encode, predict, decide = call("encode"), call("predict"), jax.jit(decide)
    frame = inputs(1)
    references = evaluate(encode, variables, inputs(len(model.reference_frames(2))))
    state = evaluate(call("init_state", native_size, max_objects), variables, references, labels)
    features = evaluate(encode, variables, frame)
    raw, aux = _zeros(predict, variables, state, features)
    predict_components = _PREDICT_COMPONENTS.get(segmenter.name)
    return {"encoder": _Component(encode, (variables, frame)),
            **(predict_components(model, variables, state, features, objects) if predict_components else
               {"prediction": _Component(predict, (variables, state, features))}),
            "masks at native size": _Component(decide, (raw,)),
            "commit": _Component(call("commit"), (variables, state, features, _zeros(decide, raw), aux))}


def _zeros(function, *arguments):
    """Zeros in the shapes of a result, where values do not affect the time; compiles nothing."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arguments))


def _whole_frame(segmenter, native_size, objects):
    """The engine's step on one frame."""
    model = segmenter.model
    prompted = model.task == "prompted"
    engine = segmenter.engine(native_size, max_objects=max(model.max_objects, objects) if prompted else None)
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, *native_size, 3), np.uint8))
    flow = jnp.zeros((1, *native_size, 2)) if "flow" in model.inputs else None
    references = np.zeros(len(model.reference_frames(2)), int)
    prompt = [jnp.asarray(synthetic_mask(native_size, objects)[None])] if prompted else []
    state = engine.start(segmenter.variables, frames[references], None if flow is None else flow[references], *prompt)
    return _Component(engine.step, (segmenter.variables, state, StepInputs(frames, jnp.ones(1, bool), flow)))


def _cfbi(model, variables, state, features, objects) -> dict[str, _Component]:
    """Global and local matching, and the ensembler that runs once per object."""
    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    def global_matching(state, embed):
        return model.global_distances(first(state), embed[0])

    def global_products(state, embed):  # for one reference; the matching is a loop of unknown length
        c, step = embed.shape[-1], model.atrous
        return embed.reshape(-1, c) @ state.reference[0, 0, ::step, ::step].reshape(-1, c).T

    def local_matching(state, embed):
        state = first(state)
        return local_distance_at_half_size(embed[0], state.previous, state.previous_labels, model.max_objects + 1,
                                           model.windows, state.count + 1)

    def match(variables, state, embed):
        return model.apply(variables, state, embed, global_distance_no_grad, method="match")

    def ensemble(variables, distances, state, features):
        of_object = jax.tree.map(lambda x: x[:, objects], distances)
        return model.apply(variables, of_object, features["embed"], state.previous, features["low"],
                           method=lambda model, *args: model.head(*args)[0])

    matched = state, features["embed"]
    distances = _zeros(match, variables, *matched)
    return {"global matching": _Component(jax.jit(global_matching), matched, counted=global_products),
            "local matching": _Component(jax.jit(local_matching), matched),
            f"ensembler, {objects + 1} x": _Component(jax.jit(ensemble), (variables, distances, state, features),
                                                      objects + 1)}


def _dtnet(engine, variables, objects) -> dict[str, _Component]:
    """D-Net, the embeddings, and T-Net's work per target; starting a target is left out, since it is rare."""
    model = engine.model
    objects = min(objects, model.max_tracks)

    def call(method):
        return jax.jit(lambda variables, *arguments: model.apply(variables, *arguments, method=method))

    def zeros(shapes):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    encode, discover, frame = call("encode"), call("propose"), jnp.zeros((1, *engine.size, 3))
    inputs = {"frame": frame}
    state = jax.eval_shape(engine.start, variables, jnp.zeros((1, *engine.native_size, 3), jnp.uint8)).states[0]
    features = zeros(jax.eval_shape(encode, variables, inputs))
    target_features = features["target"][0]
    targets, dnet_state = zeros(state.targets), zeros(state.dnet)
    due = jnp.arange(model.max_tracks) < objects
    targets = targets.replace(alive=due)
    labels = jnp.asarray(synthetic_mask(engine.size, objects))
    one = np.zeros(1, np.int32), np.ones(1, bool)

    def embed(variables, *_):  # for as many crops as are computed; the function is a loop of unknown length
        crops = jnp.zeros((-(-objects // reid.CROPS_AT_ONCE) * reid.CROPS_AT_ONCE, *reid.CROP, 3))
        return model.apply(variables, crops, method=lambda model, crops: model.reid(crops))

    return {"encoders": _Component(encode, (variables, inputs)),
            "discovery": _Component(discover, (variables, dnet_state, features)),
            "embeddings": _Component(call("embed_proposals"), (variables, frame, labels[None]), counted=embed),
            "target scores": _Component(engine.segment_targets, (targets, target_features)),
            "target memories": _Component(engine.add_sample, (targets, target_features, labels, due, due)),
            f"target fits, {objects} x": _Component(engine.update_targets, (targets, *one), objects)}


_PREDICT_COMPONENTS = {"cfbi": _cfbi}
