"""What a cut must agree with to be gone on from, and what of its own errors a trainer still shows."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream.columns import batch_schema
from stream.config import Config
from tests.trainer.made_batches import make_config
from tests.trainer.reference import new_model
from trainer import app
from trainer.cut import CutError, CutStore
from trainer.evaluation import Evaluation
from trainer.keeper import Keeper, Origin, Trained
from trainer.latency import Ages
from trainer.progress import TrainingState
from trainer.ranks import Ranks, join, leave
from trainer.sharding import ShardedModel
from trainer.steps import StepLog

# As the trainer itself does: torchrec uses what torch plans to change.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("FutureWarning", "DeprecationWarning")]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    yield join()
    leave()


def folders(root: Path) -> Config:
    return make_config(checkpoint_url=str(root / "cuts"), versions_url=str(root / "versions"))


def test_lines_and_cuts_stand_in_one_folder(tmp_path: Path, ranks: Ranks):
    config = make_config(checkpoint_url=f"file://{tmp_path}/cuts")
    trained = app._new(app.Rank(config, ranks))
    trained.steps.append({"step": 1})
    assert CutStore(config.trainer.checkpoint_url, keep=1, ranks=ranks).root == tmp_path / "cuts"
    assert (tmp_path / "cuts" / "steps.jsonl").exists()


def keeper(config: Config, ranks: Ranks) -> Keeper:
    trainer = config.trainer
    model = new_model(config, device="meta")
    sharded = ShardedModel(model, config=trainer.model, optimizer=trainer.optimizer, ranks=ranks)
    sharded.fill_tables(seed=trainer.seed)
    steps = StepLog(Path(trainer.checkpoint_url) / "steps.jsonl")
    trained = Trained(sharded, TrainingState(), Evaluation(len(config.labels)), Ages(), steps)
    origin = Origin("batches", "x", 1, str(batch_schema(config).digest()))
    return Keeper(trained, config=config, origin=origin, ranks=ranks, hook=lambda _: None)


def go_on(config: Config, ranks: Ranks) -> None:
    again = keeper(config, ranks)
    try:
        again.restore()
    finally:
        again.release()


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    records = caplog.records
    return [record for record in records if record.levelno >= logging.WARNING and record.name.startswith("trainer.")]


def test_an_older_cut_of_other_labels_is_refused(tmp_path: Path, ranks: Ranks):
    config = folders(tmp_path)
    former = keeper(config, ranks)
    former._model = None  # as cuts were, before they said what their model is
    assert former.checkpoint()
    go_on(config, ranks)
    swapped = msgspec.structs.replace(config, labels=tuple(reversed(config.labels)))
    with pytest.raises(CutError, match=r"other features, labels .* was .* and is .*former config, or .*checkpoint_url"):
        go_on(swapped, ranks)


def test_another_number_of_threads_is_told(tmp_path: Path, ranks: Ranks, caplog: pytest.LogCaptureFixture):
    config = folders(tmp_path)
    assert keeper(config, ranks).checkpoint()
    go_on(config, ranks)
    assert warnings(caplog) == []
    threads = config.trainer.threads + 1
    go_on(msgspec.structs.replace(config, trainer=msgspec.structs.replace(config.trainer, threads=threads)), ranks)
    [warning] = warnings(caplog)
    assert warning.getMessage() == "losses will not be bit for bit those of the former run"
    assert vars(warning)["was_and_is"] == {"threads": [threads - 1, threads]}


def test_an_error_is_shown_until_the_same_is_done_again(tmp_path: Path, ranks: Ranks):
    config = folders(tmp_path)
    kept = keeper(config, ranks)
    (tmp_path / "cuts").write_bytes(b"")
    assert not kept.reload(77)
    assert not kept.checkpoint()
    assert "the cut could not be written" in kept.last_error
    (tmp_path / "cuts").unlink()
    assert kept.checkpoint()
    assert "version 77" in kept.last_error
    kept.publish()
    assert kept.publisher.wait(timeout_s=60)
    assert kept.reload(1)
    assert kept.last_error == ""


def test_a_publisher_that_publishes_again_has_no_error(tmp_path: Path, ranks: Ranks):
    kept = keeper(folders(tmp_path), ranks)
    (tmp_path / "versions").write_bytes(b"")
    kept.publish()
    assert kept.publisher.wait(timeout_s=60)
    assert kept.publisher.last_error
    (tmp_path / "versions").unlink()
    kept.publish()
    assert kept.publisher.wait(timeout_s=60)
    assert (kept.publisher.last_error, kept.publisher.version) == ("", 1)


def test_a_publisher_is_waited_for_no_longer_than_told(tmp_path: Path, ranks: Ranks):
    kept, go = keeper(folders(tmp_path), ranks), threading.Event()
    kept.publisher._hook = lambda _: go.wait(60)
    kept.publish()
    assert not kept.publisher.wait(timeout_s=0)
    go.set()
    assert kept.publisher.wait(timeout_s=60)
