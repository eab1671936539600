"""`recd demo`: the whole system on one machine, every service its own process, with a live view and a report.

The order of a run, which a Ctrl-C or a dead child cuts short but never changes:

1. embedded Kafka and Redis, topics;
2. stream workers, trainer, server;
3. traffic, generated or from a file; a probe sends score requests;
4. the end of the stream: every session is closed, everything in flight is trained;
5. traffic, workers, trainer (last cut, last version) and server stop;
6. audit and report;
7. Kafka and Redis stop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from recd import report
from recd.audit import audit
from recd.demo_folder import configure, new_run_folder
from recd.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from recd.fleet import ChildDiedError, Fleet
from recd.interrupt import EXIT_INTERRUPTED, Signals, StopRequestedError
from recd.learning import Freezer, learning_of
from recd.probe import Probe
from recd.screen import Screen, service_lines
from recd.server import EmbeddedServer
from recd.telemetry import Telemetry, read
from recd.view import View
from stream.config import Config
from stream.control import send
from stream.topics import create_topics

EXIT_OK, EXIT_NOT_CLEAN = 0, 1
READY_TIMEOUT_S = 180.0
STALL_TIMEOUT_S = 90.0
"""How long the end of a stream may show no progress before the demo gives up waiting."""
CATCH_UP_S = 5.0
"""How long the server is given to take the last version."""
TICK_S = 0.5
LOG_WIDTH = 120
TRAFFIC = ("--out-of-order", "0.01", "--retries", "0.005", "--malformed", "0.001")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `recd demo` was asked for; see its --help."""

    seconds: float = 120.0
    rate: float = 1000.0
    events_path: Path | None = None
    file_format: str | None = None
    workers: int = 2
    ranks: int = 1
    seed: int = 0
    keep: bool = False
    json_path: Path | None = None
    directory: Path = Path("var/demo")
    overrides: tuple[str, ...] = ()


def run_demo(options: DemoOptions) -> int:
    """Run it; exit status 0 when the audit is clean, 1 when not or something died, 130 after Ctrl-C.

    Raises EmbeddedError when Kafka or Redis cannot start, ConfigError for a bad --set.
    """
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    directory = new_run_folder(options.directory)
    console.print(f"data and logs: {directory}", highlight=False, soft_wrap=True)
    kafka, redis = EmbeddedKafka(directory / "kafka"), EmbeddedRedis(directory / "redis")
    signals = Signals()
    with signals.installed(), ExitStack() as servers:
        try:
            with console.status("starting Apache Kafka and Redis"):
                for server in (redis, kafka):
                    servers.callback(server.stop)
                    server.start()
                config = configure(
                    options.file_format or "demo",
                    directory=directory,
                    kafka=kafka,
                    redis=redis,
                    overrides=(f"trainer.ranks={options.ranks}", *options.overrides),
                )
                create_topics(config)
            demo = Demo(options, config=config, directory=directory, screen=Screen(console), servers=(kafka, redis))
            return demo.run(signals)
        except StopRequestedError:
            return EXIT_INTERRUPTED


class Demo:
    """Steps 2 to 6 of a run, on servers that are up."""

    def __init__(
        self,
        options: DemoOptions,
        *,
        config: Config,
        directory: Path,
        screen: Screen,
        servers: Sequence[EmbeddedServer],
    ) -> None:
        log_dir = directory / "logs"
        log_dir.mkdir()
        self._options = options
        self._config = config
        self._directory = directory
        self._screen = screen
        self._servers = servers
        self._fleet = Fleet(config_path=directory / "recd.yaml", log_dir=log_dir)
        self._telemetry = Telemetry()
        self._probe = Probe(config, url=f"http://127.0.0.1:{config.serving.port}")
        self._freezer = Freezer(versions=directory / "versions", frozen=directory / "frozen")
        self._phase = "starting"
        self._began_s = time.monotonic()
        self._traffic_s: float | None = None
        self._is_kept_up = False

    def run(self, signals: Signals) -> int:
        """Whatever ends the traffic, everything stops in order and what was done is reported."""
        outcome, trouble = EXIT_OK, ""
        with self._screen.live():
            try:
                self._start_services()
                self._run_traffic()
                self._finish_stream()
                self._keep_up()
                signals.defer()
            except StopRequestedError:
                trouble = "interrupted: everything was stopped in order"
            except (ChildDiedError, TimeoutError) as error:
                outcome, trouble = EXIT_NOT_CLEAN, f"the demo cannot go on: {error}"
            signals.defer()
            self._stop_services()
        if trouble:
            self._screen.console.print(trouble, style="red", highlight=False, markup=False)
        if not self._conclude():
            return EXIT_NOT_CLEAN
        return EXIT_INTERRUPTED if signals.received and not self._is_kept_up else outcome

    def _start_services(self) -> None:
        self._phase = "starting services"
        streams = [f"stream-{i}" for i in range(self._options.workers)]
        for name in streams:
            port = free_port()
            arguments = ["stream", "--set", f"stream.port={port}", "--set", f"stream.worker_id={name}"]
            self._fleet.start(name, arguments, port=port)
        self._fleet.start("trainer", ["train"], port=self._config.trainer.port)
        self._fleet.start("serving", ["serve"], port=self._config.serving.port)
        self._fleet.wait_ready([*streams, "trainer"], timeout_s=READY_TIMEOUT_S, tick=self._look)

    def _run_traffic(self) -> None:
        options = self._options
        if options.events_path:
            self._phase = f"importing {options.events_path.name}"
            arguments = ["import", str(options.events_path), "--format", str(options.file_format)]
        else:
            self._phase = "live traffic"
            arguments = ["generate", "--seconds", str(options.seconds), "--rate", str(options.rate)]
            arguments += ["--seed", str(options.seed), *TRAFFIC]
        self._probe.start()
        self._traffic_s = time.monotonic()
        source = self._fleet.start("traffic", [*arguments, "--json", str(self._directory / "sent.json")])
        while source.exit_status is None:
            self._watch()
        self._watch()

    def _finish_stream(self) -> None:
        self._phase = "closing sessions"
        send(self._config, target="stream", action="close")
        progress, since_s = self._progress(), time.monotonic()
        while not self._is_quiet():
            self._watch()
            if (now := self._progress()) != progress:
                progress, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > STALL_TIMEOUT_S:
                raise TimeoutError(f"no progress for {STALL_TIMEOUT_S:.0f} s at the end of the stream: {progress}")

    def _progress(self) -> dict[str, int]:
        newest = self._telemetry.newest
        return {
            "events": newest.stream.get("events", 0),
            "samples": newest.stream.get("samples", 0),
            "open_sessions": newest.open_sessions,
            "lag": newest.stream_lag,
            "trained": newest.trainer.get("samples", 0),
        }

    def _is_quiet(self) -> bool:
        """Every partition is owned, nothing is open or unread, everything that was streamed is trained."""
        newest = self._telemetry.newest
        owned = {p for s in self._fleet.services.values() for p in s.status.get("partitions", {})}
        return (
            len(owned) == self._config.topics.partitions
            and newest.open_sessions == 0
            and newest.stream_lag == 0
            and newest.trainer.get("samples", 0) >= newest.stream.get("samples", 0)
            and newest.trainer.get("lag_batches", 1) == 0
        )

    def _keep_up(self) -> None:
        """`--keep`: until Ctrl-C, which then is the normal end."""
        if not self._options.keep:
            return
        self._phase = "up until Ctrl-C"
        self._is_kept_up = True
        while True:
            self._watch()

    def _stop_services(self) -> None:
        """Step 5; with a dead broker nothing waits for it."""
        self._phase = "stopping"
        self._fleet.stop("traffic")
        self._look()
        self._probe.stop()
        for name in [name for name in self._fleet.services if name.startswith("stream-")]:
            self._fleet.stop(name)
        self._fleet.stop("trainer")
        deadline = time.monotonic() + CATCH_UP_S
        while time.monotonic() < deadline and not self._server_is_current():
            time.sleep(0.1)
            self._look()
        self._fleet.stop("serving")
        self._fleet.kill_all()

    def _server_is_current(self) -> bool:
        serving = self._fleet.services.get("serving")
        if serving is None or serving.exit_status is not None:
            return True
        try:
            newest = json.loads((self._directory / "versions" / "current.json").read_text())["version"]
        except FileNotFoundError:
            return True
        return bool(serving.status.get("version") == newest)

    def _conclude(self) -> bool:
        """Step 6: whether the audit is clean. A dead broker is started again for it: the log is what counts."""
        print_ = self._screen.console.print
        with self._screen.console.status("auditing every event"):
            for server in self._servers:
                server.start()
            made = report.build_report(
                audit(self._config),
                learning=learning_of(
                    checkpoints=self._directory / "checkpoints",
                    config_path=self._directory / "recd.yaml",
                    freezer=self._freezer,
                    auc=self._telemetry.newest.trainer.get("auc"),
                ),
                telemetry=self._telemetry,
                requests=(self._probe.answered, self._probe.failed),
                live=self._options.events_path is None,
            )
        print_(report.format_report(made), highlight=False)
        if self._options.json_path:
            report.write(made, self._options.json_path)
            print_(f"report: {self._options.json_path}", highlight=False, soft_wrap=True)
        if not made.clean:
            print_(f"the audit is not clean; data and logs stay in {self._directory}", style="red", soft_wrap=True)
        return made.clean

    def _watch(self) -> None:
        """One turn: do all live, what do they say, draw it."""
        for server in self._servers:
            if not server.alive:
                raise ChildDiedError(server.name, status=server.exit_status or 0, log_path=server.log_path)
        self._fleet.check()
        self._look()
        time.sleep(TICK_S)

    def _look(self) -> None:
        self._fleet.poll()
        status = {name: s.status for name, s in self._fleet.services.items()}
        self._telemetry.add(
            read(
                time.monotonic() - self._began_s,
                workers=[s for name, s in status.items() if name.startswith("stream-")],
                trainer=status.get("trainer", {}),
                serving=status.get("serving", {}),
            )
        )
        self._freezer.look()
        self._screen.show(self._view())

    def _view(self) -> View:
        return View(
            phase=self._phase,
            elapsed_s=time.monotonic() - (self._traffic_s or self._began_s),
            total_s=self._options.seconds if self._traffic_s and not self._options.events_path else None,
            reading=self._telemetry.newest,
            rates=self._telemetry.rates(),
            ne_history=self._telemetry.ne_history,
            services=service_lines(self._servers, list(self._fleet.services.values())),
            label=self._config.labels[0].name,
            since="append" if self._options.events_path else "event",
        )
