"""What can go wrong between a request and its scores, each with the status that the client sees."""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar


class ServingError(Exception):
    """Root of this package's errors."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    outcome: ClassVar[str] = "error"
    """How the request is counted."""


class RequestError(ServingError):
    """The request cannot be scored; the message names the path in its body and what was expected there."""

    status = HTTPStatus.BAD_REQUEST
    outcome = "invalid"


class TooLargeError(RequestError):
    """The body is longer than `serving.max_request_bytes`."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnknownModelError(RequestError):
    """There is no such model here, or not in the version asked for."""

    status = HTTPStatus.NOT_FOUND


class NotReadyError(ServingError):
    """No version is in service yet."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    outcome = "not_ready"


class OverloadedError(ServingError):
    """As many requests as `serving.max_waiting` are under way."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    outcome = "overloaded"


class DeadlineError(ServingError):
    """No scores within `serving.deadline_ms`, or within the time that the client gave."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    outcome = "deadline"


class ScoringError(ServingError):
    """The version in service gives no usable score."""
