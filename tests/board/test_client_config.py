"""The client's configuration: every problem at once, in words that help."""

from pathlib import Path

import pytest

from edge_runtime.client_config import ClientConfig, ConfigError, read_config

GOOD = 'broker = "mqtt://h"\ndevice = "a"\ndata = "d"\nstate = "s"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "client.toml"
    path.write_text(text)
    return path


def test_a_file_gives_a_configuration_with_directories_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "threads = 2\nmemory_limit_mb = 100\nlog_json = true\n")
    assert read_config(path, {}) == ClientConfig(
        "mqtt://h", "a", tmp_path / "d", tmp_path / "s", threads=2, memory_limit_mb=100, log_json=True
    )


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "\ufeff" + GOOD), {}) == read_config(write(tmp_path, GOOD), {})


def test_flags_override_the_file_and_are_enough_without_one(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD), {"device": "b", "data": "here", "site": None})
    assert (config.device, config.data, config.site) == ("b", Path("here"), "default")
    flags = {"broker": "mqtt://h", "device": "a", "data": "/d", "state": "/s"}
    assert read_config(None, flags).data == Path("/d")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = 'brokr = "mqtt://h"\ndevice = "No Id"\ndata = 5\nthreads = 0\nlog_json = 1\ncache_mb = true\nsite = ""\n'
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text), {})
    said = str(caught.value)
    assert "9 problem(s)" in said
    for part in (
        "brokr is not a key; did you mean broker?",
        "'No Id' cannot be an id",
        "data is 5",
        "threads is 0; it must be an integer in 1 .. 256",
        "log_json is 1",
        "cache_mb is True",
        "site is ''",
        "broker is missing",
        "state is missing",
    ):
        assert part in said


def test_a_url_for_tls_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TLS is not in this version"):
        read_config(write(tmp_path, GOOD.replace("mqtt:", "mqtts:")), {})


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        read_config(tmp_path / "absent", {})
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(write(tmp_path, "broker = "), {})
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(write(tmp_path, "broker = " + "[" * 100_000), {})
    path = tmp_path / "latin"
    path.write_bytes(b'broker = "\xff"')
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(path, {})
