"""Jobs of several stages in memory: what is frozen stays, what is trained is sent, and no fault changes a bit."""

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.data import Dataset
from edge_runtime.plan import ROLE_FROZEN, ROLE_TRAINED, read_plan
from edge_runtime.tensors import decode_tensors, encode_tensors
from support import tiny_job
from support.memory import MemorySite, finished, start_all
from support.tiny_job import made_up

JOB = """\
[job]
name = "staged"
seed = 5
rounds = 4
[model]
zoo = "mlp"
input_shape = [6]
classes = 3
[method]
name = "fedavg"
[training]
epochs = 2
batch = 8
lr = 0.1
momentum = 0.9
cache = "memory"
stages = [
  {rounds = 2, trainable = ["fc3.*"]},
  {rounds = 2, trainable = ["fc2.*", "fc3.*"], lr = 0.05},
]
[round]
devices = 2
min_updates = 2
deadline_s = 60
grace_s = 5
[evaluate]
data = "held-out"
"""
HEAD, UPPER = {"fc3.weight", "fc3.bias"}, {"fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}


def make_site(tmp_path: Path, job: str = JOB) -> MemorySite:
    return tiny_job.make_site(tmp_path, job, shards={"dev-a": made_up(1, 20), "dev-b": made_up(2, 13)})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    site = make_site(tmp_path_factory.mktemp("undisturbed"))
    start_all(site)
    return finished(site)


def test_each_stage_trains_and_sends_its_own_tensors_alone(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    first = site.program.weights
    found = decode_tensors((tmp_path / "state" / "final.safetensors").read_bytes())[0]
    assert {name for name in first if not np.array_equal(first[name], found[name])} == UPPER
    (device, _) = site.devices.values()
    by_round = {task.round: task.phases[0] for task in device.tasks}
    for number, names in ((1, HEAD), (2, HEAD), (3, UPPER), (4, UPPER)):
        phase = by_round[number]
        plan, prefix = (read_plan(device.blobs[sha256]) for sha256 in phase.plans)
        assert set(plan.named(ROLE_TRAINED)) == set(site.program.stage(number).trained) == names
        assert not plan.named(ROLE_FROZEN)
        assert set(prefix.named(ROLE_FROZEN)) == set(first) - names
        assert phase.scalars == {"lr": 0.1 if number < 3 else 0.05}
    assert site.seen("round_done")[-1]["accuracy"] > 0.5


def test_frozen_tensors_go_down_once_and_so_do_a_stages_plans_and_the_bytes_say_so(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    finished(site)
    down = [event["bytes_down"] for event in site.seen("round_done")]
    first = site.program.weights
    plans = [sum(len(file.data) for file in stage.files) for stage in site.program.stages]
    head, upper = (len(encode_tensors({f"exact/{name}": first[name] for name in names})) for names in (HEAD, UPPER))
    assert down == [2 * (len(encode_tensors(first)) + plans[0]), 2 * head, 2 * (head + plans[1]), 2 * upper]


def test_plans_of_an_ended_stage_leave_the_broker(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_started")) == 3)
    held = {topic.split("/")[4] for topic in site.broker.retained if "/b/" in topic}
    old, new = ({file.sha256 for file in stage.files} for stage in site.program.stages)
    assert new <= held
    assert not old & held
    finished(site)
    assert not [topic for topic in site.broker.retained if "/b/" in topic]


@pytest.mark.parametrize("cache", ['cache = "off"', 'cache = "disk"', 'cache = "memory"\ncache_mb = 1'])
def test_no_way_of_keeping_features_changes_a_bit(tmp_path: Path, undisturbed: str, cache: str) -> None:
    site = make_site(tmp_path, JOB.replace('cache = "memory"', cache))
    start_all(site)
    assert finished(site) == undisturbed


@pytest.mark.parametrize("rounds_done", [1, 2, 3])
def test_a_coordinator_killed_around_a_stage_ends_at_the_same_model(
    tmp_path: Path, undisturbed: str, rounds_done: int
) -> None:
    site = make_site(tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_done")) == rounds_done)
    site.kill()
    site.start()
    assert finished(site) == undisturbed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("momentum = 0.9", 'optimizer = "adamw"\nbetas = [0.8, 0.99]\nepsilon = 1e-6\nweight_decay = 0.1'),
        ("momentum = 0.9", "momentum = 0.9\nnesterov = true\nmax_norm = 0.5"),
        ("momentum = 0.9", "momentum = 0.9\nproximal = 0.3"),
        ("momentum = 0.9", "momentum = 0.9\nema = 0.5"),
    ],
)
def test_every_optimiser_key_reaches_the_devices(tmp_path: Path, undisturbed: str, old: str, new: str) -> None:
    lr = "lr = 0.01" if "adamw" in new else "lr = 0.1"
    site = make_site(tmp_path, JOB.replace("lr = 0.1", lr).replace(old, new))
    start_all(site)
    assert finished(site) != undisturbed
    assert site.seen("round_done")[-1]["accuracy"] > 0.5


def test_a_stage_without_a_block_trains_and_judges_the_model_without_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    from support.networks import Network, export  # noqa: PLC0415 - needs torch

    class Growing(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Linear(6, 16)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            x = torch.relu(self.stem(x))
            for block in self.blocks:
                x = x + torch.relu(block(x))
            return self.head(x)

    torch.manual_seed(4)
    model = Growing()
    with torch.no_grad():
        model.blocks[1].weight.mul_(40.0)  # so that the whole model judges badly before its last stage
    home = tmp_path / "home"
    home.mkdir()
    network = Network(Growing, (6,), 4, 3)
    (home / "model.onnx").write_bytes(export(model, network))
    job = JOB.replace('zoo = "mlp"\ninput_shape = [6]\nclasses = 3', 'onnx = "model.onnx"')
    head, last = '"head.*"', '"blocks.1.*"'
    job = job.replace('["fc3.*"]', f'["stem.*", "blocks.0.*", {head}], skip = [{last}]')
    site = make_site(tmp_path, job.replace('["fc2.*", "fc3.*"]', f"[{last}, {head}]"))
    start_all(site)
    finished(site)
    assert not any(name.startswith("blocks.1.") for name in site.program.stage(2).trained)
    assert set(site.program.stage(3).trained) == {"blocks.1.weight", "blocks.1.bias", "head.weight", "head.bias"}
    accuracies = [event["accuracy"] for event in site.seen("round_done")]
    assert accuracies[1] > 0.8
    found = decode_tensors((tmp_path / "state" / "final.safetensors").read_bytes())[0]
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_a_fleet_trains_on_tokens(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from support.networks import Network, export  # noqa: PLC0415 - needs torch

    class Words(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(12, 8)
            self.gru = torch.nn.GRU(8, 16, batch_first=True)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return self.head(self.gru(self.table(x))[1][-1])

    def sentences(seed: int, rows: int) -> Dataset:
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 12, (rows, 5)).astype(np.int32)
        return Dataset(x, (x[:, -1] // 4).astype(np.int32))  # the last word's group

    torch.manual_seed(6)
    home = tmp_path / "home"
    (home / "held-out").mkdir(parents=True)
    test = sentences(9, 60)
    np.savez(home / "held-out" / "test.npz", x=test.x, y=test.y)
    (home / "model.onnx").write_bytes(export(Words(), Network(Words, (5,), 4, 3, tokens=True)))
    stages = JOB[JOB.index("stages = [") : JOB.index("[round]")]
    job = JOB.replace('zoo = "mlp"\ninput_shape = [6]\nclasses = 3', 'onnx = "model.onnx"').replace(stages, "")
    job = job.replace("epochs = 2", "epochs = 10").replace("momentum = 0.9", 'optimizer = "adamw"')
    (home / "job.toml").write_text(job.replace("lr = 0.1", "lr = 0.02"))
    shards = {"dev-a": sentences(1, 60), "dev-b": sentences(2, 50)}
    site = MemorySite(home / "job.toml", tmp_path / "state", shards)
    start_all(site)
    finished(site)
    assert site.seen("round_done")[-1]["accuracy"] > 0.9
