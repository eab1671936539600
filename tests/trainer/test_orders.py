"""Orders that come by HTTP: taken like those of the topic, or refused with the reason."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from recd.embedded import EmbeddedKafka
from stream.config import KafkaConfig
from stream.web import StatusServer
from trainer.board import Board
from trainer.orders import Order, Orders

pytestmark = pytest.mark.kafka


@pytest.fixture
def orders(kafka: EmbeddedKafka, topic_prefix: str) -> Iterator[Orders]:
    made = Orders(KafkaConfig(bootstrap=kafka.bootstrap), topic=f"{topic_prefix}control")
    yield made
    made.close()


@pytest.fixture
def board() -> Board:
    return Board(["click"])


@pytest.fixture
def port(board: Board) -> Iterator[int]:
    with StatusServer("127.0.0.1", 0, status=dict, ready=lambda: True, order=board.order) as server:
        yield server.port


def post(port: int, body: bytes, *, path: str = "/control") -> tuple[int, dict[str, object]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_an_order_by_http_is_taken(orders: Orders, board: Board, port: int) -> None:
    order = b'{"target": "trainer", "action": "reload", "id": "x", "version": 3}'
    assert post(port, order) == (400, {"error": "the trainer is not ready for orders yet"})
    board.take_order = orders.take
    assert post(port, order) == (202, {"ok": True})
    assert post(port, b'{"target": "all", "action": "pause"}')[0] == 202
    assert [orders.next(), orders.next(), orders.next()] == [Order("reload", "x", 3), Order("pause"), None]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "control message"),
        (b'{"target": "trainer", "action": "explode"}', "not 'explode'"),
        (b'{"target": "trainer", "action": "reload"}', "with a version above 0"),
        (b'{"target": "serving", "action": "reload", "version": 1}', "the trainer knows"),
    ],
)
def test_what_is_no_order_for_the_trainer_is_refused(
    orders: Orders, board: Board, port: int, body: bytes, complaint: str
) -> None:
    board.take_order = orders.take
    status, answer = post(port, body)
    assert status == 400
    assert complaint in str(answer["error"])
    assert (orders.next(), orders.refused) == (None, 1)


def test_other_paths_and_large_bodies_take_nothing(orders: Orders, board: Board, port: int) -> None:
    board.take_order = orders.take
    assert post(port, b"{}", path="/status")[0] == 404
    assert post(port, b" " * (1 << 17))[0] == 413
    assert orders.next() is None
