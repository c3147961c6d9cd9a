"""Taking the step of stochastic gradient descent into the matrix product that is its gradient.

The kernel makes a block of rows of the gradient and updates those rows at once, so the gradient has no bytes of the
arena, and is neither written to memory nor read back. Runs last, when nothing else will read a gradient any more.
"""

from collections.abc import Sequence

from models.compiler.ir import Node, Value, apply, rewrite, topological, uses
from models.compiler.schedule import base, is_kernel, overwritten
from models.compiler.shapes import gemm_sgd

# A block of rows is scratch of every thread, 192 KiB of it: smaller gradients would take as much as they save.
SMALLEST_BYTES = 256 << 10


def fuse_updates(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Fuse where the update is the only reader of a gradient that is larger than what it is made of."""
    counts = uses(outputs)
    slots = {v for node in topological(outputs) if is_kernel(node) for v in overwritten(node)}

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op != "sgd":
            return None
        before, gradient = node.inputs[1], inputs[1]
        assert before is not None
        assert gradient is not None
        product = gradient.node
        if counts[before] != 1 or not _is_plain_product(product) or not _pays(product, slots):
            return None
        param, _, *rest = inputs
        return apply("gemm_sgd", gemm_sgd, (*product.inputs[:2], param, *rest), {**product.attrs, **node.attrs})

    return rewrite(outputs, rule)


def _is_plain_product(node: Node) -> bool:
    return node.op == "gemm" and not node.attrs["relu"] and all(v is None for v in node.inputs[2:])


def _pays(product: Node, slots: set[Value]) -> bool:
    """Whether less waits for the update than before, and none of it is what an update overwrites.

    The operands wait in the gradient's place until the last reader of the parameter has run. Of two products that each
    read the other's parameter, neither could be updated first.
    """
    operands = {base(v) for v in product.inputs if v is not None}
    waits = sum(v.type.nbytes for v in operands)
    return product.types[0].nbytes >= max(SMALLEST_BYTES, waits) and not operands & slots
