"""F2Net against the published code, and every net of Table 1 against PyTorch."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.paths import GOLDEN
from tests.helpers.small_f2net import SMALL
from uvos_jax.models import build
from uvos_jax.models.f2net import model as f2net
from uvos_jax.models.f2net.modules import Fusion
from uvos_jax.ops.center_heatmaps import new_track
from uvos_jax.weights import from_torch, parity
from uvos_jax.weights.convert import convert, expected_torch_shapes

# Arguments of torch_f2net per net: order of the attentions and what the prior multiplies.
PARTS = {"baseline": (None, "no"), "ad": ("", "no"), "cgad": ("", "keys"), "sa": ("s", "keys"), "ca": ("c", "keys"),
         "sca": ("sc", "keys"), "csa": ("cs", "keys"), "official": ("c", "no"), "official_full": ("cs", "rows")}
# Two different sides, neither divisible by the strides of all layers.
SIZE = 65, 81

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _fields(name):
    return SMALL | ({"variant": name} if name.startswith("official") else {"net": name})


@pytest.fixture(scope="module")
def manifest(request):
    return json.loads((GOLDEN / "f2net_manifest.json").read_text())


def test_every_published_key_is_mapped(manifest):
    published = {key: tuple(shape) for key, shape in manifest["keys"].items()}
    counters = {key for key in published if key.endswith("num_batches_tracked")}
    assert len(published) == 742 and len(counters) == 120
    ours = expected_torch_shapes("f2net", variant="official_full")
    assert ours == {key: published[key] for key in published.keys() - counters}
    assert sum(np.prod(shape) for key, shape in ours.items() if "running" not in key) == manifest["n_params"]


def test_official_variants_have_same_parameters_for_every_net():
    full = expected_torch_shapes("f2net", **SMALL)
    for fields in ({"variant": "official"}, {"variant": "official", "net": "baseline"},
                   {"variant": "official_full", "net": "sa"}):
        assert expected_torch_shapes("f2net", **SMALL, **fields) == full


@pytest.mark.parametrize("net", f2net.NETS)
def test_published_checkpoint_loads_into_every_net(net):
    shapes = expected_torch_shapes("f2net", **SMALL, variant="official")
    published = {key: np.full(shape, i, np.float32) for i, (key, shape) in enumerate(shapes.items())}
    read = flatten_dict(from_torch("f2net", published, **SMALL, net=net), sep="/")
    values = {float(x.flat[0]) for x in read.values()}
    assert all(np.ptp(x) == 0 for x in read.values()) and len(values) == len(read) <= len(published)
    kept = "".join(read)
    assert ("center/" in kept, "squeeze" in kept, "spatial" in kept) == (
        net not in ("baseline", "ad"), net in ("ca", "csa", "sca"), net in ("sa", "csa", "sca"))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "tensors"), [("published", 16), ("full", 5)])
def test_network_equals_published_code(golden, case, tensors):
    results = parity.check(golden / f"f2net_{case}.npz")
    assert len(results) == tensors
    assert not [result for result in results if not result.ok]


@pytest.mark.slow
@pytest.mark.torch
def test_torch_network_reproduces_reference_files(torch, golden, manifest):
    """The second file was made with this network, so it must reproduce the first, published one."""
    from tests.helpers.torch_f2net import TorchF2Net, network_input, published_prior

    made = {}
    weights = parity.weights_of(manifest)
    with np.load(golden / "f2net_published.npz") as file:
        published = dict(file)
    anchor, _, frame = (network_input(seed, 473, 473) for seed in published["seeds"])
    prior = published_prior(torch.from_numpy(published["ct"]))
    network = TorchF2Net(*PARTS["official"]).eval().load_published(weights)
    # Both variants share the encoder, which takes most of the time.
    with torch.no_grad():
        encoded = {x.data_ptr(): network.encoder(x) for x in (anchor, frame)}
    for case, name in (("published", "official"), ("full", "official_full")):
        network.order, network.prior = PARTS[name]
        network.encoder.forward = lambda x: encoded[x.data_ptr()]
        with torch.no_grad():
            seen = network(anchor, frame, torch.from_numpy(published["prev_gauss"]), prior)
        made = {"ref_s16": anchor[..., ::16, ::16], "cur_s16": frame[..., ::16, ::16], "up_c16": seen["up"][:, :16]}
        made |= {f"cur_{k}": seen[f"cur_{k}"][:, :8, ::4, ::4] for k in ("maxpool", "l1", "l2", "l3", "l4")}
        made |= {f"{k}_c32": seen[k][:, :32] for k in ("cur_aspp", "ref_aspp", "cls_in")}
        made |= {k: x[..., ::2, ::2] for k, x in made.items() if k.endswith(("c16", "c32"))}
        made |= {k: seen[k] for k in ("heat_fc", "heat", "ca_logits")}
        made |= {f"{k}_s4": seen[k][..., ::4, ::4] for k in ("pred", "temp")}
        with np.load(golden / f"f2net_{case}.npz") as file:
            for key in set(file) - {"seeds", "ct", "prev_gauss", "system", "variant", "tolerance"}:
                error = np.abs(made[key].numpy() - file[key]).max() / np.abs(file[key]).max()
                assert error <= 2e-5, (case, key, error)


def _torch_network(torch, name, seed=0):
    """Small PyTorch network with random weights in evaluation mode, and its arrays."""
    from tests.helpers.torch_f2net import TorchF2Net

    sizes = {key: value for key, value in SMALL.items() if key != "short_side"}
    network, rng = TorchF2Net(*PARTS[name], **sizes).eval(), np.random.default_rng(seed)
    arrays = {}
    for key, value in network.state_dict().items():
        shape = tuple(value.shape)
        if value.ndim > 1:
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            low, high = (0.5, 1.5) if key.endswith(("weight", "var")) else (-0.3, 0.3)
            array = rng.uniform(low, high, shape)
        arrays[key] = np.asarray(array, np.float32 if value.is_floating_point() else np.int64)
        if key.endswith("bn3.weight"):
            arrays[key] *= np.float32(0.2)  # keeps residual sums small; attention would otherwise select single pixels
    return network.load_published(arrays), arrays


def _ours(name, arrays):
    """Variables of our network from those arrays, restricted to the keys of the net."""
    wanted = expected_torch_shapes("f2net", **_fields(name))
    return from_torch("f2net", {key: arrays[key] for key in wanted}, **_fields(name))


def _nchw(torch, x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()


def _nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _close(ours, theirs, tolerance, name):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, name
    error = np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1)
    assert error <= tolerance, (name, error)


def _torch_prior(torch, name, center, size):
    """Prior around ``center [b, 2]`` in pixels of the center map."""
    from tests.helpers.torch_f2net import gauss, published_prior

    center = torch.from_numpy(4 * center)
    return published_prior(center, *size) if name.startswith("official") else gauss(center, *size, step=8)


@pytest.mark.torch
def test_network_forward_and_gradients_equal_torch(torch):
    name = "csa"
    theirs, arrays = _torch_network(torch, name, seed=2)
    model, variables = build("f2net", prior_from="truth", **_fields(name)), _ours(name, arrays)
    rng = np.random.default_rng(1)
    batch = {key: rng.standard_normal((2, *SIZE, 3)).astype(np.float32) for key in ("anchor", "frame")}
    batch["previous"] = rng.uniform(0, 1, (2, 17, 21, 1)).astype(np.float32)
    center = np.array([[5, 9], [13.5, 2]], np.float32)
    weights = {key: rng.standard_normal(shape).astype(np.float32)
               for key, shape in (("logits", (2, 9, 11, 1)), ("static_logits", (2, 9, 11, 1)),
                                  ("heat_logits", (2, 17, 21, 1)))}

    @quick_jit
    def run(params, batch):
        def total(params, batch):
            outputs, inner = model.apply(variables | {"params": params}, batch | {"center": center})
            return sum((outputs[key] * weights[key]).sum() for key in outputs), (outputs, inner)

        return jax.grad(total, (0, 1), has_aux=True)(params, batch)

    (of_params, of_inputs), (outputs, inner) = run(variables["params"], batch)
    inputs = {key: _nchw(torch, value) for key, value in batch.items()}
    seen = theirs(*inputs.values(), _torch_prior(torch, name, center, SIZE))
    expected = {"logits": seen["logits"], "static_logits": seen["static"], "heat_logits": seen["heat"]}
    assert outputs.keys() == expected.keys()
    for key, value in outputs.items():
        _close(value, _nhwc(expected[key]), 1e-5, key)
    for ours, key in (("inter", "inter"), ("intra", "intra"), ("fused", "cls_in"), ("center_features", "up")):
        _close(inner[ours], _nhwc(seen[key]), 1e-5, ours)

    sum((expected[key] * _nchw(torch, weights[key]).detach()).sum() for key in outputs).backward()
    for key, value in of_inputs.items():
        _close(value, _nhwc(inputs[key].grad), 1e-4, key)
    # Converts the PyTorch gradients with the rules of the weights.
    moved = {key: np.zeros(value.shape, np.float32) for key, value in arrays.items()}
    moved |= {key: x.grad.numpy() for key, x in theirs.named_parameters() if x.grad is not None}
    for path, value in flatten_dict(_ours(name, moved)["params"]).items():
        _close(flatten_dict(of_params)[path], value, 1e-4, "/".join(path))
        assert value.any(), path


@pytest.mark.torch
@pytest.mark.parametrize("name", PARTS)
def test_step_matching_and_gradient_equal_torch(torch, name):
    """Forward pass and gradient from given features, with a prior around the detected peak."""
    theirs, arrays = _torch_network(torch, name, seed=2)
    model, variables, rng = build("f2net", **_fields(name)), _ours(name, arrays), np.random.default_rng(3)
    anchor, embed = (rng.standard_normal((1, 17, 25, SMALL["embedding"])).astype(np.float32) for _ in range(2))
    frame_heat = rng.standard_normal((1, 33, 49, 1)).astype(np.float32)
    frame_heat[0, 6, 15] = 20
    up = rng.standard_normal((1, 33, 49, SMALL["center_embedding"])).astype(np.float32)
    weight = rng.standard_normal((1, 17, 25, 1)).astype(np.float32)

    @quick_jit
    def run(anchor, embed):
        def total(anchor, embed):
            features = {"embed": embed, "center_features": up, "frame_heat": frame_heat}
            if name in ("baseline", "ad"):
                state = f2net.State(anchor)
            else:
                state = f2net.State(anchor, jnp.zeros_like(frame_heat), new_track(1, model.history))
            logits, aux = model.apply(variables, state, features, method="predict")
            return (logits * weight).sum(), (logits, aux)

        return jax.grad(total, (0, 1), has_aux=True)(anchor, embed)

    gradients, (logits, aux) = run(anchor, embed)
    # The published decoder places every peak one pixel further up and left.
    center = np.array([[15, 6]], np.float32) - (1 if name.startswith("official") else 0)
    prior = _torch_prior(torch, name, center, (129, 193))
    if name not in ("baseline", "ad"):
        np.testing.assert_array_equal(aux["center"], [[15, 6]])
        _close(aux["prior"], _nhwc(prior), 1e-5, "prior")
    inputs = [_nchw(torch, x) for x in (anchor, embed)]
    fused, _ = theirs.fuse(*theirs.match(*inputs, prior), inputs[1])
    expected = theirs.cls(fused)
    _close(logits, _nhwc(expected), 1e-5, "logits")
    (expected * _nchw(torch, weight).detach()).sum().backward()
    for ours, x in zip(gradients, inputs, strict=True):
        _close(ours, np.zeros(ours.shape) if x.grad is None else _nhwc(x.grad), 1e-4, "gradient")
    assert np.asarray(gradients[1]).any()


@pytest.mark.torch
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("net", ["", "sa", "ca", "sca", "csa"])
def test_fusion_and_gradient_equal_torch(torch, net, train):
    from tests.helpers.torch_f2net import TorchF2Net

    c, rng = 80, np.random.default_rng(0)  # a bottleneck of 5 channels
    theirs = TorchF2Net(PARTS[net or "ad"][0], depths=(1, 1, 1, 1), width=2, aspp_features=2, embedding=c).train(train)
    maps = [rng.standard_normal((3, 5, 7, c)).astype(np.float32) for _ in range(3)]
    maps[2] += 0.5
    weight = rng.standard_normal((3, 5, 7, c)).astype(np.float32)
    ours = Fusion(net, c)
    shapes = jax.eval_shape(functools.partial(ours.init, train=False), jax.random.key(0), maps)
    rules = [(pattern.removeprefix("fusion/"), *rest) for pattern, *rest in build("f2net").torch_rules()
             if pattern.startswith("fusion/")]

    def converted(arrays):
        """Converts the PyTorch arrays that this order of attentions uses."""
        names = ("channel_attention",) * ("c" in net) + ("spatial",) * (net in ("sa", "sca", "csa"))
        return convert(shapes, {key: x for key, x in arrays.items() if key.startswith(names)} if names else {}, rules,
                       what="fusion")

    variables = converted({key: value.numpy().copy() for key, value in theirs.state_dict().items()})

    @quick_jit
    def run(params, maps):
        def total(params, maps):
            (fused, made), _ = ours.apply(variables | {"params": params}, tuple(maps), train, mutable=["batch_stats"])
            return (fused * weight).sum(), (fused, made)

        return jax.grad(total, (0, 1), has_aux=True)(params, maps)

    (of_params, of_maps), (fused, made) = run(variables.get("params", {}), maps)
    inputs = [_nchw(torch, x) for x in maps]
    expected, logits = theirs.fuse(*inputs)
    _close(fused, _nhwc(expected), 1e-5, "fused")
    assert (logits is None) == ("channel_logits" not in made)
    if logits is not None:
        _close(made["channel_logits"], _nhwc(logits), 1e-5, "channel_logits")
    (expected * _nchw(torch, weight).detach()).sum().backward()
    for mine, x in zip(of_maps, inputs, strict=True):
        _close(mine, _nhwc(x.grad), 1e-4, "gradient of a map")
    moved = {key: np.zeros(value.shape, np.float32) for key, value in theirs.state_dict().items()}
    moved |= {key: x.grad.numpy() for key, x in theirs.named_parameters() if x.grad is not None}
    for path, value in flatten_dict(converted(moved).get("params", {})).items():
        _close(flatten_dict(of_params)[path], value, 1e-4, "/".join(path))
        assert value.any()
