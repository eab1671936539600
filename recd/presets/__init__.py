"""Complete configurations for kinds of input that the demo knows."""

from pathlib import Path

from stream.config import ConfigError


def preset_path(name: str) -> Path:
    """The file of one preset; ConfigError naming those there are."""
    path = Path(__file__).with_name(f"{name}.yaml")
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(f"no preset '{name}': there are {', '.join(known)}")
    return path
