"""Schemas and their digests."""

import pytest

from dedup_cache import BatchSchema, GroupSchema, SchemaError

USER = GroupSchema("user", ("age",), ("history",))


def test_the_digest_never_changes() -> None:
    assert BatchSchema((USER,), ("click",), "v1").digest() == "abc0cabe2d9285de3b5a16d49faef72a"


def test_the_digest_tells_every_change() -> None:
    schemas = [
        BatchSchema((USER,), ("click",), "v1"),
        BatchSchema((USER,), ("click",), "v2"),
        BatchSchema((USER,), ("buy",), "v1"),
        BatchSchema((USER, GroupSchema("item")), ("click",), "v1"),
        BatchSchema((GroupSchema("item"), USER), ("click",), "v1"),
        BatchSchema((GroupSchema("user", ("history",), ("age",)),), ("click",), "v1"),
        BatchSchema((GroupSchema("user", ("age", "history"), ()),), ("click",), "v1"),
    ]
    assert len({schema.digest() for schema in schemas}) == len(schemas)


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\ud800"])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(SchemaError, match="without slash"):
        GroupSchema(name)
    with pytest.raises(SchemaError, match="feature of group 'user'"):
        GroupSchema("user", (), (name,))
    with pytest.raises(SchemaError, match="label"):
        BatchSchema((), (name,))


def test_doubled_names_are_refused() -> None:
    with pytest.raises(SchemaError, match="twice"):
        GroupSchema("user", ("age",), ("age",))
    with pytest.raises(SchemaError, match="twice"):
        BatchSchema((USER, USER), ())
