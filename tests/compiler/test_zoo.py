"""The zoo: shapes it takes, weights that are the same everywhere, and that what it builds can be trained."""

import hashlib
import math

import numpy as np
import onnxruntime
import pytest

from models.compiler import compile_training, import_onnx, weights_of
from models.zoo import MODELS, ZooError, build, default_model
from models.zoo.builder import he_uniform

SHAPES = [
    ("lenet", (8, 8), 10),
    ("lenet", (1, 8, 8), 10),
    ("lenet", (3, 9, 17), 4),
    ("lenet", (1, 28, 28), 10),
    ("lenet", (3, 32, 32), 10),
    ("lenet", (3, 64, 64), 2),
    ("lenet", (1, 20, 128), 5),
    ("cnn1d", (6, 128), 6),
    ("cnn1d", (1, 8), 2),
    ("cnn1d", (3, 4001), 12),
    ("mlp", (20,), 3),
    ("mlp", (4, 5), 2),
]


@pytest.mark.parametrize(("name", "shape", "classes"), SHAPES)
def test_a_network_of_the_zoo_runs_and_compiles(name: str, shape: tuple[int, ...], classes: int) -> None:
    data = build(name, shape, classes, 7)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].shape[1:]
    assert math.prod(given) == math.prod(shape)
    (logits,) = session.run(None, {"x": np.ones((3, *given), np.float32)})
    assert logits.shape == (3, classes)
    assert np.isfinite(logits).all()
    report = compile_training(import_onnx(data, batch=3)).report
    assert set(report.trained) == set(weights_of(data))


def test_parameter_counts_are_as_documented() -> None:
    counts = {
        shape: sum(w.size for w in weights_of(build(name, shape, classes, 0)).values())
        for name, shape, classes in SHAPES
    }
    assert counts[1, 28, 28] == 61_706
    assert counts[8, 8] == 13_706
    assert counts[6, 128] == 24_038


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert build("lenet", (8, 8), 10, 1) == build("lenet", (8, 8), 10, 1)
    assert build("lenet", (8, 8), 10, 1) != build("lenet", (8, 8), 10, 2)


def test_initial_weights_never_change() -> None:
    """A job that is run again years later begins with the same model."""
    weights = weights_of(build("lenet", (8, 8), 10, 42))
    digest = hashlib.sha256(b"".join(weights[n].tobytes() for n in sorted(weights))).hexdigest()
    assert digest == "43d670f7ca1679b02c4e2ed96ea636f6e530cf0f7e222b495fc162ed0c91e32a"


def test_weights_are_uniform_with_the_variance_of_he() -> None:
    draws = he_uniform(5, 0, (400, 50))
    bound = math.sqrt(6 / 50)
    assert np.abs(draws).max() < bound
    assert abs(float(draws.mean())) < 4 * bound / math.sqrt(3 * draws.size)
    assert float(draws.var()) == pytest.approx(2 / 50, rel=0.02)


def test_tensors_of_one_model_are_drawn_apart() -> None:
    weights = weights_of(build("cnn1d", (64, 64), 64, 1))
    flat = [w.ravel()[:100] for n, w in weights.items() if n.endswith("weight")]
    for i, a in enumerate(flat):
        for b in flat[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.4


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("lenet", (7, 8), 10),
        ("lenet", (1, 8, 129), 10),
        ("lenet", (0, 8, 8), 10),
        ("lenet", (8,), 10),
        ("lenet", (8, 8), 1),
        ("cnn1d", (6, 7), 3),
        ("cnn1d", (128,), 3),
        ("cnn1d", (0, 128), 3),
        ("cnn1d", (6, 128), 1),
        ("mlp", (), 3),
        ("mlp", (0,), 3),
        ("mlp", (1 << 17,), 3),
        ("mlp", (3,), 1),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(ZooError):
        build(name, shape, classes, 0)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ZooError, match="no model 'resnet'; there are: cnn1d, lenet, mlp"):
        build("resnet", (8, 8), 10, 0)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 28, 28), "lenet"),
        ((8, 8), "lenet"),
        ((28, 28), "lenet"),
        ((6, 128), "cnn1d"),
        ((9, 128), "cnn1d"),
        ((12,), "mlp"),
    ],
)
def test_the_default_network_follows_the_shape(shape: tuple[int, ...], name: str) -> None:
    assert default_model(shape) == name
    assert name in MODELS


def test_no_default_network_for_other_shapes() -> None:
    with pytest.raises(ZooError, match="give an ONNX model"):
        default_model((3, 8, 32, 32))
