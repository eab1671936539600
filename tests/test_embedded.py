"""The embedded servers are real, keep their data, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from recd import child
from recd.embedded import EmbeddedError, EmbeddedKafka, EmbeddedRedis, PortTakenError, free_port
from recd.java import cached_kafka_jars, class_archive, java, kafka_jars

NUM_RECORDS = 100

PARENT = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from recd.embedded import EmbeddedRedis

servers = []
starter = threading.Thread(target=lambda: servers.append(EmbeddedRedis(Path(sys.argv[1])).start()))
starter.start()
starter.join()
print(servers[0].pid, flush=True)
sys.stdin.read()
"""


def create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=30)


def write(bootstrap: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for number in range(NUM_RECORDS):
        producer.produce(topic, value=str(number).encode())
    assert producer.flush(30) == 0


def read(bootstrap: str, topic: str) -> list[int]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    try:
        consumer.subscribe([topic])
        numbers: list[int] = []
        deadline = time.monotonic() + 30
        while len(numbers) < NUM_RECORDS and time.monotonic() < deadline:
            for message in consumer.consume(NUM_RECORDS, timeout=0.5):
                assert message.error() is None
                numbers.append(int(message.value() or b""))
        return numbers
    finally:
        consumer.close()


def wait_until_gone(pid: int, *, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.kafka
def test_kafka_carries_records(kafka: EmbeddedKafka, topic_prefix: str) -> None:
    topic = f"{topic_prefix}numbers"
    create_topic(kafka.bootstrap, topic)
    write(kafka.bootstrap, topic)
    assert read(kafka.bootstrap, topic) == list(range(NUM_RECORDS))


@pytest.mark.kafka
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_kafka_keeps_its_records_and_port(private_kafka: EmbeddedKafka, end: str) -> None:
    create_topic(private_kafka.bootstrap, "numbers")
    write(private_kafka.bootstrap, "numbers")
    port, pid = private_kafka.port, private_kafka.pid

    getattr(private_kafka, end)()
    assert not psutil.pid_exists(pid)
    assert not private_kafka.alive
    private_kafka.start()

    assert private_kafka.port == port
    assert private_kafka.pid != pid
    assert read(private_kafka.bootstrap, "numbers") == list(range(NUM_RECORDS))


@pytest.mark.kafka
def test_two_kafkas_do_not_meet(kafka: EmbeddedKafka, private_kafka: EmbeddedKafka) -> None:
    assert kafka.port != private_kafka.port
    create_topic(private_kafka.bootstrap, "only-here")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    assert "only-here" not in admin.list_topics(timeout=30).topics


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_redis_keeps_its_values(private_redis: EmbeddedRedis, end: str) -> None:
    with Redis.from_url(private_redis.url) as client:
        client.set("answer", 42)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    if end == "kill":
        time.sleep(1.2)  # appendfsync everysec
    getattr(private_redis, end)()
    private_redis.start()
    with Redis.from_url(private_redis.url) as client:
        assert client.get("answer") == b"42"


def test_redis_without_appendonly_forgets(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", appendonly=False)
    with server, Redis.from_url(server.url) as client:
        client.set("answer", 42)
    with server, Redis.from_url(server.url) as client:
        assert client.get("answer") is None


def test_start_twice_is_one_server(private_redis: EmbeddedRedis) -> None:
    pid = private_redis.pid
    assert private_redis.start().pid == pid


def test_cached_jars_are_found_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = kafka_jars()
    monkeypatch.setitem(sys.modules, "jgo", None)
    assert cached_kafka_jars() == kafka_jars() == resolved


def test_the_archive_of_kafkas_classes_is_one_that_this_java_takes() -> None:
    if not class_archive().exists():
        pytest.skip("this checkout was not set up by `make setup`")
    jars = os.pathsep.join(map(str, kafka_jars()))
    used = [f"-XX:SharedArchiveFile={class_archive()}", "-Xshare:on", "-XX:+UseSerialGC", "-cp", jars]
    command = [str(java()), *used, "kafka.tools.StorageTool", "random-uuid"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_servers_die_with_a_killed_parent_and_outlive_the_thread_that_started_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "redis")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert psutil.Process(server_pid).name().startswith("redis")
        parent.kill()
        assert wait_until_gone(server_pid)


def test_servers_are_out_of_reach_of_ctrl_c(private_redis: EmbeddedRedis) -> None:
    assert os.getpgid(private_redis.pid) == private_redis.pid != os.getpgid(0)


@pytest.mark.parametrize("server_type", [EmbeddedRedis, EmbeddedKafka])
def test_taken_port_is_named(
    private_redis: EmbeddedRedis, tmp_path: Path, server_type: type[EmbeddedRedis] | type[EmbeddedKafka]
) -> None:
    server = server_type(tmp_path / "second", port=private_redis.port)
    with pytest.raises(PortTakenError, match=rf"port {private_redis.port}.*choose another"):
        server.start()
    assert not server.alive


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"MiB are available: stop something or give it a smaller heap"):
        EmbeddedKafka(tmp_path, heap_mb=1 << 30).start()


def test_a_server_that_dies_at_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    data = tmp_path / "redis"
    (data / "appendonly.aof").mkdir(parents=True)
    with pytest.raises(EmbeddedError, match=r"(?s)died at start with status 1: .*redis\.log ends with:.*append"):
        EmbeddedRedis(data).start()


def test_free_ports_are_not_the_kernels_own() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(low <= free_port() <= high for _ in range(20))


def test_a_missing_program_is_said_in_the_log(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    process = child.spawn(["/no/such/program"], log_path=log_path)
    assert process.wait() == 1
    assert "No such file or directory" in log_path.read_text()


def test_stop_insists(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    log_path = tmp_path / "log"
    process = child.spawn([sys.executable, "-c", program], log_path=log_path)
    while not log_path.read_text():
        time.sleep(0.02)
    assert child.stop(process, timeout_s=0.2) == -9


def test_a_server_killed_while_it_starts_is_said_to_be(tmp_path: Path) -> None:
    server = EmbeddedKafka(tmp_path / "kafka")
    starter = ThreadPoolExecutor(1).submit(server.start)
    deadline = time.monotonic() + 30
    while not server.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(EmbeddedError, match=r"was killed at start: too little memory"):
        starter.result(timeout=30)
