"""One user and K candidates as tensors of the Open Inference Protocol: scored as by `/score`, or a named error."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.errors import RequestError
from serving.model import ServedModel
from serving.tensors import Inference, read_inference, write_inference
from tests.serving.served_world import new_model, published, request

Described = dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(published(new_model(1), tmp_path_factory.mktemp("versions")))


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> Described:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def inputs() -> dict[str, Described]:
    """What `request()` asks, as tensors."""
    given = [
        tensor("user", "BYTES", [1], ["ada"]),
        tensor("age", "FP32", [1], [41.5]),
        tensor("history", "INT64", [4], [7, 8, 9, 10]),
        tensor("taste", "FP32", [1, 2], [[0.25, -3]]),
        tensor("item", "INT64", [4], [7, -9, 2**62, 7]),
        tensor("price", "FP32", [3], [12.5, 0.1, 12.5]),
        tensor("tags", "BYTES", [7], ["news", "sport", "örtlich", "news", "news", "sport", "örtlich"]),
        tensor("tags/lengths", "INT32", [4], [3, 0, 1, 3]),
        tensor("seen", "INT64", [1, 2], [7, -9]),
        tensor("shown", "FP32", [1], [2]),
        tensor("since", "FP32", [1], [2500]),
    ]
    return {each["name"]: each for each in given}


def whole() -> dict[str, Described]:
    """With a number for every candidate: NaN is the missing price, which JSON cannot say."""
    given = inputs()
    given["price"] = tensor("price", "FP32", [4], b"")
    return given


def of_shape(shape: list[int]) -> bytes:
    return json.dumps({"inputs": [tensor("a", "INT64", shape, [[1]])]}).encode()


PRICES = np.array([12.5, np.nan, 0.1, 12.5], "<f4").tobytes()


def body(given: dict[str, Described], **more: Any) -> tuple[bytes, int]:
    """The bytes of a request whose `data` that are bytes go behind the JSON, and the JSON's size."""
    described, behind = [], []
    for each in given.values():
        if isinstance(each["data"], bytes):
            data = PRICES if each["name"] == "price" and not each["data"] else each["data"]
            behind.append(data)
            rest = {key: value for key, value in each.items() if key != "data"}
            described.append({"parameters": {"binary_data_size": len(data)}} | rest)
        else:
            described.append(each)
    written = msgspec.json.encode({"inputs": described, **more})
    return b"".join([written, *behind]), len(written)


def inference(given: dict[str, Described], **more: Any) -> Inference:
    data, size = body(given, **more)
    return read_inference(data, json_size=size)


def scores(served: ServedModel, given: dict[str, Described]) -> np.ndarray:
    asked = served.recipe.tensors.request(inference(given).tensors)
    [found] = served.score_all([asked]).scores
    assert isinstance(found, np.ndarray)
    return found


def expected(served: ServedModel) -> np.ndarray:
    return np.array(list(served.score(msgspec.json.encode(request())).scores.values()), np.float32)


def test_tensors_are_scored_as_the_same_request_in_json(served: ServedModel) -> None:
    np.testing.assert_array_equal(scores(served, whole()), expected(served))


def as_binary(each: Described) -> Described:
    """The same tensor, its data as bytes."""
    if isinstance(each["data"], bytes):
        return each
    if each["datatype"] == "BYTES":
        texts = [text.encode() for text in each["data"]]
        return each | {"data": b"".join(len(text).to_bytes(4, "little") + text for text in texts)}
    kind = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}[each["datatype"]]
    return each | {"data": np.array(each["data"], kind).tobytes()}


def test_the_binary_extension_says_the_same(served: ServedModel) -> None:
    given = {name: as_binary(each) for name, each in whole().items()}
    np.testing.assert_array_equal(scores(served, given), expected(served))


@pytest.mark.parametrize(
    "other",
    [
        tensor("item", "INT64", [4, 1], [[7], [-9], [2**62], [7]]),
        tensor("user", "BYTES", [4], ["ada"] * 4),
        tensor("age", "FP64", [4], [41.5] * 4),
        tensor("taste", "FP32", [2], [0.25, -3.0]),
        tensor("history", "INT32", [4, 4], [7, 8, 9, 10] * 4),
        tensor("history", "INT64", [6], [1, 2, 7, 8, 9, 10]),
        tensor("shown", "FP32", [4, 1], [[2], [2], [2], [2]]),
    ],
    ids=lambda each: f"{each['name']} {each['datatype']} {each['shape']}",
)
def test_the_same_in_other_shapes(served: ServedModel, other: Described) -> None:
    """Shared or one a candidate, flat or nested, with earlier ids that a list drops."""
    np.testing.assert_array_equal(scores(served, whole() | {other["name"]: other}), expected(served))


def test_what_is_left_away_is_missing(served: ServedModel) -> None:
    """No age, no history, no price; the third candidate has no tags; lengths of 0 say so of single ids."""
    asked = request()
    del asked["features"]["age"], asked["features"]["history"]
    for candidate in asked["candidates"]:
        candidate.pop("price", None)
    given = inputs()
    del given["age"], given["history"], given["price"]
    plain = served.score(msgspec.json.encode(asked))
    np.testing.assert_array_equal(scores(served, given), np.array(list(plain.scores.values()), np.float32))
    given["user"] = tensor("user", "BYTES", [1, 1], [["ada"]])
    given["item/lengths"] = tensor("item/lengths", "INT32", [4], [1, 1, 1, 1])
    np.testing.assert_array_equal(scores(served, given), np.array(list(plain.scores.values()), np.float32))


def test_no_candidates_no_scores(served: ServedModel) -> None:
    given = {name: inputs()[name] for name in ("user",)} | {"item": tensor("item", "INT64", [0], [])}
    assert scores(served, given).shape == (2, 0)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (tensor("prize", "FP32", [1], [1]), "the model has no input prize"),
        (tensor("item", "INT64", [3], [1, 2, 3]), r"disagree on the number of candidates: 3 \(item\) and 4 \(price\)"),
        (tensor("item", "FP32", [4], [1, 2, 3, 4]), "the input item is FP32, expected INT64 or INT32"),
        (tensor("item", "INT64", [4], [1, 2, 3]), r"shape \[4\] has 4 elements, got 3 - at .*\(item\)\.data"),
        (tensor("item", "INT64", [4], [1, 2, 3, "4"]), r"Expected int, got str - at .*\(item\)\.data\[3\]"),
        (tensor("item", "INT64", [4], [1, 2, 3, 2**63]), r"\(item\)\.data\[3\]"),
        (tensor("item", "INT32", [4], [1, 2, 3, 2**31]), r"no INT32 - at .*\(item\)\.data"),
        (tensor("item", "INT64", [2, 2], [[1, 2], [3, 4]]), "the input item has rows of 2 values, expected one"),
        (tensor("item", "INT8", [4], [1, 2, 3, 4]), "datatype INT8 is none of"),
        (tensor("item", "INT64", [-1], [1]), r"a size below 0 in \[-1\]"),
        (tensor("item", "INT64", [1, 1, 1], [[[1]]]), "has 3 dimensions, expected 1 or 2"),
        (tensor("item", "INT64", [4], b"1234567"), "7 bytes are no whole number of INT64"),
        (tensor("item/lengths", "INT32", [5], [1, 1, 0, 1, 1]), r"item is required, but missing in row 2"),
        (tensor("tags/lengths", "INT32", [4], [3, 0, 1, 2]), "adds up to 6, but tags has 7 values"),
        (tensor("tags/lengths", "INT32", [4], [3, -1, 2, 3]), "a length that is no part of tags"),
        (tensor("tags/lengths", "INT64", [2], [2**62, 2**62]), "a length that is no part of tags"),
        (tensor("tags", "BYTES", [7], b"\x01\0\0"), r"the element 0 goes beyond the tensor's end - at .*\(tags\)"),
        (tensor("tags", "BYTES", [1], b"\x01\0\0\0\xff"), r"the element 0 is not UTF-8 - at .*\(tags\)"),
        (tensor("seen", "BYTES", [1], ["4"]), "the input seen is BYTES, expected INT64 or INT32"),
        (tensor("taste", "FP32", [1, 3], [1, 2, 3]), r"taste has shape \[1, 3\], expected \[rows, 2\]"),
        (tensor("taste", "FP32", [1, 2], np.array([1, np.nan], "<f4").tobytes()), "a row that is NaN in part"),
        (tensor("age", "FP64", [1], np.array([1e39], "<f8").tobytes()), "age has a number beyond float32"),
        (tensor("age", "FP32", [1], np.array([np.inf], "<f4").tobytes()), "age has a number beyond float32"),
        (tensor("age", "FP32", [2, 1], [[1, 2]]), r"data is not nested as \[2, 1\] says"),
        (tensor("age", "FP32", [1], None), r"Expected array, got null - at .*\(age\)\.data"),
        (
            {"name": "age", "datatype": "FP32", "shape": [1], "data": b"1234", "parameters": {"binary_data_size": 99}},
            "binary_data_size is 99",
        ),
    ],
    ids=lambda each: each["name"] + str(each["shape"]) if isinstance(each, dict) else "",
)
def test_what_does_not_fit_is_named(served: ServedModel, other: Described, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        scores(served, whole() | {other["name"]: other})


def test_what_is_missing_is_named(served: ServedModel) -> None:
    given = whole()
    del given["item"]
    with pytest.raises(RequestError, match="the input item is required, but missing"):
        scores(served, given)
    given = whole()
    del given["tags"]
    with pytest.raises(RequestError, match="tags/lengths is given without tags"):
        scores(served, given)


@pytest.mark.parametrize(
    ("raw", "size", "complaint"),
    [
        (b"", None, "the body has 0 bytes"),
        (b"{", None, "truncated"),
        (b"{}", None, "missing required field inputs"),
        (b'{"inputs": []}', 99, "is 99, but the body has 14 bytes"),
        (b'{"inputs": []}more', 14, "4 bytes follow the last tensor"),
        (b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}', None, "neither data nor binary_data_size"),
        (b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": "x"}]}', None, r"\$\.inputs\[0\]\.shape"),
        (b"[" * 100_000, None, "array"),
        (of_shape([1] * 9), None, r"9 dimensions, at most 8 - at .*\(a\)\.shape"),
        pytest.param(of_shape([1] * 200_000), None, "200000 dimensions", id="no stack for so many"),
        (b'{"inputs": [], "parameters": {"timeout": -1}}', None, r"a timeout below 0: -1"),
    ],
)
def test_what_is_no_request_is_refused(raw: bytes, size: int | None, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        read_inference(raw, json_size=size)


def test_an_indented_body_says_the_same() -> None:
    nested = {"name": "a", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    for indent in (None, 1, 4, 40):
        read = read_inference(json.dumps({"inputs": [nested]}, indent=indent).encode(), json_size=None)
        np.testing.assert_array_equal(read.tensors["a"].values, [1, 2, 3, 4])


def test_an_input_given_twice_is_refused() -> None:
    age = tensor("age", "FP32", [1], [1])
    with pytest.raises(RequestError, match=r"given twice - at \$\.inputs\[1\] \(age\)"):
        read_inference(msgspec.json.encode({"inputs": [age, age]}), json_size=None)


def test_an_answer_may_be_partly_binary() -> None:
    outputs = {"click": np.array([0.25, 0.5], np.float32), "like": np.array([1.0, 0.0], np.float32)}
    written, size = write_inference({"model_name": "recd"}, outputs, binary=frozenset({"like"}))
    assert size is not None
    told = msgspec.json.decode(written[:size])
    assert told["outputs"] == [
        {"name": "click", "datatype": "FP32", "shape": [2], "data": [0.25, 0.5]},
        {"name": "like", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    assert np.frombuffer(written[size:], "<f4").tolist() == [1.0, 0.0]
    assert write_inference({}, outputs, binary=frozenset())[1] is None


def test_the_model_says_what_it_reads(served: ServedModel) -> None:
    told = {each["name"]: (each["datatype"], each["shape"]) for each in served.recipe.tensors.inputs()}
    assert told["user"] == ("BYTES", [-1])
    assert told["taste"] == ("FP32", [-1, 2])
    assert told["seen"] == ("INT64", [-1])
    assert told["tags/lengths"] == ("INT32", [-1])
    assert set(whole()) <= set(told)
    assert "age/lengths" not in told
