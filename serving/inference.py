"""The Open Inference Protocol, version 2, over REST: what KServe's and Triton's clients speak.

How features are tensors is said in `serving.tensor_schema`; each label is an output, FP32 [K].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from typing import Any

import msgspec
from aiohttp import web

from serving.errors import NotReadyError, RequestError, UnknownModelError
from serving.follower import Follower
from serving.intake import Asked, Intake
from serving.model import ServedModel
from serving.tensors import WantedOutput, read_inference, write_inference

JSON_SIZE = "Inference-Header-Content-Length"
PLATFORM = "recd_torchrec"


class InferenceProtocol:
    """Its paths. A path with a version is answered while that version is in service, else 404."""

    def __init__(self, name: str, *, intake: Intake, follower: Follower, is_ready: Callable[[], bool]) -> None:
        self._name = name
        self._intake = intake
        self._follower = follower
        self._is_ready = is_ready
        self._version = installed("recd-stream")

    def routes(self) -> list[web.RouteDef]:
        """All of them; a model's also with its version."""
        found = [
            web.get("/v2", self.server),
            web.get("/v2/health/live", self.live),
            web.get("/v2/health/ready", self.ready),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [
                web.get(model, self.metadata),
                web.get(f"{model}/ready", self.model_ready),
                web.post(f"{model}/infer", self.infer),
            ]
        return found

    async def server(self, _request: web.Request) -> web.Response:
        """What this server is and which extensions it has."""
        return _json({"name": "recd", "version": self._version, "extensions": ["binary_tensor_data"]})

    async def live(self, _request: web.Request) -> web.Response:
        """The process lives."""
        return _json({"live": True})

    async def ready(self, _request: web.Request) -> web.Response:
        """200 while requests are scored, else 400: the protocol has 4xx for no."""
        ready = self._is_ready()
        return _json({"ready": ready}, status=200 if ready else 400)

    async def model_ready(self, request: web.Request) -> web.Response:
        """The same of a model, or of one version of it."""
        self._check_name(request)
        model = self._follower.model
        wanted = request.match_info.get("version")
        ready = self._is_ready() and model is not None and wanted in (None, str(model.version))
        return _json({"name": self._name, "ready": ready}, status=200 if ready else 400)

    async def metadata(self, request: web.Request) -> web.Response:
        """Inputs and outputs, by the version in service."""
        self._check_name(request)
        model = self._follower.model
        if model is None:
            raise NotReadyError(f"no version of {self._name} is in service yet")
        self._check_version(request, model)
        outputs = [{"name": label, "datatype": "FP32", "shape": [-1]} for label in model.recipe.labels]
        return _json(
            {
                "name": self._name,
                "versions": [str(model.version)],
                "platform": PLATFORM,
                "inputs": model.recipe.tensors.inputs(),
                "outputs": outputs,
            }
        )

    async def infer(self, request: web.Request) -> web.Response:
        """Scores of one user's K candidates."""

        def read(body: bytes, model: ServedModel) -> Asked:
            self._check_version(request, model)
            inference = read_inference(body, json_size=json_size)
            for wanted in inference.outputs:
                if wanted.name not in model.recipe.labels:
                    raise RequestError(f"the model has no output {wanted.name}, but {', '.join(model.recipe.labels)}")
            return Asked(model.recipe.tensors.request(inference.tensors), inference.timeout_s, inference)

        self._check_name(request)
        json_size = _json_size(request)
        asked, answer = await self._intake.scored(request, read)
        inference = asked.inference
        if inference is None:
            raise RuntimeError("the body was not read")
        wanted: Sequence[WantedOutput] = inference.outputs or [WantedOutput(label) for label in answer.labels]
        chosen = {output.name: output.parameters.binary_data for output in wanted}
        by_label = dict(zip(answer.labels, answer.scores, strict=True))
        head = {"model_name": self._name, "model_version": str(answer.version)}
        if inference.id is not None:
            head["id"] = inference.id
        binary = {name for name, choice in chosen.items() if (inference.binary_output if choice is None else choice)}
        body, size = write_inference(head, {name: by_label[name] for name in chosen}, binary=frozenset(binary))
        if size is None:
            return web.Response(body=body, content_type="application/json")
        headers = {JSON_SIZE: str(size), "Content-Type": "application/octet-stream"}
        return web.Response(body=body, headers=headers)

    def _check_name(self, request: web.Request) -> None:
        if request.match_info["name"] != self._name:
            raise UnknownModelError(f"there is no model {request.match_info['name']}, but {self._name}")

    def _check_version(self, request: web.Request, model: ServedModel) -> None:
        wanted = request.match_info.get("version")
        if wanted not in (None, str(model.version)):
            raise UnknownModelError(f"version {wanted} of {self._name} is not in service, but {model.version}")


def _json_size(request: web.Request) -> int | None:
    text = request.headers.get(JSON_SIZE)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise RequestError(f"{JSON_SIZE} is no number of bytes: {text}")
    return int(text)


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
