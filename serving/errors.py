"""What can go wrong between a request and its scores."""

from __future__ import annotations


class ServingError(Exception):
    """Root of this package's errors."""


class RequestError(ServingError):
    """The request cannot be scored; the message names the path in its body and what was expected there."""


class NotReadyError(ServingError):
    """No version is in service yet."""


class ScoringError(ServingError):
    """The version in service gives no usable score."""
