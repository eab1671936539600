"""From the file `recd.yaml` to a checked configuration, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from stream.config.section import ConfigError
from stream.config.whole import Config, check


def load(path: Path | None = None, *, overrides: tuple[str, ...] = ()) -> Config:
    """Read the file (None: all defaults), lay `a.b=c` overrides over it and check the whole.

    Raises ConfigError with the path of the offending key.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides:
        _lay_over(tree, override)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        message = _with_names(str(error).replace("`", ""), tree)
        raise ConfigError(f"{path or 'defaults'}: {message}") from None
    check(config)
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(msgspec.to_builtins(config, str_keys=True), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: Expected object, got {type(tree).__name__} - at $")
    return tree


def _lay_over(tree: dict[str, object], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example session.gap_ms=5000")
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not YAML: {error}") from None


def _with_names(message: str, tree: dict[str, Any]) -> str:
    """In the path of a transform, the name of its feature in place of its number."""

    def name(found: re.Match[str]) -> str:
        feature = tree[found[1]][int(found[2])]
        known = isinstance(feature, dict) and isinstance(feature.get("name"), str)
        return f"$.{found[1]}.{feature['name']}.transforms" if known else found[0]

    return re.sub(r"\$\.(features|derived)\[(\d+)\]\.transforms", name, message)
