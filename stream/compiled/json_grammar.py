"""The grammar of JSON, as far as it means the same to everybody: each function gives the place behind what stands at i.

-1 stands for everything else: what is no JSON, and what a slower reader has to look at (half a surrogate
pair, numbers of more than 19 digits or close to a limit, brackets deeper than DEEPEST). A text ends with a zero byte.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dedup_cache.arrays import UInt8
from dedup_cache.compiled.kernel import part, piece
from stream.compiled.json_float import nearest

INT, FLOAT = 1, 4
"""Kinds of number."""
DEEPEST = 60
QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
OPEN_LIST, CLOSE_LIST, OPEN, CLOSE = 91, 93, 123, 125
_MINUS, _PLUS, _POINT, _ZERO, _NINE, _SMALL_E, _LARGE_E = 45, 43, 46, 48, 57, 101, 69
_LETTER_U = 117
_LARGEST = np.uint64(2**63 - 1)


@part
def blank(text: UInt8, i: int) -> int:
    """The place of the next character that is no white space."""
    while text[i] <= 32 and (text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9):
        i += 1
    return i


@part
def _hex(text: UInt8, i: int) -> int:
    """The number that four hexadecimal digits at i make, or -1."""
    code = 0
    for k in range(4):
        c = int(text[i + k])
        if _ZERO <= c <= _NINE:
            code = code * 16 + c - _ZERO
        elif 97 <= c <= 102 or 65 <= c <= 70:
            code = code * 16 + (c & 7) + 9
        else:
            return -1
    return code


@part
def _past_escape(text: UInt8, i: int) -> int:
    """The place behind an escape whose backslash stands before i, -1 for what is none, and for half of a pair."""
    c = text[i]
    if c in (QUOTE, BACKSLASH, 47, 98, 102, 110, 114, 116):
        return i + 1
    if c != _LETTER_U:
        return -1
    code = _hex(text, i + 1)
    if code < 0 or 0xDC00 <= code <= 0xDFFF:
        return -1
    if code < 0xD800 or code > 0xDFFF:
        return i + 5
    if text[i + 5] != BACKSLASH or text[i + 6] != _LETTER_U:
        return -1
    return i + 11 if 0xDC00 <= _hex(text, i + 7) <= 0xDFFF else -1


@part
def _put(text: UInt8, to: int, code: int) -> int:
    """Write a character in UTF-8; returns the place behind it."""
    if code < 0x80:
        text[to] = code
        return to + 1
    if code < 0x800:
        text[to] = 0xC0 | code >> 6
        text[to + 1] = 0x80 | code & 63
        return to + 2
    if code < 0x10000:
        text[to] = 0xE0 | code >> 12
        text[to + 1] = 0x80 | code >> 6 & 63
        text[to + 2] = 0x80 | code & 63
        return to + 3
    text[to] = 0xF0 | code >> 18
    text[to + 1] = 0x80 | code >> 12 & 63
    text[to + 2] = 0x80 | code >> 6 & 63
    text[to + 3] = 0x80 | code & 63
    return to + 4


@part
def _plain(c: int) -> int:
    """What a letter behind a backslash stands for."""
    if c == 98:
        return 8
    if c == 102:
        return 12
    if c == 110:
        return 10
    if c == 114:
        return 13
    return 9 if c == 116 else c


@piece
def unescape(text: UInt8, i: int, end: int) -> int:
    """Write what a string of `string_end` means over it; returns the new end. It never becomes longer."""
    to = i
    while i < end:
        c = text[i]
        if c != BACKSLASH:
            text[to] = c
            to += 1
            i += 1
        elif text[i + 1] != _LETTER_U:
            text[to] = _plain(text[i + 1])
            to += 1
            i += 2
        else:
            code = _hex(text, i + 2)
            i += 6
            if 0xD800 <= code <= 0xDBFF:
                code = 0x10000 + ((code - 0xD800) << 10) + _hex(text, i + 2) - 0xDC00
                i += 6
            to = _put(text, to, code)
    return to


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
        if BACKSLASH < c < 128:  # most are small letters
            i += 1
            continue
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
def _digits(text: UInt8, i: int, number: np.uint64) -> tuple[int, Any]:
    """The place behind the digits at i, and `number` continued by them (rubbish beyond 19 that signify)."""
    while _ZERO <= text[i] <= _NINE:
        number = number * np.uint64(10) + np.uint64(text[i] - _ZERO)
        i += 1
    return i, number


@part
def short_integer(text: UInt8, i: int) -> tuple[int, Any]:
    """(place behind it, its value) of an integer of at most 18 digits in a list; -1 for any other, which may be one."""
    end, digits = _digits(text, i, np.uint64(0))
    usual = 0 < end - i <= 18 and (text[i] != _ZERO or end == i + 1) and (text[end] == COMMA or text[end] == CLOSE_LIST)
    return end if usual else -1, digits


@part
def _exponent(text: UInt8, i: int) -> tuple[int, int]:
    """(place behind it or -1, the exponent), of what stands behind the e at i."""
    i += 1
    negative = text[i] == _MINUS
    if negative or text[i] == _PLUS:
        i += 1
    first, exponent = i, 0
    while _ZERO <= text[i] <= _NINE and i - first < 5:
        exponent = exponent * 10 + (int(text[i]) - _ZERO)
        i += 1
    if i == first or i - first > 4:
        return -1, 0
    return i, -exponent if negative else exponent


@part
def number(text: UInt8, i: int) -> tuple[int, int, int, float]:
    """(place behind it or -1, INT or FLOAT, the integer, the same or another number as a float)."""
    negative = text[i] == _MINUS
    first = i + 1 if negative else i
    i, digits = _digits(text, first, np.uint64(0))
    significant = i - first if text[first] != _ZERO else 0
    if i == first or significant > 19 or (i - first > 1 and text[first] == _ZERO):
        return -1, 0, 0, 0.0
    c = text[i]
    if c not in (_POINT, _LARGE_E, _SMALL_E):
        if digits > _LARGEST or (negative and digits == np.uint64(0)):
            return -1, 0, 0, 0.0
        integer = -np.int64(digits) if negative else np.int64(digits)
        return i, INT, integer, float(integer)  # type: ignore[return-value]
    power = 0
    if c == _POINT:
        point = i + 1
        i = point
        while significant == 0 and text[i] == _ZERO:
            i += 1
        begin = i
        i, digits = _digits(text, begin, digits)
        significant += i - begin
        power = point - i
        if power == 0 or significant > 19:
            return -1, 0, 0, 0.0
        c = text[i]
    if c in (_LARGE_E, _SMALL_E):
        i, exponent = _exponent(text, i)
        power += exponent
        if i < 0:
            return -1, 0, 0, 0.0
    value = nearest(digits, power)
    if math.isnan(value):
        return -1, 0, 0, 0.0
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
