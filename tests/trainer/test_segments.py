"""Which feature an event's item and key are, and what is new."""

import numpy as np
from msgspec.structs import replace

from stream.config import EventsConfig, FieldsConfig
from tests.trainer.made_batches import World, expanded, make_config
from trainer.ikjt import hash_ids
from trainer.segments import ITEM_BUCKETS, KnownItems, Marker, Marks


def test_items_and_users_are_found_by_the_fields_of_the_events():
    config = replace(make_config(), events=EventsConfig(fields=FieldsConfig(key="user", item="item")))
    batch = World(config).batch()
    late = replace(config.trainer.evaluation, late_after_ms=4)
    marker = Marker.of(replace(config, trainer=replace(config.trainer, evaluation=late)))
    marks = marker.mark(batch)
    assert (marker.item, marker.user) == (("item", "item"), ("user", "user"))
    values, _ = expanded(batch, "item").rows.lists["item"].compact()
    np.testing.assert_array_equal(marks.items, hash_ids(values, rows=ITEM_BUCKETS))
    assert len(np.unique(marks.users)) == len(np.unique(expanded(batch, "user").rows.lists["user"].compact()[0]))
    assert marks.late.all()
    assert not Marker.of(config).mark(batch).late.any()


def test_an_event_without_such_a_feature_has_no_marks():
    marks = Marker.of(make_config()).mark(World(make_config()).batch())
    assert (marks.items, marks.users) == (None, None)


def test_an_item_is_new_until_it_was_trained_often_enough():
    known = KnownItems(enough=3)
    marks = Marks(np.array([7, 7, 9]), None, np.array([False, True, False]))
    assert known.cells(marks, num_samples=3).tolist() == [0, 1, 0]
    assert known.cells(marks, num_samples=3).tolist() == [0, 1, 0]
    assert known.cells(marks, num_samples=3).tolist() == [2, 3, 0]
    assert known.cells(None, num_samples=2).tolist() == [2, 2]
