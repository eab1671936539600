"""Why a record cannot be an event: the reason and the detail that its quarantine record carries."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

MAX_DEPTH = 512
"""Deeper nesting is malformed: a limit of our own, for the interpreter's depends on who calls."""
AT = re.compile(r"^(.*?)(?: - at `(\$.*)`)?$", re.DOTALL)
MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


class Fault(NamedTuple):
    """A quarantine reason and its detail."""

    reason: str
    detail: str


TOO_DEEP = Fault("malformed", f"$: nested deeper than {MAX_DEPTH}")


def fault_of(value: bytes, error: Exception, *, time_path: str) -> Fault:
    """Translate what the decoder raised; JSON that is broken anywhere is `malformed`, wherever a type is wrong.

    A RecursionError that is not the record's doing is raised again: the caller's own stack is too deep.
    """
    if too_deep(value):
        return TOO_DEEP
    if isinstance(error, RecursionError):
        raise error
    if not isinstance(error, msgspec.ValidationError):
        return Fault("malformed", one_line(f"$: {error}"))
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        if not isinstance(broken, msgspec.ValidationError):
            return Fault("malformed", one_line(f"$: {broken}"))
    return validation_fault(error, time_path=time_path)


def validation_fault(error: msgspec.ValidationError, *, time_path: str) -> Fault:
    """A field that has not its type; `time` where it is that of the time."""
    match = AT.match(str(error))
    message, path = (match[1], match[2] or "$") if match else (str(error), "$")
    if missing := MISSING.match(message):
        path, message = f"{path}.{missing[1]}", "required, but missing"
    reason = "time" if path == f"$.{time_path}" else "schema"
    return Fault(reason, one_line(f"{path}: {message}"))


def too_deep(value: bytes) -> bool:
    """Whether objects and arrays are nested deeper than MAX_DEPTH, brackets inside strings left out."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in TOKENS.finditer(value):
        first = value[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def one_line(text: str) -> str:
    """Short enough for a header, without line breaks."""
    return " ".join(text.replace("`", "").replace(" | null", "").split())[:500]
