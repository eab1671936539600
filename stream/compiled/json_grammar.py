"""The grammar of JSON, as far as it means the same to everybody: each function gives the place behind what stands at i.

-1 stands for everything else: what is no JSON, and what a slower reader has to look at (surrogates, numbers of more
than 18 digits or with an exponent, brackets deeper than DEEPEST). A text ends with a zero byte.
"""

from __future__ import annotations

import numpy as np

from dedup_cache.arrays import UInt8
from dedup_cache.compiled.kernel import part

INT, FLOAT = 1, 4
"""Kinds of number."""
DEEPEST = 60
QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
OPEN_LIST, CLOSE_LIST, OPEN, CLOSE = 91, 93, 123, 125
_MINUS, _POINT, _ZERO, _NINE, _SMALL_E, _LARGE_E = 45, 46, 48, 57, 101, 69
_POWERS = np.array([10.0**i for i in range(23)])
_MOST_EXACT = 2**53


@part
def blank(text: UInt8, i: int) -> int:
    """The place of the next character that is no white space."""
    while text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9:
        i += 1
    return i


@part
def _past_escape(text: UInt8, i: int) -> int:
    """The place behind an escape whose backslash stands before i, -1 for what is none; surrogates are unsure."""
    c = text[i]
    if c in (QUOTE, BACKSLASH, 47, 98, 102, 110, 114, 116):
        return i + 1
    if c != 117:
        return -1
    for k in range(1, 5):
        c = text[i + k]
        if not (_ZERO <= c <= _NINE or 97 <= c <= 102 or 65 <= c <= 70):
            return -1
    surrogate = (text[i + 1] == 68 or text[i + 1] == 100) and text[i + 2] >= 56
    return -1 if surrogate else i + 5


@part
def _past_utf8(text: UInt8, i: int) -> int:
    """The place behind a character of two to four bytes, -1 where they are no UTF-8 (RFC 3629)."""
    c, d = text[i], text[i + 1]
    if 0xC2 <= c <= 0xDF:
        size = 2
    elif (c == 0xE0 and d >= 0xA0) or 0xE1 <= c <= 0xEC or (c == 0xED and d <= 0x9F) or 0xEE <= c <= 0xEF:
        size = 3
    elif (c == 0xF0 and d >= 0x90) or 0xF1 <= c <= 0xF3 or (c == 0xF4 and d <= 0x8F):
        size = 4
    else:
        return -1
    for k in range(1, size):
        if text[i + k] & 0xC0 != 0x80:
            return -1
    return i + size


@part
def string_end(text: UInt8, i: int) -> tuple[int, bool]:
    """The place of the closing quote of a string that begins at i, or -1; and whether it has no escapes."""
    plain = True
    while True:
        c = text[i]
        if c == QUOTE:
            return i, plain
        if c == BACKSLASH:
            plain = False
            i = _past_escape(text, i + 1)
        elif c < 32:
            return -1, plain
        else:
            i = i + 1 if c < 128 else _past_utf8(text, i)
        if i < 0:
            return -1, plain


@part
def _digits(text: UInt8, i: int, number: int) -> tuple[int, int]:
    """The place behind the digits at i, and `number` continued by them (rubbish beyond 18 of them)."""
    while _ZERO <= text[i] <= _NINE:
        number = number * 10 + (np.int64(text[i]) - _ZERO)  # type: ignore[assignment]
        i += 1
    return i, number


@part
def number(text: UInt8, i: int) -> tuple[int, int, int, float]:
    """(place behind it or -1, INT or FLOAT, the integer, the same or another number as a float)."""
    negative = text[i] == _MINUS
    first = i + 1 if negative else i
    i, number = _digits(text, first, 0)
    digits = i - first
    if digits == 0 or digits > 18 or (digits > 1 and text[first] == _ZERO):
        return -1, 0, 0, 0.0
    c = text[i]
    if c not in (_POINT, _LARGE_E, _SMALL_E):
        if negative and number == 0:
            return -1, 0, 0, 0.0
        number = -number if negative else number
        return i, INT, number, float(number)
    power = 0
    if c == _POINT:
        end, number = _digits(text, i + 1, number)
        power = i + 1 - end
        digits -= power
        i = end
    if power == 0 or digits > 18 or number > _MOST_EXACT or power < -22 or text[i] == _LARGE_E or text[i] == _SMALL_E:
        return -1, 0, 0, 0.0
    value = number / _POWERS[-power]  # both exact, so the quotient is rounded once
    return i, FLOAT, 0, -value if negative else value


@part
def past_word(text: UInt8, i: int) -> int:
    """The place behind true, false or null, -1 for anything else."""
    if text[i] == 116 and text[i + 1] == 114 and text[i + 2] == 117 and text[i + 3] == 101:
        return i + 4
    if text[i] == 110 and text[i + 1] == 117 and text[i + 2] == 108 and text[i + 3] == 108:
        return i + 4
    if text[i] == 102 and text[i + 1] == 97 and text[i + 2] == 108 and text[i + 3] == 115 and text[i + 4] == 101:
        return i + 5
    return -1


@part
def _past_name(text: UInt8, i: int) -> int:
    """The place behind a member's name and colon, or -1."""
    if text[i] != QUOTE:
        return -1
    end, _ = string_end(text, i + 1)
    if end < 0:
        return -1
    i = blank(text, end + 1)
    return i + 1 if text[i] == COLON else -1


@part
def _past_scalar(text: UInt8, i: int) -> int:
    """The place behind a string, a number or a word, or -1."""
    if text[i] == QUOTE:
        end, _ = string_end(text, i + 1)
        return end + 1 if end >= 0 else -1
    if text[i] == _MINUS or _ZERO <= text[i] <= _NINE:
        end, _, _, _ = number(text, i)
        return end
    return past_word(text, i)


@part
def past_value(text: UInt8, i: int) -> int:
    """The place behind a value that nobody reads, or -1. Bit 0 of `objects` says what the innermost bracket opened."""
    depth, objects = 0, np.int64(0)
    while True:
        i = blank(text, i)
        c = text[i]
        if c in (OPEN, OPEN_LIST):
            i = blank(text, i + 1)
            if text[i] != c + 2:  # not closed at once
                depth += 1
                if depth > DEEPEST:
                    return -1
                objects = objects * 2 + (c == OPEN)
                i = i if c == OPEN_LIST else _past_name(text, i)
                if i < 0:
                    return -1
                continue
            i += 1
        else:
            i = _past_scalar(text, i)
            if i < 0:
                return -1
        more = False
        while depth > 0 and not more:
            i = blank(text, i)
            if text[i] == COMMA:
                more = True
                i = blank(text, i + 1)
                i = i if objects & 1 == 0 else _past_name(text, i)
                if i < 0:
                    return -1
            elif text[i] == (CLOSE if objects & 1 else CLOSE_LIST):
                depth, objects, i = depth - 1, objects >> 1, i + 1
            else:
                return -1
        if not more:
            return i
