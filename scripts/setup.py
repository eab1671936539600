"""Make `.venv` with everything in it that the constraints pin, and fetch the Kafka jars. Standard library only.

RECD_SET=cpu or gpu chooses the set of packages; without it an NVIDIA driver decides.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "recd-setup"
NEEDED_BYTES = 10 * 10**9
FBGEMM = {"cpu": "fbgemm-gpu-cpu", "gpu": "fbgemm-gpu"}
REMEDY = (
    "without a network, or without access to the package index, nothing can be installed: check it and run again, "
    "what was fetched is kept"
)
FETCH_JARS = """
import sys
from recd.java import EmbeddedError, kafka_jars
try:
    kafka_jars()
except EmbeddedError as error:
    sys.exit(f"setup: {error}")
"""
NO_JARS, NO_CLASSES = 1, 2
MISSING = f"""
import sys
from recd.java import cached_kafka_jars, class_archive
sys.exit({NO_JARS} * (cached_kafka_jars() is None) + {NO_CLASSES} * (not class_archive().exists()))
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> None:
    package_set = os.environ.get("RECD_SET") or ("gpu" if has_nvidia_driver() else "cpu")
    if package_set not in FBGEMM:
        raise SetupError(f"RECD_SET is {package_set!r}: it can be cpu or gpu")
    directory = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # a second set-up in this folder waits for the first
    wanted = fingerprint(package_set)
    if not (STAMP.exists() and STAMP.read_text() == wanted):
        install(package_set)
        STAMP.write_text(wanted)
    missing = subprocess.run([PYTHON, "-c", MISSING], cwd=ROOT, check=False).returncode
    if missing & NO_JARS:
        with step("Kafka jars (44 MB, once for all checkouts)"):
            run([PYTHON, "-c", FETCH_JARS], remedy=None)
    if missing & NO_CLASSES:
        with step("classes of Kafka"):  # without them a broker starts at twice the cost
            subprocess.run([PYTHON, "-m", "recd.class_data"], cwd=ROOT, check=False)


def fingerprint(package_set: str) -> str:
    """What the environment was made from: it is out of date when this changes."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", constraints(package_set), Path(__file__)):
        digest.update(path.read_bytes())
    return f"{package_set} {digest.hexdigest()}\n"


def constraints(package_set: str) -> Path:
    return ROOT / "constraints" / f"{package_set}.txt"


def has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def install(package_set: str) -> None:
    begin = time.monotonic()
    pins = constraints(package_set)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Setting up {VENV.name} with Python {version} and the {package_set} packages", flush=True)
    if not PYTHON.exists():
        make_venv()
    if not (VENV / "bin" / "pip").exists():
        run([PYTHON, "-m", "ensurepip"], remedy="remove .venv and run again")
    with step("uv, which installs the rest"):
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--constraint", pins, "uv"])
    uv = [VENV / "bin" / "uv", "pip", "install", "--python", PYTHON, "--no-deps"]
    with step("packages (5 GB when nothing is cached yet)"):
        drop_other_fbgemm(package_set)
        # Where bytecode may not be written at run time, a trainer starts three times faster with it.
        run([*uv, "--compile-bytecode", "--requirement", pins])
    with step("this project"):
        run([*uv, "--quiet", "--no-build-isolation", "--editable", ROOT])
    with step("kernels for this machine"):  # without them a worker begins slowly and makes them itself
        subprocess.run([PYTHON, "-m", "stream.compiled.warm"], cwd=ROOT, check=False)
    print(f"Set up in {time.monotonic() - begin:.0f} s", flush=True)


def make_venv() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        debian = f"apt install python3.{sys.version_info[1]}-venv"
        raise SetupError(f"{sys.executable} has no venv or no ensurepip: install them (Debian, Ubuntu: {debian})")
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES:
        needed = f"{NEEDED_BYTES / 1e9:.0f} GB of disk are needed"
        raise SetupError(f"{needed} and {free / 1e9:.1f} GB are free under {ROOT}: free some")
    with step("virtual environment"):
        run([sys.executable, "-m", "venv", VENV], remedy="remove .venv and run again")


def drop_other_fbgemm(package_set: str) -> None:
    """Both builds install the same module, so the one of the other set goes first."""
    for name in FBGEMM.values():
        installed = any((VENV / "lib").glob(f"python*/site-packages/{name.replace('-', '_')}-*.dist-info"))
        if installed and name != FBGEMM[package_set]:
            run([VENV / "bin" / "uv", "pip", "uninstall", "--quiet", "--python", PYTHON, name])


@contextmanager
def step(what: str) -> Iterator[None]:
    begin = time.monotonic()
    print(f"- {what} ...", flush=True)
    yield
    print(f"  done in {time.monotonic() - begin:.1f} s", flush=True)


def run(command: list[object], *, remedy: str | None = REMEDY) -> None:
    """Run with its output on the terminal; SetupError with the remedy when it fails, plain exit when it has none."""
    words = [str(word) for word in command]
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    status = subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode
    if status and remedy:
        what = f"{Path(words[0]).name} {' '.join(words[1:4])} ..."
        raise SetupError(f"`{what}` failed with status {status}, see above; {remedy}")
    if status:
        sys.exit(status)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again to go on")
