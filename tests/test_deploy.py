"""The compose file and the images, without a Docker engine.

Compose's own parser reads the file, hadolint reads the Dockerfiles, and every service is started on this machine with
the command, environment and health check that stand in the file; only addresses and paths are rewritten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
import yaml
from numba.core.caching import UserProvidedCacheLocator

from recd import child
from recd.embedded import EmbeddedKafka, free_port, redis_binary
from stream.config import Config, load

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
OWN_SERVICES = ("topics", "stream", "trainer", "server")
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*")
DEADLINE_S = 240
WITHOUT_PRIVILEGE = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if not os.geteuid() else []
"""Root without the right to write whatever it likes."""
SHORT_SESSIONS = ["--set", "session.gap_ms=1000", "--set", "session.out_of_orderness_ms=100"]
"""Only so that the test need not wait for a session of the real length to end."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as Docker Compose resolves it, all profiles included."""
    return json.loads(docker_compose("--profile", "*", "config", "--format", "json").stdout)


def docker_compose(*arguments: str, file: Path = COMPOSE_FILE) -> subprocess.CompletedProcess[str]:
    spec = find_spec("compose")
    assert spec is not None
    assert spec.origin is not None
    command = [str(Path(spec.origin).with_name("docker-compose")), "-f", str(file), *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_compose_itself_accepts_the_file() -> None:
    answer = docker_compose("--profile", "*", "config", "--quiet")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_over_it_the_other_file_gives_the_trainer_the_gpus_and_nothing_else() -> None:
    both = ("-f", str(COMPOSE_FILE.with_name("docker-compose.gpu.yml")), "config", "--format", "json")
    answer = docker_compose(*both)
    assert (answer.returncode, answer.stderr) == (0, "")
    services = json.loads(answer.stdout)["services"]
    (device,) = services["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["trainer"]["build"]["args"] == {"RECD_SET": "gpu"}
    assert services["server"]["build"]["args"] == {"RECD_SET": "cpu"}
    assert services["server"]["image"] != services["trainer"]["image"]


def test_commands_are_started_as_the_user_of_the_image(compose: dict[str, Any]) -> None:
    user = compose["services"]["stream"]["user"]
    if not (switch := as_user(user)):
        pytest.skip(f"this process cannot become {user}, or {user} cannot run this Python: commands run as the caller")
    answer = subprocess.run([*switch, "id", "-u"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == user.partition(":")[0]


def test_compose_would_refuse_a_mistake(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE_FILE.read_text().replace("stop_grace_period: 120s", "stop_grace: 120s"))
    answer = docker_compose("config", "--quiet", file=broken)
    assert answer.returncode
    assert "stop_grace" in answer.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_every_service_is_kept_up_stopped_in_order_and_confined(compose: dict[str, Any]) -> None:
    assert {"kafka", "redis", *OWN_SERVICES} <= set(compose["services"])
    for name, service in compose["services"].items():
        assert PINNED.fullmatch(service["image"]), name
        assert service["user"].split(":")[0] not in ("", "0", "root"), name
        assert service["logging"]["options"]["max-size"], name
        if name == "topics":
            assert service["restart"].startswith("on-failure")
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert service["stop_grace_period"], name
    for name in ("redis", *OWN_SERVICES):
        service = compose["services"][name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert compose["services"]["stream"]["deploy"]["replicas"] == 2


def test_services_wait_for_what_they_need(compose: dict[str, Any]) -> None:
    needs = {name: service.get("depends_on", {}) for name, service in compose["services"].items()}
    for name in ("stream", "trainer"):
        assert {need: how["condition"] for need, how in needs[name].items()} == {
            "kafka": "service_healthy",
            "redis": "service_healthy",
            "topics": "service_completed_successfully",
        }
    assert needs["topics"]["kafka"]["condition"] == "service_healthy"


def test_what_must_survive_lies_in_volumes(compose: dict[str, Any]) -> None:
    config = load(ROOT / "deploy" / "recd.yaml")
    mounts = {
        name: {volume["target"]: volume for volume in service.get("volumes", [])}
        for name, service in compose["services"].items()
    }
    assert mounts["kafka"][compose["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"]]["source"] == "kafka"
    assert "/data" in mounts["redis"]
    assert mounts["trainer"][config.trainer.checkpoint_url]["type"] == "volume"
    versions = config.trainer.versions_url
    assert mounts["trainer"][versions]["source"] == mounts["server"][versions]["source"]
    assert mounts["server"][versions]["read_only"]
    made = (ROOT / "deploy" / "Dockerfile.trainer").read_text()
    assert config.trainer.checkpoint_url in made, "a volume takes its owner from the image's folder"
    assert versions in made
    writable = [entry.split(":")[0] for entry in compose["services"]["stream"]["tmpfs"]]
    assert any(Path(config.stream.data_dir).is_relative_to(place) for place in writable)


def test_ports_and_addresses_agree_with_the_configuration(compose: dict[str, Any]) -> None:
    config, services = load(ROOT / "deploy" / "recd.yaml"), compose["services"]
    parts = {"stream": config.stream, "trainer": config.trainer, "server": config.serving}
    for name, part in parts.items():
        assert part.host == "0.0.0.0", "a container's port must be reachable from others"  # noqa: S104
        assert services[name]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{part.port}/health"
        for port in services[name].get("ports", []):
            assert port["target"] == part.port
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert services["kafka"]["healthcheck"]["test"][-1] == config.kafka.bootstrap
    assert f"INTERNAL://{config.kafka.bootstrap}" in advertised
    assert config.redis.url.startswith("redis://redis:")
    for service in services.values():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", "nothing is open to the network unless someone asks for it"


def test_kafka_takes_the_largest_batch(compose: dict[str, Any]) -> None:
    config = load(ROOT / "deploy" / "recd.yaml")
    assert int(compose["services"]["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"]) > config.batch.max_bytes


def test_the_configuration_has_every_key_and_a_word_on_each() -> None:
    path = ROOT / "deploy" / "recd.yaml"
    written = yaml.safe_load(path.read_text())
    assert missing_keys(msgspec.to_builtins(Config(), str_keys=True), written) == []
    sections = (*written["trainer"], *written["events"], *written)
    for line in path.read_text().splitlines():
        if re.match(r"\s*\w+:", line) and line.split(":")[0].strip() not in sections:
            assert "  # " in line or "{rows:" in line, line


def missing_keys(defaults: Any, written: Any, path: str = "$") -> list[str]:
    if not isinstance(defaults, dict) or not defaults:
        return []
    missing = [f"{path}.{key}" for key in defaults if key not in written]
    for key in set(defaults) & set(written):
        missing += missing_keys(defaults[key], written[key], f"{path}.{key}")
    return missing


def test_prometheus_finds_every_service(compose: dict[str, Any]) -> None:
    config = load(ROOT / "deploy" / "recd.yaml")
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    [targets] = [{d["names"][0]: d["port"] for job in jobs for d in job["dns_sd_configs"]}]
    assert targets == {"stream": config.stream.port, "trainer": config.trainer.port, "server": config.serving.port}
    assert set(targets) <= set(compose["services"])


def test_only_what_an_image_needs_goes_into_it() -> None:
    sent = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in sent:
        assert (ROOT / name).exists(), name
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} & {
        "dedup_cache", "stream", "trainer", "serving", "recd",
    }  # fmt: skip
    assert packages <= sent


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_changed_source_file_leaves_the_layer_with_the_dependencies_alone(dockerfile: Path) -> None:
    build, _final = stages(dockerfile)
    installs = [i for i, (kind, words) in enumerate(build) if kind == "RUN" and "uv pip install" in words]
    copied = {word: i for i, (kind, words) in enumerate(build) if kind == "COPY" for word in words.split()[:-1]}
    assert len(installs) == 2
    assert {word for word, i in copied.items() if i < installs[0]} == {"pyproject.toml", "constraints"}
    sent = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == sent, "what is sent to the engine is what the image is built from"
    assert max(copied.values()) < installs[1]


def test_a_worker_in_a_container_finds_the_kernels_of_its_image() -> None:
    """Those were made with the paths and for the processor that the container asks for."""
    build, final = stages(ROOT / "deploy" / "Dockerfile.stream")
    places = [i for i, (kind, words) in enumerate(build) if kind == "RUN" and "-P -m stream.compiled.warm" in words]
    made = environment(build[: places[0]])
    found = environment(final)
    assert {name: found[name] for name in made if name.startswith("NUMBA")} == {
        "NUMBA_CACHE_DIR": "/opt/recd/kernels",
        "NUMBA_CPU_NAME": "generic",
    }
    copied = [words.split()[-2:] for kind, words in final if kind == "COPY"]
    assert any(from_ == to and Path(found["NUMBA_CACHE_DIR"]).is_relative_to(to) for from_, to in copied)


def test_kernels_are_read_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """As the image's is; numba by itself would pass over it."""
    for package in ("dedup_cache", "stream"):
        source = ROOT / package / "compiled" / "kernel.py"
        folder = tmp_path / UserProvidedCacheLocator.get_suitable_cache_subpath(str(source))
        folder.mkdir()
        for suffix in ("nbi", "nbc"):
            for file in source.parent.joinpath("__pycache__").glob(f"*.{suffix}"):
                shutil.copy(file, folder)
        folder.chmod(0o555)
    tmp_path.chmod(0o555)
    own = {"NUMBA_CACHE_DIR": str(tmp_path), "HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere"}
    locator = "NUMBA_CACHE_LOCATOR_CLASSES"
    given = environment(stages(ROOT / "deploy" / "Dockerfile.stream")[1])[locator]
    program = "from stream.compiled import sample; from dedup_cache.compiled.rows import copy_slices as kernel;"
    program += "print(kernel._dispatcher._cache.cache_path, sample.is_cached())"
    for env, path in ((own | {locator: given}, tmp_path), (own, ROOT)):
        command = [*WITHOUT_PRIVILEGE, sys.executable, "-c", program]
        answer = subprocess.run(
            command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=True
        )
        place, cached = answer.stdout.split()
        assert Path(place).is_relative_to(path)
        assert cached == "True"


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """By stage, the instructions and their words."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, text.splitlines()):
        kind, _, words = line.partition(" ")
        if kind == "FROM":
            found.append([])
        found[-1].append((kind, words))
    return found


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    """What ENV sets in a stage."""
    return dict(word.split("=", 1) for kind, words in stage if kind == "ENV" for word in words.split())


class Host:
    """Runs services of the compose file on this machine, the addresses of other containers rewritten to it."""

    def __init__(self, services: dict[str, Any], folder: Path) -> None:
        self.services = services
        self.folder = folder
        self.addresses: dict[str, str] = {}
        self.started: dict[str, child.Process] = {}

    def command(self, words: list[str]) -> list[str]:
        program, *rest = words
        installed = {
            "recd": [str(Path(sys.executable).with_name("recd"))],
            "redis-server": [str(redis_binary())],
            "redis-cli": [str(redis_binary().with_name("redis-cli"))],
        }
        return [*installed[program], *map(self.rewrite, rest)]

    def rewrite(self, text: str) -> str:
        for address, here in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", here, text)
        return text

    def start(self, name: str, words: list[str]) -> None:
        """Run `words` in place of a container of the service that `name` begins with, as its user and confined."""
        service = self.services[name.split("-", maxsplit=1)[0]]
        env = {**os.environ, "HOME": "/tmp", **service.get("environment", {})}  # noqa: S108 - as in the image
        command = [*as_user(service["user"]), *self.command(words)]
        self.started[name] = child.spawn(command, log_path=self.log(name), env=env, cwd=self.folder)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait(self, name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            ended = self.started[name].poll() if name in self.started else None
            assert ended is None, f"{name} ended with {ended}:\n{self.log(name).read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"{name}:\n{self.log(name).read_text()[-4000:]}"
            time.sleep(0.2)

    def healthy(self, service: str, port: int | None = None) -> bool:
        """Run the service's health check command as the engine does."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            program = self.rewrite(words[0]).replace("redis-cli", str(redis_binary().with_name("redis-cli")), 1)
            return subprocess.run(["sh", "-c", program], capture_output=True, check=False, timeout=60).returncode == 0
        if port is not None:
            words = [re.sub(r":\d+/", f":{port}/", word) for word in words]
        return subprocess.run(self.command(words), capture_output=True, check=False, timeout=60).returncode == 0

    def stop(self, name: str) -> int:
        """As the engine does: SIGTERM, and SIGKILL after the grace period (which would show as -9)."""
        return child.stop(self.started.pop(name), timeout_s=100)

    def stop_all(self) -> None:
        for process in self.started.values():
            child.kill(process)


def as_user(user: str) -> list[str]:
    """What starts a command as the image's user and without any privilege, where this machine can."""
    uid, _, gid = user.partition(":")
    if os.geteuid() or not uid.isdigit() or not shutil.which("setpriv"):
        return []
    confined = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    switch = ["setpriv", f"--reuid={uid}", f"--regid={gid}", *confined]
    # A Python in a home folder is out of that user's reach, and its processes start others by its path.
    reach = "import subprocess, sys; import stream; subprocess.run([sys.executable, '-c', ''], check=True)"
    able = subprocess.run([*switch, sys.executable, "-c", reach], capture_output=True, check=False)
    return [] if able.returncode else switch


@pytest.fixture
def host(compose: dict[str, Any]) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="recd-deploy-") as folder:
        made = Host(compose["services"], Path(folder))
        for place in (made.folder, made.folder / "lib"):
            place.mkdir(exist_ok=True)
            if os.geteuid() == 0:
                os.chown(place, 10001, 10001)
        try:
            yield made
        finally:
            made.stop_all()


class ComposeKafka(EmbeddedKafka):
    """The broker with the properties that the image makes of the compose file's environment."""

    environment: dict[str, str]

    def _properties(self, *, controller_port: int) -> str:
        addresses = {
            "INTERNAL://:9092": f"INTERNAL://127.0.0.1:{self.port}",
            "INTERNAL://kafka:9092": f"INTERNAL://127.0.0.1:{self.port}",
            "HOST://:29092": f"HOST://127.0.0.1:{free_port()}",
            "HOST://localhost:29092": f"HOST://localhost:{free_port()}",
            "CONTROLLER://:9093": f"CONTROLLER://127.0.0.1:{controller_port}",
            "1@kafka:9093": f"1@127.0.0.1:{controller_port}",
            "/var/lib/kafka/data": str(self._log_dir),
        }
        names = [name for name in self.environment if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"]
        properties = "".join(
            f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={self.environment[name]}\n" for name in names
        )
        for address, here in addresses.items():
            properties = properties.replace(address, here)
        return properties


@pytest.fixture
def compose_kafka(compose: dict[str, Any], tmp_path: Path) -> Iterator[ComposeKafka]:
    broker = ComposeKafka(tmp_path / "kafka")
    broker.environment = compose["services"]["kafka"]["environment"]
    with broker:
        yield broker


@pytest.mark.kafka
@pytest.mark.slow
def test_every_service_starts_with_its_command_and_is_healthy(host: Host, compose_kafka: ComposeKafka) -> None:
    """Up to a score: what is generated passes both workers, the trainer and the server, each as its own user."""
    redis_port = free_port()
    host.addresses = {
        "kafka:9092": compose_kafka.bootstrap,
        "redis:6379": f"127.0.0.1:{redis_port}",
        "-p 6379": f"-p {redis_port}",
        "/var/lib/recd": str(host.folder / "lib"),
        "/etc/recd/recd.yaml": str(host.folder / "recd.yaml"),
    }
    (host.folder / "recd.yaml").write_text(host.rewrite((ROOT / "deploy" / "recd.yaml").read_text()))

    host.start("redis", [*host.services["redis"]["command"], "--port", str(redis_port)])
    host.wait("redis", lambda: host.healthy("redis"))
    host.start("topics", host.services["topics"]["command"])
    assert host.started.pop("topics").wait() == 0, host.log("topics").read_text()

    ports = {"stream-1": free_port(), "stream-2": free_port(), "trainer": free_port(), "server": free_port()}
    for name, port in ports.items():
        service = name.split("-", maxsplit=1)[0]
        section = {"server": "serving"}.get(service, service)
        host.start(name, [*host.services[service]["command"], "--set", f"{section}.port={port}", *SHORT_SESSIONS])
    for name, port in ports.items():
        host.wait(name, lambda name=name, port=port: host.healthy(name.split("-", maxsplit=1)[0], port))  # type: ignore[misc]

    traffic = ["--rate", "400", "--seconds", "8", *SHORT_SESSIONS]
    host.start("topics-run", ["recd", "generate", "--config", "/etc/recd/recd.yaml", *traffic])
    assert host.started.pop("topics-run").wait() == 0, host.log("topics-run").read_text()
    host.wait("trainer", lambda: status(ports["trainer"])["samples"] > 0)
    host.wait("server", lambda: status(ports["server"])["version"] is not None)
    body = json.dumps({"features": {"user_id": 1}, "candidates": [{"item_id": 1}, {"item_id": 2}]}).encode()
    with urlopen(f"http://127.0.0.1:{ports['server']}/score", data=body, timeout=60) as answer:
        assert len(json.load(answer)["scores"]["click"]) == 2

    shown = "".join(metrics(port) for port in ports.values())
    assert [name for name in dashboard_metrics() if f"\n{name}" not in shown] == []

    for name in reversed(ports):
        assert host.stop(name) == 0, host.log(name).read_text()[-4000:]
    assert not host.healthy("server", ports["server"]), "the check must say so when the service is gone"


def status(port: int) -> dict[str, Any]:
    with urlopen(f"http://127.0.0.1:{port}/status", timeout=60) as answer:
        shown = json.load(answer)
    assert isinstance(shown, dict)
    return shown


def metrics(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return "\n" + answer.read().decode()


def dashboard_metrics() -> set[str]:
    """Every metric that a panel of the dashboard asks for."""
    panels = json.loads((ROOT / "deploy" / "grafana" / "recd.json").read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    names = set(re.findall(r"recd_\w+", asked))
    assert len(names) > 20
    return names
