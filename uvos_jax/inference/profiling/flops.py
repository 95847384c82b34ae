"""Counting the arithmetic of a function from its jaxpr: convolutions and matrix products, loops by their length.

XLA's own cost analysis counts the body of a loop once; the tiled attention is a loop.
"""

import math
from collections.abc import Callable

import jax


def count_flops(function: Callable, *args) -> int:
    """Floating point operations (a multiply-add is two) of the convolutions and matrix products in ``function(*args)``.

    Depthwise convolutions are sums of images in ``conv2d``, and count as little as any other sum.

    Args:
      function: traceable; its control flow may hold scans of static length, conditionals (the dearest branch counts)
        and nested jits. A while loop of unknown length counts once.
      *args: arrays or ``ShapeDtypeStruct``s.
    """
    return _count(jax.make_jaxpr(function)(*args))


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * terms
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        terms = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * terms
    values = [v for value in params.values() for v in (value if isinstance(value, (tuple, list)) else (value,))]
    counts = [_count(value) for value in values if hasattr(value, "eqns")]
    if name == "cond":
        return max(counts)
    return sum(counts) * (params["length"] if name == "scan" else 1)
