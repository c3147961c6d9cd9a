"""A workspace of every instruction set that runs here, with one thread and with three."""

import pytest

from edge_runtime.kernels import Workspace, info


@pytest.fixture(
    params=[(isa, threads) for isa in info()["available"] for threads in (1, 3)], ids=lambda p: f"{p[0]}-{p[1]}"
)
def workspace(request: pytest.FixtureRequest) -> Workspace:
    isa, threads = request.param
    return Workspace(threads=threads, isa=isa)
