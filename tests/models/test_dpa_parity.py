"""DPA against the published code, and its attention against PyTorch."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from uvos_jax.errors import UserError
from uvos_jax.models import build
from uvos_jax.models.dpa import official as dpa_official
from uvos_jax.models.dpa.attention import PrototypeAttention
from uvos_jax.models.dpa.official import GraphAttention, MutualRefinement, TokenAttention
from uvos_jax.ops.prototypes import nearest_neighbors, prototypes
from uvos_jax.weights import from_torch, parity
from uvos_jax.weights.convert import convert, expected_torch_shapes, expected_variables

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _manifest(golden):
    return json.loads((golden / "dpa_manifest.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["official", "official_full"])
def test_every_published_key_is_mapped(golden, variant):
    published = {key: tuple(shape) for key, shape in _manifest(golden)["keys"].items()}
    ours = expected_torch_shapes("dpa", variant=variant)
    rest = published.keys() - ours.keys()
    assert ours == {key: published[key] for key in ours}
    # Besides batch counters, arrays that the published network never reads: 2 x 2 modules of 8 arrays.
    unused = {key for key in rest if not key.endswith("num_batches_tracked")}
    assert len(published) == 588 and len(unused) == 4 * (2 + 2 + 4)
    rules = [pattern for pattern, _, layout in dpa_official.torch_rules(build("dpa", variant=variant))
             if layout == "unused"]
    assert all(any(re.fullmatch(pattern, key) for pattern in rules) for key in unused)


def test_published_weights_require_official_variant(golden):
    with pytest.raises(UserError, match="--variant official"):
        from_torch("dpa", {})


@pytest.mark.slow
@pytest.mark.parametrize(("case", "tensors"), [("published", 16), ("full", 20)])
def test_network_equals_published_code(golden, case, tensors):
    results = parity.check(golden / f"dpa_a128_{case}.npz")
    assert len(results) == tensors
    assert not [result for result in results if not result.ok]


def test_modules_equal_published_code(golden):
    with np.load(golden / "dpa_mod_a.npz") as file:
        expected = dict(file)
    h, w, references, seed = expected.pop("shape").tolist()
    manifest = _manifest(golden)
    weights = parity.weights_of(manifest | {"keys": {
        key: shape for key, shape in manifest["keys"].items() if not re.match("(rgb|flow)_encoder|DAM4|total", key)}})
    variables = _partly_converted(weights)

    def noise(seed, c):
        x = np.random.Generator(np.random.PCG64(seed)).standard_normal((1, c, h, w)).astype(np.float32)
        return jnp.moveaxis(jnp.asarray(x), 1, -1)

    features = {"appearance": noise(seed, 512), "motion": noise(seed + 1, 512)}
    queries = {"appearance": noise(seed + 2, 128), "motion": noise(seed + 3, 128)}
    names = {"appearance": "rgb", "motion": "flow"}

    @jax.jit
    def run(features, queries, references):
        def part(*path):
            inside = {}
            for collection, tree in variables.items():
                for name in path:
                    tree = tree.get(name, {})
                inside[collection] = tree
            return inside

        pixels = {name: query.reshape(1, -1, 128) for name, query in queries.items()}
        made = {f"{names[name]}_sq": query for name, query in queries.items()}
        made["ocr_rgb"] = prototypes(pixels["appearance"])
        attended = TokenAttention(False, False).apply(
            part("appearance_stream", "ima5", "graph", "attention"), made["ocr_rgb"], made["ocr_rgb"], False)
        made |= {"gan_tf": attended, "gan_knn1_idx": nearest_neighbors(attended, 10)}
        made["gan_out"] = dpa_official.GraphNetwork().apply(part("appearance_stream", "ima5", "graph"),
                                                            made["ocr_rgb"], False)
        align = GraphAttention(512, 128)
        maps = {name: align.apply(part(f"{name}_stream", "ima5"), query, False, method="maps")
                for name, query in queries.items()}
        refined = MutualRefinement().apply(part("mutual5"), maps, False)
        for name, theirs in names.items():
            made[f"corr_{theirs}"] = maps[name].reshape(1, h, w, 128)
            made[f"ccm_{theirs}"] = refined[name].reshape(1, h, w, 128)
            made[f"dam5_{theirs}_c16"] = align.apply(part(f"{name}_stream", "ima5"), features[name], refined[name],
                                                     False)[..., :16]
        attend, of_rgb = PrototypeAttention(512, 128, published=True), part("appearance_stream", "ifa")
        keys, values = attend.apply(of_rgb, references, method="source")
        made["ref_key_pb0"] = keys[:1]
        source = tuple(x.reshape(1, -1, 128) for x in (keys, values))
        made["tam_rgb_c16"] = attend.apply(of_rgb, features["appearance"], queries["appearance"], source,
                                           False)[..., :16]
        return made | {"rgb_c4": features["appearance"][..., :4]}

    references = jnp.concatenate([noise(seed + 10 + i, 512) for i in range(references)])
    made = run(features, queries, references)
    assert made.keys() == expected.keys()
    neighbors = made.pop("gan_knn1_idx"), expected.pop("gan_knn1_idx")
    np.testing.assert_array_equal(*(np.sort(x, -1) for x in neighbors))
    for name, theirs in expected.items():
        ours = np.asarray(made[name])
        ours = np.moveaxis(ours, -1, 1) if ours.ndim == 4 else ours
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), err_msg=name)


def _partly_converted(weights):
    """Variables of the modules that the given subset of published weights covers."""
    model = build("dpa", variant="official_full")
    part = {path: leaf for path, leaf in flatten_dict(expected_variables(model)).items()
            if path[1] == "mutual5" or path[2] in ("ima5", "ifa")}
    rules = dpa_official.torch_rules(model)
    used = {key: value for key, value in weights.items()
            if re.match(r"DAM5|(rgb|flow)_TAM", key)}
    return convert(unflatten_dict(part), used, rules, what="dpa")


@pytest.mark.torch
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("between", ["modalities", "pixels of modalities", "frames", "pixels of frames",
                                     "frames, published"])
def test_attention_equals_torch(torch, between, train):
    from tests.helpers.torch_dpa import Attention

    b, c, embedding, (h, w), references = 2, 6, 4, (5, 7), 3
    options = (not between.startswith("pixels"), between.endswith("published"))
    theirs, rng = Attention(c, embedding, *options).train(train), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32)))
    arrays = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}

    ours = PrototypeAttention(c, embedding, *options)
    features, query = (rng.standard_normal((b, h, w, n)).astype(np.float32) for n in (c, embedding))
    # The other modality is one map; references are several maps.
    count = references if "frames" in between else 1
    others = rng.standard_normal((b, count, h, w, c)).astype(np.float32)

    def forward(module, features, query, others):
        source = module.source(others.reshape(-1, h, w, c))
        return module(features, query, tuple(x.reshape(b, -1, embedding) for x in source), train)

    shapes = jax.eval_shape(functools.partial(ours.init, method=forward), jax.random.key(0), features, query, others)
    rules = (("(key|value)", r"\1", "conv"), ("fuse/conv", "conv", "conv"), ("fuse/bn", "bn", "norm"))
    variables = convert(shapes, arrays, rules, what="attention")
    weight = rng.standard_normal((b, h, w, c)).astype(np.float32)

    @quick_jit
    def run(params, features, query, others):
        def answer(params, *inputs):
            x, _ = ours.apply({"params": params, "batch_stats": variables["batch_stats"]}, *inputs, method=forward,
                              mutable=["batch_stats"])
            return (x * weight).sum(), x

        return jax.grad(answer, (0, 1, 2, 3), has_aux=True)(params, features, query, others)

    (of_params, *of_inputs), answer = run(variables["params"], features, query, others)

    def nchw(x):
        return torch.from_numpy(np.moveaxis(x, -1, -3).copy()).requires_grad_()

    inputs = [nchw(x) for x in (features, query, others)]
    expected = theirs(inputs[0], inputs[1], [theirs.source(maps) for maps in inputs[2]])
    np.testing.assert_allclose(answer, np.moveaxis(expected.detach().numpy(), 1, -1), atol=2e-5)
    (expected * nchw(weight).detach()).sum().backward()
    for ours_, theirs_ in zip(of_inputs, inputs, strict=True):
        reference = np.moveaxis(theirs_.grad.numpy(), -3, -1)
        np.testing.assert_allclose(ours_, reference, atol=1e-4 * np.abs(reference).max())
    for ours_, theirs_ in ((of_params["key"], theirs.key), (of_params["value"], theirs.value),
                           (of_params["fuse"]["conv"], theirs.conv)):
        if theirs_.weight.grad is None:  # the published value layer is never used
            assert "published" in between and not np.asarray(ours_["kernel"]).any()
            continue
        reference = theirs_.weight.grad.numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(ours_["kernel"], reference, atol=1e-4 * np.abs(reference).max())
