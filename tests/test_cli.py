"""What the command says and refuses, before any server is needed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from recd.cli import cli
from stream.compiled import warm
from stream.config import Config, load


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments), prog_name="recd", catch_exceptions=False)
    return result.exit_code, result.output


def test_every_command_explains_itself() -> None:
    code, text = run("--help")
    assert code == 0
    for name in cli.commands:
        assert name in text
        code, help_text = run(name, "--help")
        assert code == 0
        assert (cli.commands[name].help or "").split(".")[0] in " ".join(help_text.split())


def test_the_printed_configuration_is_the_one_in_force(tmp_path: Path) -> None:
    code, text = run("config", "--set", "session.gap_ms=1234")
    assert code == 0
    path = tmp_path / "recd.yaml"
    path.write_text(text)
    assert load(path) == load(None, overrides=("session.gap_ms=1234",)) != Config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("session.gap_ms=abc", "Expected int, got str - at $.session.gap_ms"),
        ("sesion.gap_ms=1", "unknown field sesion"),
        ("session.gap=1", "unknown field gap - at $.session"),
        ("session.gap_ms=-1", ">= 1"),
        ("session.gap_ms", "expected KEY=VALUE"),
        ("session.gap_ms=[", "not YAML"),
        ("features=[{name: a, group: g, source: session.items, type: float}]", "type of its own"),
        ("features=[{name: a, group: g}, {name: a, group: h}]", "named twice - at $.features[1].name"),
        ("labels=[{name: a, engagements: [buy]}]", "not one of events.engagements"),
        ("stream.static_member=true", "set worker_id - at $.stream.static_member"),
        ("trainer.model.tables={nobody: {rows: 3}}", "no id feature has this name"),
        ("trainer.model.label_weights={nobody: 3}", "no label has this name, there are click"),
    ],
)
def test_a_bad_key_is_refused_with_its_path(override: str, message: str) -> None:
    code, text = run("config", "--set", override)
    assert code == 2
    assert message in text


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    for content, message in (("a: [", "not YAML"), ("- 1", "Expected object, got list - at $")):
        path.write_text(content)
        code, text = run("config", "--config", str(path))
        assert code == 2
        assert str(path) in text
        assert message in text
    assert run("config", "--config", str(tmp_path / "none.yaml"))[0] == 2


def test_an_order_that_a_service_does_not_know_is_refused() -> None:
    code, text = run("control", "serving", "pause")
    assert code == 2
    assert "serving knows reload" in text


def test_health_answers_by_exit_status() -> None:
    assert run("health", "http://127.0.0.1:9/health")[0] == 1


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "--into", "again", "--from-offset", "1"),
        ("archive", "--set", "kafka.options={nonsense: 'yes'}"),
        ("advise", "--set", "features=[]"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_reads_events_loads_the_kernels(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_started", started := threading.Lock())
    assert CliRunner().invoke(cli, command).exit_code != 0
    assert started.locked()


def imported_by(program: str) -> set[str]:
    """Top-level packages that a new process has imported at the end of `program`."""
    program += "\nprint(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{program}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_a_worker_imports_nothing_that_it_does_not_need() -> None:
    refused = {"torch", "torchrec", "fbgemm_gpu", "trainer", "serving"}
    later = {"numba", "llvmlite", "pyarrow", "rich", "zstandard", "fsspec", "psutil", "fastavro", "requests", "httpx"}
    assert not (refused | later) & imported_by("import recd.cli, stream.app")


def test_help_and_health_checks_import_hardly_anything() -> None:
    """Container engines start `recd health` every few seconds."""
    for words in (["--help"], ["stream", "--help"], ["health", "http://127.0.0.1:9/health"]):
        program = f"from recd.cli import main\nsys.argv = ['recd', *{words}]\ntry: main()\nexcept SystemExit: pass"
        found = imported_by(program)
        assert "click" in found
        heavy = {"numpy", "msgspec", "yaml", "confluent_kafka", "faust", "aiohttp", "redis", "numba", "stream"}
        assert not heavy & found, words
