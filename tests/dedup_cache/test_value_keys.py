"""Keys of the values topic: there and back, and nothing else taken for one."""

import pytest

from dedup_cache import ValueKey


def test_there_and_back() -> None:
    key = ValueKey("7dd47d26", "user", 5876)
    assert key.encode() == b"7dd47d26/user/5876"
    assert ValueKey.decode(key.encode()) == key


@pytest.mark.parametrize(
    "key", [None, b"", b"a/b", b"a/b/c", b"a/b/-1", b"a/b/1/2", b"a/b/" + b"9" * 30, "a/b/¹".encode(), b"\xff/\xff/x"]
)
def test_other_keys_are_none_of_ours(key: bytes | None) -> None:
    assert ValueKey.decode(key) is None
