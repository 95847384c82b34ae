"""Where the time of a frame goes: the parts of a model, each compiled and timed by itself, beside the whole frame."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import UserError
from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.inference.segmenter import Segmenter
from uvos_jax.models.dtnet import reid
from uvos_jax.ops.matching import global_distance_no_grad, local_distance_at_half_size
from uvos_jax.ops.preprocess import preprocess

# At least three rounds, and no more once they have taken that long.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 20, 30


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a frame.

    Attributes:
      name: what it is.
      seconds: that it takes in a frame, the median over the rounds.
      flops: floating point operations in a frame (convolutions and matrix products).
    """

    name: str
    seconds: float
    flops: int


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a part is run: ``times`` calls a frame; ``counted`` has its arithmetic where ``function`` hides it."""

    function: Callable
    arguments: tuple
    times: int = 1
    counted: Callable | None = None

    @property
    def flops(self):
        return self.times * count_flops(self.counted or self.function, *self.arguments)


def time_components(segmenter: Segmenter, native_size: tuple[int, int], objects: int = 1) -> list[Part]:
    """Times the parts of a model on one made-up frame, in one view.

    The parts take turns, so that a machine whose speed drifts slows all of them down.

    Args:
      segmenter: the model with its weights.
      native_size: ``(height, width)`` of the video.
      objects: how many a model that follows objects is given; of one that finds them, how many it has found.

    Returns:
      The parts in the order of their use, what the whole frame takes beside them, and the whole frame. What is compiled
      as a whole may be faster than its parts: then nothing is left, and they add up to more. Of a model that finds
      objects the whole is the sum of its parts on the device, for a frame in which each object is verified.
    """
    if segmenter.flip or segmenter.scales != (1.0,):
        raise UserError("Parts are timed in one view of each frame; leave out --scales and --flip.")
    finds = segmenter.model.task == "tracks"
    forms = _components(segmenter, native_size, objects)
    if not finds:
        forms["whole frame"] = _whole_frame(segmenter, native_size, objects)
    seconds = {name: [] for name in forms}
    for form in forms.values():
        jax.block_until_ready(form.function(*form.arguments))
    begun = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _ROUNDS and time.perf_counter() - begun > _SECONDS:
            break
        for name, form in forms.items():
            started = time.perf_counter()
            jax.block_until_ready(form.function(*form.arguments))
            seconds[name].append(form.times * (time.perf_counter() - started))
    whole = None if finds else statistics.median(seconds.pop("whole frame"))
    parts = [Part(name, statistics.median(times), forms[name].flops) for name, times in seconds.items()]
    if whole is None:  # how much of it a frame needs depends on what is found
        return [*parts, Part("whole frame", sum(part.seconds for part in parts), sum(part.flops for part in parts))]
    rest = Part("rest", max(0.0, whole - sum(part.seconds for part in parts)), 0)
    return [*parts, rest, Part("whole frame", whole, sum(part.flops for part in parts))]


def frame_flops(segmenter: Segmenter, native_size: tuple[int, int], objects: int = 1) -> int:
    """Floating point operations of a frame in all views; arguments as of :func:`time_components`."""
    copies = 2 if segmenter.flip else 1
    return copies * sum(form.flops for scale in segmenter.scales
                        for form in _components(segmenter, native_size, objects, scale, only_shapes=True).values())


def synthetic_mask(native_size: tuple[int, int], objects: int) -> np.ndarray:
    """``[h, w]`` uint8: objects 1 to ``objects`` side by side, on half of the picture."""
    height, width = native_size
    labels = np.zeros(native_size, np.uint8)
    labels[height // 4:height - height // 4] = 1 + np.arange(width) * objects // width
    return labels


def _components(segmenter, native_size, objects, scale=1.0, only_shapes=False) -> dict[str, _Form]:
    """Every part by its name; with ``only_shapes`` nothing is computed."""
    model, variables = segmenter.model, segmenter.variables
    if model.task == "tracks":
        return _dtnet(segmenter.engine(native_size), variables, objects)
    size, labels, max_objects = model.frame_size(native_size, scale), None, 1
    if model.task == "prompted":
        max_objects = max(model.max_objects, objects)
        model, labels = model.clone(max_objects=max_objects), jnp.asarray(synthetic_mask(native_size, objects)[None], jnp.int32)

    def call(method, *static):
        return jax.jit(lambda variables, *arguments: model.apply(variables, *arguments, *static, method=method))

    def inputs(count):
        frames = np.random.default_rng(0).integers(0, 256, (count, *native_size, 3), np.uint8)
        made = {"frame": preprocess(jnp.asarray(frames), size, model.preprocess)}
        if "flow" in model.inputs:
            made["flow"] = model.flow_input(jnp.zeros((count, *native_size, 2)), size)
        return made

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
    parts = _PARTS_OF_PREDICT.get(segmenter.name)
    return {"encoder": _Form(encode, (variables, frame)),
            **(parts(model, variables, state, features, objects) if parts else
               {"prediction": _Form(predict, (variables, state, features))}),
            "masks at native size": _Form(decide, (raw,)),
            "commit": _Form(call("commit"), (variables, state, features, _zeros(decide, raw), aux))}


def _zeros(function, *arguments):
    """What stands for a result where the values make no difference to the time, without compiling the function."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arguments))


def _whole_frame(segmenter, native_size, objects):
    """The engine's step, one frame at a time."""
    model = segmenter.model
    engine = segmenter.engine(native_size, max_objects=max(model.max_objects, objects) if model.task == "prompted" else None)
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, *native_size, 3), np.uint8))
    flow = jnp.zeros((1, *native_size, 2)) if "flow" in model.inputs else None
    first = np.zeros(len(model.reference_frames(2)), int)
    given = [jnp.asarray(synthetic_mask(native_size, objects)[None])] if model.task == "prompted" else []
    carry = engine.start(segmenter.variables, frames[first], None if flow is None else flow[first], *given)
    return _Form(engine.step, (segmenter.variables, carry, frames, jnp.ones(1, bool), flow))


def _cfbi(model, variables, state, features, objects) -> dict[str, _Form]:
    """Both matchings, and the head that looks at one object after the other."""
    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    def far(state, embed):
        return model.global_distances(first(state), embed[0])

    def every_product(state, embed):  # of the frame with its one reference: a loop of unknown length hides them
        c, step = embed.shape[-1], model.atrous
        return embed.reshape(-1, c) @ state.reference[0, 0, ::step, ::step].reshape(-1, c).T

    def near(state, embed):
        its = first(state)
        return local_distance_at_half_size(embed[0], its.previous, its.previous_labels, model.max_objects + 1, model.windows,
                                           its.count + 1)

    def compare(variables, state, embed):
        return model.apply(variables, state, embed, global_distance_no_grad, method="match")

    def look(variables, seen, state, features):
        its = jax.tree.map(lambda x: x[:, objects], seen)
        return model.apply(variables, its, features["embed"], state.previous, features["low"],
                           method=lambda model, *what: model.head(*what)[0])

    matched = state, features["embed"]
    seen = _zeros(compare, variables, *matched)
    return {"global matching": _Form(jax.jit(far), matched, counted=every_product),
            "local matching": _Form(jax.jit(near), matched),
            f"ensembler, {objects + 1} x": _Form(jax.jit(look), (variables, seen, state, features), objects + 1)}


def _dtnet(engine, variables, objects) -> dict[str, _Form]:
    """D-Net, the embeddings, and what T-Net does for each object; an object's start is no part of most frames."""
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
    its = features["target"][0]
    targets, discovery = zeros(state.targets), zeros(state.discovery)
    due = jnp.arange(model.max_tracks) < objects
    targets = targets.replace(alive=due)
    places = jnp.asarray(synthetic_mask(engine.size, objects))
    one = np.zeros(1, np.int32), np.ones(1, bool)

    def embed(variables, *_):  # of as many crops as are looked at: a loop of unknown length hides them
        crops = jnp.zeros((-(-objects // reid.TOGETHER) * reid.TOGETHER, *reid.CROP, 3))
        return model.apply(variables, crops, method=lambda model, crops: model.reid(crops))

    return {"encoders": _Form(encode, (variables, inputs)),
            "discovery": _Form(discover, (variables, discovery, features)),
            "embeddings": _Form(call("embed_proposals"), (variables, frame, places[None]), counted=embed),
            "target scores": _Form(engine.follow, (targets, its)),
            "target memories": _Form(engine.remember, (targets, its, places, due, due)),
            f"target fits, {objects} x": _Form(engine.update, (targets, *one), objects)}


_PARTS_OF_PREDICT = {"cfbi": _cfbi}
