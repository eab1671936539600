"""Events of the generator and the importers as JSON records, under the field names of the configuration."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from stream.catalogue import CATEGORIES, TAGS_PER_CATEGORY
from stream.config import ConfigError, EventsConfig
from stream.id_lists import IdLists
from stream.world import CLICK, IMPRESSION, PURCHASE, SessionBlock, Window, World

_COUNTRIES = ("BR", "CN", "DE", "FR", "IN", "JP", "NG", "US")


class FieldLayout:
    """Where the fields of an event go: `user.id` becomes `{"user": {"id": ...}}`.

    `render` is the text of an object without its closing brace, so that further members can follow.
    """

    def __init__(self, fields: dict[str, str | None]) -> None:
        tree: dict[str, object] = {}
        self._names = [name for name, path in fields.items() if path is not None]
        for name in self._names:
            _place(tree, str(fields[name]), f"\0{name}\0")
        self.roots = frozenset(tree)
        template = json.dumps(tree).replace("%", "%%")
        for name in self._names:
            template = template.replace(json.dumps(f"\0{name}\0"), f"%({name})s")
        self._template = template[:-1]

    def render(self, **texts: object) -> str:
        """The object with these JSON texts in the places of the fields."""
        return self._template % texts


def _place(tree: dict[str, object], path: str, value: str) -> None:
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"events.fields: '{path}' lies inside another field")
        node = child
    if leaf in node:
        raise ConfigError(f"events.fields: '{path}' is named twice")
    node[leaf] = value


def time_text(config: EventsConfig) -> Callable[[int], str]:
    """How a time in milliseconds is written in the configured unit."""
    if config.time_unit == "ms":
        return str
    return lambda ms: str(ms // 1000) if ms % 1000 == 0 else f"{ms // 1000}.{ms % 1000:03d}"


class EventRenderer:
    """Turns windows of a world into the JSON of events. `run` is part of every id, so that runs do not collide.

    Features beside `events.fields`: `country`, `age`, `interests`, `history` of the user, `category`, `price`, `tags`
    of the item, the truth, `p_click` and `p_purchase`, and whatever `lists` has.
    """

    def __init__(self, config: EventsConfig, *, world: World, run: str, lists: IdLists | None = None) -> None:
        self._world, self._run, self._lists = world, run, lists
        fields = config.fields
        shared = {"event_id": fields.event_id, "type": fields.type, "time": fields.time, "key": fields.key}
        self._impression = FieldLayout({**shared, "item": fields.item, "request_id": fields.request_id})
        self._engagement = FieldLayout({**shared, "item": fields.item, "impression_id": fields.impression_id})
        taken = {"country", "age", "interests", "history", "category", "price", "tags", "p_click", "p_purchase"}
        if clash := sorted(taken & (self._impression.roots | self._engagement.roots)):
            raise ConfigError(f"events.fields: the generator writes a feature named '{clash[0]}'; choose another name")
        self._types = {IMPRESSION: json.dumps(config.impressions[0]), CLICK: '"click"', PURCHASE: '"purchase"'}
        self._time_text = time_text(config)
        self._sessions: dict[int, tuple[int, str]] = {}
        self._items: list[str] = []

    def render(self, window: Window, *, start_ms: int) -> list[bytes]:
        """One JSON object per event of the window, in its order; the world began at `start_ms` of wall time."""
        self._note_sessions(window)
        events = window.events
        names = ("time_ms", "kind", "number", "impression", "request", "session", "user", "item", "p_click")
        columns = [events[name].tolist() for name in (*names, "p_purchase")]
        texts = [self._render_one(start_ms, *row) for row in zip(*columns, strict=True)]
        if self._lists is not None:
            shown = np.flatnonzero(events["kind"] == IMPRESSION)
            more = self._lists.render(*(events[name][shown] for name in ("user", "item", "request")))
            for i, members in zip(shown.tolist(), more, strict=True):
                texts[i] = f"{texts[i][:-1]},{members}}}"
        return [text.encode() for text in texts]

    def _render_one(self, start_ms: int, time_ms: int, kind: int, number: int, impression: int, *rest: float) -> str:
        request, session, user, item, p_click, p_purchase = rest
        run = self._run
        core = {
            "event_id": f'"{run}-{number}"',
            "type": self._types[kind],
            "time": self._time_text(start_ms + time_ms),
            "key": user,
            "item": item,
        }
        if kind != IMPRESSION:
            return self._engagement.render(**core, impression_id=f'"{run}-{impression}"') + "}"
        head = self._impression.render(**core, request_id=f'"{run}-r{request}"')
        user_text = self._sessions[int(session)][1]
        return f'{head},"p_click":{p_click:.6f},"p_purchase":{p_purchase:.6f},{user_text},{self._items[int(item)]}}}'

    def _note_sessions(self, window: Window) -> None:
        """Keep the user's side of sessions under way, and the side of every item; forget sessions that are over."""
        over = [number for number, (end_ms, _) in self._sessions.items() if end_ms < window.start_ms]
        for number in over:
            del self._sessions[number]
        block = window.sessions
        for i, (number, end_ms) in enumerate(zip(block.numbers.tolist(), block.ends_ms.tolist(), strict=True)):
            self._sessions[number] = (end_ms, self._user_text(block, i))
        for item in range(len(self._items), self._world.catalogue.size):
            self._items.append(self._item_text(item))

    def _user_text(self, block: SessionBlock, i: int) -> str:
        world, user = self._world, int(block.users[i])
        interests = [CATEGORIES[c] for c in world.interests[user]]
        features = {
            "country": _COUNTRIES[world.country[user]],
            "age": float(world.age[user]),
            "interests": interests,
            "history": block.histories[i].tolist(),
        }
        return json.dumps(features, separators=(",", ":"))[1:-1]

    def _item_text(self, item: int) -> str:
        found = self._world.catalogue
        category = CATEGORIES[found.category[item]]
        tags = [f"{category}-{tag}" for tag in range(TAGS_PER_CATEGORY) if found.tags[item, tag]]
        features = {"category": category, "price": float(found.price[item]), "tags": tags}
        return json.dumps(features, separators=(",", ":"))[1:-1]
