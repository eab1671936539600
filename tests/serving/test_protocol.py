"""A server that speaks the Open Inference Protocol: by plain HTTP, and to Triton's own client."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.serving.served_world import expected_scores, new_model, snapshot
from tests.serving.service import Service, server_config
from tests.serving.test_tensors import as_binary, body, whole
from trainer.versions import VersionStore

MODEL = "/v2/models/ranker"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With version 1 in service."""
    folder = tmp_path_factory.mktemp("protocol")
    config = server_config(folder, model_name="ranker")
    VersionStore(config.trainer.versions_url, keep=100).publish(snapshot(new_model(1)))
    service = Service(config, folder)
    try:
        service.wait(lambda: service.ask("GET", "/ready")[0] == 200)
        yield service
    finally:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="module")
def expected(served: Service) -> dict[str, list[float]]:
    return expected_scores(VersionStore(served.config.trainer.versions_url, keep=100).load(1))


def post(service: Service, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    try:
        connection.request("POST", path, body=data, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_server_says_what_it_is(served: Service) -> None:
    assert served.ask("GET", "/v2/health/live") == (200, {"live": True})
    assert served.ask("GET", "/v2/health/ready") == (200, {"ready": True})
    code, told = served.ask("GET", "/v2")
    assert (code, told["name"], told["extensions"]) == (200, "recd", ["binary_tensor_data"])
    assert served.ask("GET", f"{MODEL}/ready") == (200, {"name": "ranker", "ready": True})
    assert served.ask("GET", f"{MODEL}/versions/1/ready")[0] == 200
    assert served.ask("GET", f"{MODEL}/versions/2/ready")[0] == 400
    code, told = served.ask("GET", MODEL)
    assert (code, told["versions"]) == (200, ["1"])
    assert {"name": "click", "datatype": "FP32", "shape": [-1]} in told["outputs"]
    assert "tags/lengths" in {each["name"] for each in told["inputs"]}
    assert served.ask("GET", f"{MODEL}/versions/1")[1] == told


@pytest.mark.parametrize("path", ["/infer", "/versions/1/infer"])
def test_it_infers_in_json(served: Service, expected: dict[str, list[float]], path: str) -> None:
    given = whole()
    given["price"] = {"name": "price", "datatype": "FP32", "shape": [4], "data": [12.5, 0.0, 0.1, 12.5]}
    data, _ = body(given, id="42", outputs=[{"name": "like"}])
    code, told = served.ask("POST", MODEL + path, data)
    assert (code, told["model_name"], told["model_version"], told["id"]) == (200, "ranker", "1", "42")
    [like] = told["outputs"]
    assert (like["name"], like["datatype"], like["shape"]) == ("like", "FP32", [4])
    np.testing.assert_allclose(like["data"], expected["like"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_it_infers_in_binary(served: Service, expected: dict[str, list[float]], packed: bool) -> None:
    asked = {name: as_binary(each) for name, each in whole().items()}
    data, size = body(asked, parameters={"binary_data_output": True})
    headers = {"Inference-Header-Content-Length": str(size)} | ({"Content-Encoding": "gzip"} if packed else {})
    code, told, answer = post(served, f"{MODEL}/infer", gzip.compress(data) if packed else data, headers)
    assert code == 200
    size = int(told["Inference-Header-Content-Length"])
    head = msgspec.json.decode(answer[:size])
    assert [output["name"] for output in head["outputs"]] == ["click", "like"]
    scores = np.frombuffer(answer[size:], "<f4").reshape(2, 4)
    np.testing.assert_allclose(scores, list(expected.values()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "complaint"),
    [
        ("/v2/models/nobody/infer", b"{}", {}, 404, "there is no model nobody, but ranker"),
        (f"{MODEL}/versions/7/infer", b"{}", {}, 404, "version 7 of ranker is not in service, but 1"),
        (f"{MODEL}/infer", b'{"inputs": []}', {}, 400, "the input user is required, but missing"),
        (f"{MODEL}/infer", b'{"inputs": [], "outputs": [{"name": "x"}]}', {}, 400, "no output x, but click, like"),
        (f"{MODEL}/infer", b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "is no number of bytes: -1"),
        (f"{MODEL}/infer", b"no gzip", {"Content-Encoding": "gzip"}, 400, "cannot be read"),
        (f"{MODEL}/nothing", b"", {}, 404, "Not Found"),
    ],
)
def test_errors_are_objects_that_say_why(
    served: Service, path: str, data: bytes, headers: dict[str, str], status: int, complaint: str
) -> None:
    code, told, answer = post(served, path, data, headers)
    assert code == status
    assert told["Content-Type"].startswith("application/json")
    assert complaint in msgspec.json.decode(answer)["error"]


def test_a_client_may_be_in_a_hurry(served: Service) -> None:
    data, size = body(whole(), parameters={"timeout": 1})
    code, _, answer = post(served, f"{MODEL}/infer", data, {"Inference-Header-Content-Length": str(size)})
    assert (code, msgspec.json.decode(answer)) == (504, {"error": "no scores within 0.001 ms"})


def test_tritons_client_works(served: Service, expected: dict[str, list[float]]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{served.port}", network_timeout=60.0, connection_timeout=60.0)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("ranker")
        assert not client.is_model_ready("ranker", "2")
        kinds = {each["name"]: each["datatype"] for each in client.get_model_metadata("ranker")["inputs"]}
        for binary in (True, False):
            inputs = [_triton_input(triton, each, kinds[name], binary) for name, each in whole().items()]
            found = client.infer("ranker", inputs, request_id="7")
            assert found.get_response()["id"] == "7"
            for label, scores in expected.items():
                np.testing.assert_allclose(found.as_numpy(label), scores, rtol=0, atol=1e-6)
        with pytest.raises(Exception, match="there is no model nobody"):
            client.infer("nobody", inputs)
    finally:
        client.close()


def _triton_input(triton: Any, each: dict[str, Any], kind: str, binary: bool) -> Any:
    made = triton.InferInput(each["name"], each["shape"], kind)
    if each["name"] == "price":
        values = np.array([12.5, np.nan, 0.1, 12.5], np.float32)
        binary = True  # JSON has no NaN
    else:
        types = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}
        values = np.array(each["data"], types[kind]).reshape(each["shape"])
    made.set_data_from_numpy(values, binary_data=binary)
    return made
