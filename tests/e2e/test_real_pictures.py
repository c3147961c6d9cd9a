"""Real pictures: what a network learns with us is what it learns with torch.

One seed and few epochs; `edge-runtime bench accuracy` trains to the end with three seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.data import require

torch = pytest.importorskip("torch")
from support.real_training import Recipe, cifar10, fashion_mnist, train_ours, train_torch  # noqa: E402 (imports torch)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_lenet_reaches_nine_tenths_on_fashion_mnist() -> None:
    accuracy = train_ours(Recipe("lenet5", 8, 32, 0.02), fashion_mnist(require("fashion-mnist")), seed=0)
    print(f"accuracy {accuracy:.4f}")
    assert accuracy >= 0.90


def test_resnet_learns_cifar_pictures_as_torch_does() -> None:
    """Two runs part at the first rounding; a second seed of torch's own ends within three points as well."""
    pictures, recipe = cifar10(require("cifar10")).first(6016), Recipe("resnet8", 3, 32, 0.1)
    ours, theirs = train_ours(recipe, pictures, seed=0), train_torch(recipe, pictures, seed=0)
    print(f"accuracy {ours:.4f}, torch {theirs:.4f}")
    assert ours > 0.40
    assert abs(ours - theirs) < 0.03
