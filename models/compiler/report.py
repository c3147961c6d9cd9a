"""What a plan costs."""

from dataclasses import dataclass

from models.compiler.ir import Node, Role, topological
from models.compiler.ops import OPS
from models.compiler.schedule import overwritten
from models.compiler.storage import Layout

# Measured, Python 3.11 on x86-64 (bench memory): heap for the engine's record of an operation; operations whose records
# fit into what an idle client's heap has free; the kernels' pages that a first step brings in, 0.33 to 0.67 MB.
RECORD_BYTES, FREE_RECORDS = 865, 1_000
CODE_BYTES = 520_000


@dataclass(frozen=True)
class Report:
    """What a plan costs and does; bytes include alignment.

    Attributes:
        arena_bytes: all memory of a step but the per-thread workspace.
        owned_bytes: the part that tensors, optimiser state, batch, scalars and outputs keep for the whole
            run.
        temporaries_bytes: the part that activations and gradients share.
        lower_bound_bytes: no placement of this order of operations could make the arena smaller.
        constants_bytes: what the plan file holds for the engine to copy.
        workspace_bytes: scratch of the hungriest kernel, for each thread.
        forward_multiply_adds: products in the matrix products and convolutions up to the loss.
        backward_multiply_adds: those after it.
        moved_bytes: operands that operations without products read and write in a step, and the tensors and state that
            a product with an update in it does.
        updated_bytes: the latter.
        operations: kernel calls of one step.
        micro_batches: slices of the batch that are worked through one after the other.
        recompute: whether cheap work is done twice to keep less.
        slice_peak: whether kernels at the peak run slice by slice.
        trained: tensors a step updates.
        frozen: tensors a step only reads.
        notes: what the import changed or left out.
    """

    arena_bytes: int
    owned_bytes: int
    temporaries_bytes: int
    lower_bound_bytes: int
    constants_bytes: int
    workspace_bytes: int
    forward_multiply_adds: int
    backward_multiply_adds: int
    moved_bytes: int
    updated_bytes: int
    operations: int
    micro_batches: int
    recompute: bool
    slice_peak: bool
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """(forward, backward)."""
        return self.forward_multiply_adds, self.backward_multiply_adds

    @property
    def gap(self) -> float:
        """By how much the arena exceeds the lower bound, as a share of that."""
        return self.arena_bytes / self.lower_bound_bytes - 1

    def memory_bytes(self, threads: int = 1) -> int:
        """The one block that an engine with so many threads computes in, to the byte."""
        return self.arena_bytes + self.constants_bytes + threads * self.workspace_bytes

    def engine_bytes(self, threads: int = 1) -> int:
        """All that an engine takes: its block, and the records of what it runs, which tell in long plans."""
        return self.memory_bytes(threads) + RECORD_BYTES * max(0, self.operations - FREE_RECORDS)

    def process_bytes(self, threads: int = 1) -> int:
        """What training with the plan adds to the resident set of an idle client."""
        return self.engine_bytes(threads) + CODE_BYTES


def report(  # noqa: PLR0913 - what all passes know of a plan
    layout: Layout,
    *,
    constants_bytes: int,
    workspace_bytes: int,
    micro_batches: int,
    recompute: bool,
    slice_peak: bool,
    notes: tuple[str, ...],
) -> Report:
    """The costs of a laid-out program."""
    owners = layout.owners
    forward = set(topological([v for v, owner in owners.items() if owner.role is Role.OUTPUT]))
    products = [(OPS[node.op].multiply_adds(node), node in forward) for node in layout.order]
    updated = sum(map(_updated_bytes, layout.order))
    moved = sum(_operand_bytes(node) for node in layout.order if not OPS[node.op].multiply_adds(node))
    by_role = {role: tuple(o.name for o in owners.values() if o.role is role) for role in Role}
    return Report(
        arena_bytes=layout.arena_bytes,
        owned_bytes=layout.owned_bytes,
        temporaries_bytes=layout.arena_bytes - layout.owned_bytes,
        lower_bound_bytes=layout.lower_bound_bytes,
        constants_bytes=constants_bytes,
        workspace_bytes=workspace_bytes,
        forward_multiply_adds=sum(n for n, ahead in products if ahead),
        backward_multiply_adds=sum(n for n, ahead in products if not ahead),
        moved_bytes=moved + updated,
        updated_bytes=updated,
        operations=len(layout.order),
        micro_batches=micro_batches,
        recompute=recompute,
        slice_peak=slice_peak,
        trained=by_role[Role.TRAINED],
        frozen=by_role[Role.FROZEN],
        notes=notes,
    )


def _operand_bytes(node: Node) -> int:
    return sum(v.type.nbytes for v in node.inputs if v is not None) + sum(t.nbytes for t in node.types)


def _updated_bytes(node: Node) -> int:
    """What an update within a product reads of tensors and state, and writes to them."""
    return 2 * sum(v.type.nbytes for v in overwritten(node)) if OPS[node.op].multiply_adds(node) else 0
