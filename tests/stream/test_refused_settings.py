"""Settings that no retry can help end `recd stream` with one line that names the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream.config import KafkaConfig
from stream.kafka import GroupConsumer, OptionRefused, TransactionalWriter, Writer, wait_for_broker
from tests.stream.rig import ROOT


def failure(*sets: str) -> str:
    """The reason that `recd stream` gives when it ends by itself."""
    options = [part for text in ("stream.port=0", "kafka.bootstrap=127.0.0.1:1", *sets) for part in ("--set", text)]
    command = [sys.executable, "-m", "recd", "stream", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (failed,) = [line for line in map(json.loads, done.stderr.splitlines()) if line["event"] == "failed"]
    return str(failed["reason"])


def test_an_option_that_librdkafka_does_not_know(tmp_path: Path) -> None:
    reason = failure('kafka.options={"bogus.key":"1"}', f"stream.data_dir={tmp_path}")
    assert reason.startswith("kafka.options (bogus.key): ")


@pytest.mark.parametrize("options", [{"bogus.key": "1"}, {"socket.timeout.ms": "soon"}])
def test_options_are_refused_before_the_broker_is_waited_for(options: dict[str, str]) -> None:
    with pytest.raises(OptionRefused, match=rf"kafka\.options.*{next(iter(options))}"):
        wait_for_broker(KafkaConfig(bootstrap="127.0.0.1:1", options=options), timeout_ms=100)


class Nobody:
    """Hears of no partition: there is no broker."""

    def assigned(self, partitions: list[int]) -> None: ...

    def revoked(self, partitions: list[int]) -> None: ...

    def lost(self, partitions: list[int]) -> None: ...


def test_options_that_only_one_kind_of_client_refuses() -> None:
    session = KafkaConfig(bootstrap="127.0.0.1:1", options={"session.timeout.ms": "6000"})
    with pytest.raises(OptionRefused, match=r"kafka\.options \(session\.timeout\.ms\): .*defined broker side"):
        GroupConsumer(session, topic="t", group_id="g", protocol="consumer", rebalance=Nobody())
    unsafe = KafkaConfig(bootstrap="127.0.0.1:1", options={"acks": "1"})
    with pytest.raises(OptionRefused, match=r"kafka\.options \(acks\): .*must be set to `all`"):
        Writer(unsafe)
    with pytest.raises(OptionRefused, match=r"kafka\.options \(acks\)"):
        TransactionalWriter(unsafe, transactional_id="t", timeout_ms=10_000, compression="zstd", max_batch_bytes=1_000)


def test_a_data_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reason = failure(f"stream.data_dir={tmp_path}/file/data")
    assert reason.startswith(f"stream.data_dir: cannot make the folder {tmp_path}/file/data: ")


def test_a_data_dir_is_made_with_its_parents(tmp_path: Path) -> None:
    failure(f"stream.data_dir={tmp_path}/a/b/c", 'kafka.options={"bogus.key":"1"}')
    assert (tmp_path / "a/b/c").is_dir()
