import jax
import jax.numpy as jnp

from uvos_jax.inference.profiling.flops import count_flops
from uvos_jax.ops.attention import attention, tiled_attention
from uvos_jax.ops.conv import conv2d


def _zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_product_and_convolution_match_formulas():
    assert count_flops(lambda a, b: a @ b, _zeros(3, 5), _zeros(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(conv2d, _zeros(2, 9, 8, 4), _zeros(3, 3, 4, 6)) == 2 * 2 * 9 * 8 * 6 * 4 * 9
    grouped = lambda x, k: conv2d(x, k, groups=2)  # noqa: E731
    assert count_flops(grouped, _zeros(1, 9, 8, 4), _zeros(3, 3, 2, 4)) == 2 * 9 * 8 * 4 * 2 * 9


def test_scan_counts_every_step_and_cond_the_costliest_branch():
    def looped(a):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x), None), a, length=6)[0]

    assert count_flops(jax.jit(looped), _zeros(4, 4)) == 6 * 2 * 4**3

    def branched(p, a):
        return jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, a)

    assert count_flops(branched, jax.ShapeDtypeStruct((), bool), _zeros(4, 4)) == 2 * 2 * 4**3


def test_tiled_attention_has_the_flops_of_plain_attention():
    q, k = _zeros(1, 96, 8), _zeros(1, 64, 8)
    plain = count_flops(lambda q, k: attention(q, k, k, scale=1.0), q, k)
    tiled = count_flops(lambda q, k: tiled_attention(q, k, k, scale=1.0, query_tile=32, key_tile=16), q, k)
    assert plain == tiled == 2 * 2 * 96 * 64 * 8
