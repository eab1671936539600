"""Set-up says what is missing, and is quick when nothing is."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_setup(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(root / "scripts" / "setup")]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """A copy of what set-up reads, without an environment."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_python_that_fits(bare_checkout: Path) -> None:
    done = run_setup(bare_checkout, PYTHON="/no/such/python")
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 found; tried: /no/such/python" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_unknown_set_of_packages(bare_checkout: Path) -> None:
    done = run_setup(bare_checkout, PYTHON=sys.executable, RECD_SET="tpu")
    assert done.returncode == 1
    assert "RECD_SET is 'tpu': it can be cpu or gpu" in done.stderr


def test_a_second_set_up_does_nothing() -> None:
    if not (ROOT / ".venv" / "recd-setup").exists():
        pytest.skip("this checkout was not set up by `make setup`")
    run_setup(ROOT)
    again = run_setup(ROOT)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize("package_set", ["cpu", "gpu"])
def test_everything_asked_for_is_pinned(package_set: str) -> None:
    pins = {
        line.partition("==")[0]: line
        for line in (ROOT / "constraints" / f"{package_set}.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(need for needs in extras.values() for need in needs)]
    names = {need.partition(">")[0].partition("[")[0].lower() for need in asked}
    assert names <= pins.keys()
    assert all("==" in line for line in pins.values())
    assert {"torch", "torchrec", "fbgemm-gpu"}.isdisjoint(need.partition(">")[0] for need in project["dependencies"])
