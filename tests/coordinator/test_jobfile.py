"""The job file: a good one becomes a Job, a bad one is answered with everything that is wrong with it."""

from pathlib import Path

import pytest

from coordinator.jobfile import JobFileError, OnnxFile, ZooModel, load_job
from coordinator.round_records import ScheduleRules
from coordinator.training_keys import Stage

GOOD = """\
[job]
name = "digits"
seed = 1
rounds = 20
target_accuracy = 0.97

[model]
zoo = "lenet"
input_shape = [1, 8, 8]
classes = 10

[method]
name = "fedavg"
server_lr = 0.5

[training]
epochs = 2
batch = 32
lr = 1
momentum = 0.9

[round]
devices = 4
min_updates = 2
deadline_s = 60.0

[evaluate]
data = "held-out"
"""


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "held-out").mkdir(exist_ok=True)
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load_job(write(tmp_path, text))
    return str(caught.value).splitlines()


def test_a_good_file_becomes_a_job_with_defaults(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    assert job.model == ZooModel("lenet", (1, 8, 8), 10)
    assert job.training.stages == (Stage(20, ("*",), (), 1.0),)
    assert isinstance(job.training.stages[0].lr, float)
    assert (job.training.optimizer, job.training.max_norm, job.training.cache) == ("sgd", None, "disk")
    assert (job.round.grace_s, job.round.fraction) == (10.0, 1.0)
    assert job.method_options == {"server_lr": 0.5}
    assert job.evaluate_data == tmp_path / "held-out"


def test_a_byte_order_mark_is_no_part_of_a_job_file(tmp_path: Path) -> None:
    assert load_job(write(tmp_path, "\ufeff" + GOOD)) == load_job(write(tmp_path, GOOD))


def test_an_onnx_model_is_found_beside_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    zoo = 'zoo = "lenet"\ninput_shape = [1, 8, 8]\nclasses = 10'
    job = load_job(write(tmp_path, GOOD.replace(zoo, 'onnx = "model.onnx"')))
    assert job.model == OnnxFile(tmp_path / "model.onnx")


def test_all_problems_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
[job]
name = "Digits!"
seed = 1.5
round = 3

[modle]
zoo = "lenet"

[model]
zoo = "lennet"
classes = 1

[method]
name = "fedavg"
server_rl = 0.5

[training]
epochs = true
batch = 0
lr = inf
momentum = 1.0
weight_decay = "none"
trainable = []

[round]
devices = 2
min_updates = 3
deadline_s = -1

[evaluate]
data = "nowhere"
""",
    )
    path = tmp_path / "job.toml"
    expected = [
        (1, "job.rounds is missing"),
        (2, "job.name must be 1 to 64 lower-case letters, digits and dashes, not 'Digits!'"),
        (3, "job.seed must be a whole number, not 1.5"),
        (4, 'job.round is not a key of [job]; did you mean "rounds"?'),
        (6, 'modle is not a section of a job file; did you mean "model"?'),
        (9, "model.input_shape is missing; a zoo model needs it"),
        (10, "model.zoo is 'lennet'; known: cnn1d, lenet, mlp; did you mean \"lenet\"?"),
        (11, "model.classes must be between 2 and 65536, not 1"),
        (15, 'method.server_rl is not a key of [method]; did you mean "server_lr"?'),
        (18, "training.epochs must be a whole number, not True"),
        (19, "training.batch must be between 1 and 65536, not 0"),
        (20, "training.lr must be greater than 0 and at most 1000, not inf"),
        (21, "training.momentum must be at least 0 and less than 1, not 1.0"),
        (22, "training.weight_decay must be a number, not 'none'"),
        (23, "training.trainable must be a list of non-empty texts, not []"),
        (27, "round.min_updates is 3, more than round.devices = 2"),
        (28, "round.deadline_s must be greater than 0 and at most 604800, not -1"),
        (31, f"evaluate.data names no directory: {tmp_path / 'nowhere'}"),
    ]
    assert found == [f"{path}:{line}: {message}" for line, message in expected]


def test_a_key_that_is_near_to_none_is_told_all_there_are_and_a_list_of_sections_its_line(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "[[keep]]\nversions = 2\n[upload]\nzzz = 1\n")
    line = GOOD.count("\n") + 1
    assert found == [
        f"{tmp_path / 'job.toml'}:{line}: keep must be a section, not [{{'versions': 2}}]",
        f"{tmp_path / 'job.toml'}:{line + 3}: upload.zzz is not a key of [upload]; known: codec",
    ]


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_what_toml_cannot_be_read_from_is_said_to_be_none(tmp_path: Path, value: str) -> None:
    (line,) = problems(tmp_path, f"[job]\nseed = {value}\n")
    assert "is not TOML" in line


def test_missing_sections_are_named(tmp_path: Path) -> None:
    found = problems(tmp_path, "[job]\nname = 'a'\nseed = 1\nrounds = 1\n")
    for section in ("model", "method", "training", "round", "evaluate"):
        assert any(f"{section} is missing; add a section [{section}]" in line for line in found)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('name = "fedavg"', "is 'fedavg'; known: fedasync, fedbuff, sync, tiers"),
        ("alpha = 0.5", "schedule.name is missing"),
        ('name = "fedbuff"', "schedule.buffer is missing; fedbuff needs to know how many updates make a version"),
        ('name = "fedbuff"\nbuffer = 0', "schedule.buffer must be between 1 and 100000, not 0"),
        ('name = "fedbuff"\nbuffer = 2\nalpha = 0.5', "schedule.alpha belongs to name = 'fedasync', not to 'fedbuff'"),
        ('name = "sync"\nmax_staleness = 3', "schedule.max_staleness belongs to name = 'fedasync' or 'fedbuff'"),
        ('name = "fedasync"\nalpha = 1.5', "schedule.alpha must be greater than 0 and at most 1, not 1.5"),
        ('name = "fedasync"\nstaleness = "exp"', "is 'exp'; known: constant, hinge, polynomial"),
        ('name = "fedasync"\nb = 3', "schedule.b belongs to staleness = 'hinge', not 'polynomial'"),
        ('name = "fedasync"\nstaleness = "constant"\na = 1', "schedule.a belongs to staleness"),
        ('name = "fedasync"\nmax_stalenes = 1', 'did you mean "max_staleness"?'),
        ('name = "tiers"', "schedule.tiers is missing"),
        ('name = "tiers"\ntiers = 1', "schedule.tiers must be between 2 and 100, not 1"),
        ('name = "fedasync"\n[round]', "round.fraction belongs to synchronous rounds, not to fedasync"),
    ],
)
def test_what_a_schedule_must_not_say_is_named(tmp_path: Path, section: str, message: str) -> None:
    text = GOOD + f"[schedule]\n{section}\n"
    if section.endswith("[round]"):
        text = GOOD.replace("[round]", "[round]\nfraction = 0.5") + "[schedule]\n" + section.removesuffix("[round]")
    assert any(message in line for line in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("section", "rules"),
    [
        ("", ScheduleRules()),
        ('[schedule]\nname = "sync"', ScheduleRules()),
        (
            '[schedule]\nname = "fedasync"',
            ScheduleRules("fedasync", 0.6, "polynomial", 0.5, 4.0, 1, None, 100, 1),
        ),
        (
            '[schedule]\nname = "fedbuff"\nbuffer = 3\nstaleness = "hinge"\nconcurrency = 2\nevaluate_every = 5',
            ScheduleRules("fedbuff", 1.0, "hinge", 10.0, 4.0, 3, 2, 100, 5),
        ),
        ('[schedule]\nname = "tiers"\ntiers = 3', ScheduleRules("tiers", tiers=3)),
    ],
)
def test_a_schedule_s_keys_have_their_defaults(tmp_path: Path, section: str, rules: ScheduleRules) -> None:
    assert load_job(write(tmp_path, GOOD + section + "\n")).schedule == rules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('zoo = "lenet"', 'zoo = "lenet"\nonnx = "m.onnx"', "exactly one of onnx and zoo"),
        ('zoo = "lenet"\n', "", "exactly one of onnx and zoo"),
        ('zoo = "lenet"', 'onnx = "m.onnx"', "names no file"),
        ('zoo = "lenet"', 'onnx = "m.onnx"', "belongs to a zoo model"),
        ("[1, 8, 8]", "[1, 0]", "whole numbers between 1 and 65536"),
        ('name = "fedavg"', 'name = "fedavgg"', 'did you mean "fedavg"?'),
        ("[training]", "training = 3\n[training2]", "training must be a section, not 3"),
        ('name = "digits"', "name = nan", "must be text, not nan"),
        ("lr = 1", "lr = nan", "not nan"),
        ("momentum = 0.9", 'optimizer = "adamw"\nmomentum = 0.9', 'momentum belongs to optimizer = "sgd"'),
        ("momentum = 0.9", "betas = [0.9, 0.99]", 'betas belongs to optimizer = "adamw"'),
        ("momentum = 0.9", 'optimizer = "adamw"\nbetas = [0.9]', "must be a list of 2 numbers"),
        ("momentum = 0.9", 'optimizer = "adamw"\nbetas = [0.9, 1.0]', "betas [1] must be at least 0 and less than 1"),
        ("momentum = 0.9", "max_norm = 0", "max_norm must be greater than 0"),
        ("momentum = 0.9", 'cache = "ram"', "cache is 'ram'; known: disk, memory, off"),
        ("momentum = 0.9", "stages = []", "stages must be a list of 1 to 1000 tables"),
        ("momentum = 0.9", "stages = [{rounds = 19}]", "stages have 19 rounds together, job.rounds is 20"),
        ("momentum = 0.9", "stages = [{lr = 0.1}]", "stages [0] lacks rounds"),
        ("momentum = 0.9", "stages = [{rounds = 20, lr = -1}]", "stages [0] lr must be greater than 0"),
        ("momentum = 0.9", "stages = [{rounds = 20, trainble = []}]", 'did you mean "trainable"?'),
        ("momentum = 0.9", "stages = [3]", "stages [0] must be a table, not 3"),
        ("lr = 1", "lr = ", "is not TOML"),
    ],
)
def test_each_rule_names_itself(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new, 1)
    if new.startswith("training = 3"):
        text = "training = 3\n" + GOOD.replace("[training]", "[training2]")
    assert any(message in line for line in problems(tmp_path, text))


def test_a_stage_takes_from_the_section_what_it_leaves_out(tmp_path: Path) -> None:
    one, two = '{rounds = 5, trainable = ["b.*"], lr = 0.5}', '{rounds = 15, frozen = ["c"]}'
    stages = f'frozen = ["a.*"]\nstages = [\n  {one},\n  {two},\n]'
    job = load_job(write(tmp_path, GOOD.replace("momentum = 0.9", stages)))
    assert job.training.stages == (Stage(5, ("b.*",), ("a.*",), 0.5), Stage(15, ("*",), ("c",), 1.0))


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, "[job]\nname = \n")[0].startswith(f"{tmp_path / 'job.toml'}:2: ")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="cannot be read"):
        load_job(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(JobFileError, match="not UTF-8"):
        load_job(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(JobFileError, match="larger than"):
        load_job(tmp_path / "huge.toml")
