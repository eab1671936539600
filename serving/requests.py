"""The body of `POST /score`: shared features, and what each candidate adds to or puts in the place of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from serving.errors import RequestError
from stream.config import FeatureConfig
from stream.event_schema import TYPES, Float32Number

MAX_CANDIDATES = 10_000


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One user, K candidates. A feature of a struct is its attribute in `RequestSchema.attributes`."""

    shared: msgspec.Struct
    candidates: Sequence[msgspec.Struct]


class RequestSchema:
    """Reads bodies for one set of features, each by its name in the config and with its type.

    Null means missing, for a candidate too, whatever the shared value is. Items of a session's history are ids as in
    events: an integer or a string.
    """

    def __init__(self, features: Sequence[FeatureConfig]) -> None:
        self.attributes = {feature.name: f"f{i}" for i, feature in enumerate(features)}
        values = msgspec.defstruct(
            "Features",
            [(self.attributes[feature.name], _type(feature) | None | UnsetType, UNSET) for feature in features],
            rename={attribute: name for name, attribute in self.attributes.items()},
            forbid_unknown_fields=True,
        )
        candidates = Annotated[list[values], msgspec.Meta(max_length=MAX_CANDIDATES)]  # type: ignore[valid-type]
        body = msgspec.defstruct(
            "Body",
            [("candidates", candidates), ("features", values, msgspec.field(default_factory=values))],
            forbid_unknown_fields=True,
        )
        self._decoder = msgspec.json.Decoder(body)

    def decode(self, body: bytes) -> ScoreRequest:
        """Check and read a body; RequestError with the path of the first thing that does not fit."""
        try:
            decoded: Any = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(str(error).replace("`", "")) from None
        return ScoreRequest(decoded.features, decoded.candidates)


def _type(feature: FeatureConfig) -> Any:
    if feature.source is not None:
        return Float32Number if feature.is_dense else GenericAlias(list, TYPES["id"])
    if feature.type == "list[float]":
        return Annotated[list[Float32Number], msgspec.Meta(min_length=feature.length, max_length=feature.length)]
    return TYPES[feature.type]
