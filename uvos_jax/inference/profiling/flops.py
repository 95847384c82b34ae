"""Counts the floating point operations of a function from its jaxpr: convolutions and matrix products.

XLA's own cost analysis counts the body of a loop once; here scans count by their length. The tiled attention is a scan.
"""

import math
from collections.abc import Callable

import jax


def count_flops(function: Callable, *args) -> int:
    """Counts the operations of the convolutions and matrix products in ``function(*args)``; a multiply-add is two.

    Depthwise convolutions are computed as sums of shifted images in ``conv2d`` and are not counted.

    Args:
        function: A traceable function. Scans count by their length, conditionals by their most expensive branch, and
            while loops of unknown length once.
        *args: Arrays or ``ShapeDtypeStruct``s.
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
