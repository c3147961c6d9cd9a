"""Random values in the graph language: functions of a seed, the step and a stream number, so a re-run gives the same.

A plan that draws has a scalar "seed", which the board sets from the task's seed, and counts its steps in the state
"random.step". Each use has a stream number of its own; two uses of one stream and shape draw the same numbers.
"""

from collections.abc import Sequence

from models.compiler import tensor_shapes as ts
from models.compiler.elementary import less
from models.compiler.errors import CompileError
from models.compiler.ir import Value, apply, constant, leaf, topological
from models.compiler.primitives import broadcast_to

DISTRIBUTIONS = ("uniform", "normal")  # in the order of the plan format's numbers
SEED = leaf("seed", "float32", ())
STEP = leaf("random.step", "float32", ())
MAX_STREAM = (1 << 31) - 1


def draws(outputs: Sequence[Value]) -> bool:
    """Whether a graph needs random numbers."""
    return any(node.op == "random" for node in topological(outputs))


def _drawn(distribution: str, shape: Sequence[int], stream: int) -> Value:
    if not 0 <= stream <= MAX_STREAM:
        raise CompileError(f"the number of a stream must be 0 to {MAX_STREAM}, got {stream}")
    attrs = {"distribution": distribution, "shape": tuple(shape), "stream": stream}
    return apply("random", ts.random, (SEED, STEP), attrs)[0]


def random_uniform(shape: Sequence[int], stream: int, low: float = 0.0, high: float = 1.0) -> Value:
    """Numbers from low up to (not including) high, in steps of (high - low) / 2^24."""
    return _drawn("uniform", shape, stream) * (high - low) + low


def random_normal(shape: Sequence[int], stream: int, mean: float = 0.0, deviation: float = 1.0) -> Value:
    """Normally distributed numbers, none further than 5.8 deviations from the mean."""
    return _drawn("normal", shape, stream) * deviation + mean


def bernoulli(p: Value, stream: int) -> Value:
    """1 with probability p, else 0, for each element of p."""
    return less(_drawn("uniform", p.shape, stream), p)


def dropout(x: Value, rate: float, stream: int) -> tuple[Value, Value]:
    """X with each element made 0 with probability `rate` and the others divided by 1 - rate; and 1 where it is kept.

    (Srivastava et al., 2014; scaled while training, as in torch.)
    """
    if not 0.0 <= rate < 1.0:
        raise CompileError(f"the rate of dropout must be in [0, 1), got {rate}")
    if rate == 0.0:
        return x, broadcast_to(constant(1.0), x.shape)
    kept = less(_drawn("uniform", x.shape, stream), constant(1.0 - rate))
    return x * (kept * (1.0 / (1.0 - rate))), kept
