"""One rank of the always-on trainer: puts the parts together, serves its status, ends in order."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from dedup_cache.redis_store import RedisStore
from stream.columns import batch_schema
from stream.config import Config, ConfigError
from stream.kafka import (
    BrokerUnavailable,
    TopicMissing,
    begin_offsets,
    partition_count,
    topic_id,
    wait_for_broker,
)
from stream.log import configure_logging
from stream.web import PortTakenError, StatusServer
from trainer.agreement import StepRules
from trainer.board import Board
from trainer.cut import CutError, DamagedCut, cuts_folder
from trainer.evaluation import Evaluation
from trainer.feed import BatchReader, Feed, FeedError, FeedLimits, FeedSource
from trainer.ikjt import GroupSpec, dummy_batch, group_specs
from trainer.keeper import Keeper, Origin, Trained
from trainer.latency import Ages
from trainer.lookup import KeyOrderError
from trainer.loop import NonFiniteLoss, OtherRankFailed, TrainingLoop
from trainer.meeting import STOPS, ends_when_told
from trainer.model import GroupedDLRM
from trainer.orders import Orders, StandingOrders
from trainer.planning import ShardingError
from trainer.progress import TrainingState
from trainer.ranks import Ranks, join, leave
from trainer.resolver import Resolver, ValuesLog
from trainer.run_folder import EXIT_FAILED, EXIT_OK, EXIT_OPERATOR, RunFolder
from trainer.schedule import Schedule
from trainer.segments import Marker
from trainer.sharding import ShardedModel
from trainer.steps import StepLog, steps_path
from trainer.versions import VersionError

logger = logging.getLogger("trainer")

HOPELESS = (
    ConfigError,
    ShardingError,
    CutError,
    DamagedCut,
    VersionError,
    FeedError,
    NonFiniteLoss,
    KeyOrderError,
    PortTakenError,
)
TOPIC_WAIT_S = 0.5
BEFORE_TRAINING = ("building", "resuming")

Hook = Callable[[str], object]


class Stopped(Exception):
    """Told to stop before training began."""


@dataclass(frozen=True)
class Rank:
    """What the parts of one rank share."""

    config: Config
    ranks: Ranks


def run(config: Config, *, hook: Hook = lambda _: None) -> int:
    """Train as one rank until SIGTERM or SIGINT; returns the exit status.

    `hook` is called with the name of each stage of writing cuts and versions: a place to crash in tests.
    """
    _speak()
    stop = threading.Event()
    board = Board([label.name for label in config.labels])
    folder = RunFolder.from_environment()
    try:
        with _status_server(config, board), _signals(stop):
            _train(config, board=board, stop=stop, hook=hook)
    except Stopped:
        logger.info("stopped before the first step")
    except OtherRankFailed as error:
        logger.warning("stopped", extra={"reason": str(error)})
        return EXIT_FAILED
    except HOPELESS as error:
        logger.critical("the trainer cannot go on", extra={"reason": str(error), "kind": type(error).__name__})
        folder.write_reason(str(error))
        return EXIT_OPERATOR
    except Exception as error:
        if stop.is_set() and board.status["state"] in BEFORE_TRAINING:
            # Another rank was told as well, and has ended while this one counted on it.
            logger.info("stopped before the first step", extra={"reason": str(error)})
            folder.write_done()
            return EXIT_OK
        logger.exception("the trainer failed", extra={"kind": type(error).__name__})
        return EXIT_FAILED
    folder.write_done()
    return EXIT_OK


def _train(config: Config, *, board: Board, stop: threading.Event, hook: Hook) -> None:
    torch.set_num_threads(config.trainer.threads)
    board.say("waiting_for_broker")
    origin, begins = _wait_for_topic(config, board=board, stop=stop)
    board.say("building")
    with ends_when_told(RunFolder.from_environment().write_done):
        if stop.is_set():
            raise Stopped
        ranks = join()
    rank = Rank(config, ranks)
    with ExitStack() as closing:
        trained = _new(rank)
        keeper = Keeper(trained, config=config, origin=origin, ranks=rank.ranks, hook=hook)
        board.say("resuming")
        keeper.restore()
        closing.callback(keeper.releases.close)
        feed = _feed(rank, trained=trained, begins=begins)
        closing.callback(feed.close)
        orders = standing = None
        if rank.ranks.rank == 0:
            orders = Orders(config.kafka, topic=config.topics.control)
            closing.callback(orders.close)
            board.take_order = orders.take
            standing = StandingOrders(cuts_folder(config.trainer.checkpoint_url))
        dummy = dummy_batch(_specs(config), num_labels=len(config.labels))
        schedule = Schedule(config.trainer, orders=orders, standing=standing)
        rules = StepRules(dummy, config.batch.max_samples, label_weights=_label_weights(config))
        loop = TrainingLoop(trained, feed=feed, keeper=keeper, board=board, schedule=schedule, rules=rules, stop=stop)
        board.say("training")
        logger.info("training", extra={"rank": rank.ranks.rank, "world_size": rank.ranks.world_size})
        loop.run()
        leave()


def _new(rank: Rank) -> Trained:
    """Everything at its beginning."""
    config, trainer = rank.config, rank.config.trainer
    torch.manual_seed(trainer.seed)
    meta = torch.device("meta")
    network = GroupedDLRM(
        config.features,
        labels=config.labels,
        config=trainer.model,
        derived=config.derived,
        distinct=trainer.distinct,
        device=meta,
    )
    if rank.ranks.world_size > 1:
        network.pad_sequences(config.batch.max_samples)
    model = ShardedModel(
        network, config=trainer.model, optimizer=trainer.optimizer, ranks=rank.ranks, device=trainer.device
    )
    model.fill_tables(seed=trainer.seed)
    return Trained(
        model=model,
        state=TrainingState(),
        evaluation=Evaluation(
            len(config.labels),
            window=trainer.evaluation.window_samples,
            new_item_samples=trainer.evaluation.new_item_samples,
        ),
        ages=Ages(),
        steps=StepLog(steps_path(cuts_folder(trainer.checkpoint_url), rank=rank.ranks.rank)),
    )


def _feed(rank: Rank, *, trained: Trained, begins: dict[int, int]) -> Feed:
    config, schema, stop = rank.config, batch_schema(rank.config), threading.Event()
    own = [p for p in begins if p % rank.ranks.world_size == rank.ranks.rank]
    redis = RedisStore(config.redis.url, namespace=config.redis.namespace, timeout_ms=config.redis.timeout_ms)
    log = ValuesLog(config.kafka, topic=config.topics.values, stopping=stop.is_set)
    resolver = Resolver(schema, store=redis, log=log)
    positions = trained.state.positions(begins, own=own)
    return Feed(
        FeedSource(config.kafka, config.topics.batches, positions, trained.state.next_partition),
        reader=BatchReader(
            schema,
            _specs(config),
            config.trainer.dedup,
            resolver,
            expand_ids=config.trainer.distinct.lookups == "off",
            marker=Marker.of(config),
        ),
        limits=FeedLimits(config.trainer.prefetch_batches, config.trainer.prefetch_bytes),
        stop=stop,
    )


def _wait_for_topic(config: Config, *, board: Board, stop: threading.Event) -> tuple[Origin, dict[int, int]]:
    """The topic of batches and the beginning of its partitions, once there are a broker and the topic."""
    kafka, topic = config.kafka, config.topics.batches

    def on_wait(message: str) -> None:
        board.say("waiting_for_broker", message=message)
        if stop.is_set():
            raise Stopped

    while not stop.is_set():
        try:
            wait_for_broker(kafka, on_wait=on_wait)
            origin = Origin(topic, topic_id(kafka, topic), partition_count(kafka, topic), batch_schema(config).digest())
            return origin, begin_offsets(kafka, topic)
        except TopicMissing as error:
            board.say("waiting_for_topic", message=str(error))
        except BrokerUnavailable as error:
            board.say("waiting_for_broker", message=str(error))
        stop.wait(TOPIC_WAIT_S)
    raise Stopped


def _label_weights(config: Config) -> torch.Tensor:
    given = config.trainer.model.label_weights
    return torch.tensor([given.get(label.name, 1.0) for label in config.labels])


def _specs(config: Config) -> dict[str, GroupSpec]:
    return group_specs(config.features, config.trainer.model, derived=config.derived)


def _speak() -> None:
    """Our own events as JSON lines; of the libraries only what is wrong, and not what they plan to change."""
    configure_logging("trainer", level=logging.WARNING)
    for name in ("trainer", "stream", "dedup_cache"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("torchrec", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP ask for an end in order."""
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _status_server(config: Config, board: Board) -> Iterator[None]:
    """Rank 0 answers /health, /ready, /status and /metrics for all, and takes orders at /control."""
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    trainer = config.trainer
    with StatusServer(
        trainer.host,
        trainer.port,
        status=lambda: board.status,
        ready=lambda: board.ready,
        metrics=board.metrics,
        order=board.order,
    ) as server:
        logger.info("serving status", extra={"host": trainer.host, "port": server.port})
        yield
