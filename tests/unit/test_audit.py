"""scripts/audit.py notices what is wrong with a dependency. What it says of a withdrawn release it has from a real pip
and a package index in a folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

import audit
from tests.harness.mounts import REPOSITORY


@pytest.fixture
def package(scratch: Path) -> Path:
    """A wheel of `thing` 1.0, in an index of its own."""
    folder = scratch / "simple/thing"
    folder.mkdir(parents=True)
    wheel = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        told = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\nLicense: GPL\n"
        archive.writestr("thing-1.0.dist-info/METADATA", told)
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
        archive.extractall(scratch / "installed")
    return wheel


@pytest.fixture
def locked(package: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (scratch / "simple").as_uri())
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"thing==1.0 --hash=sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}\n")
    return requirements


@pytest.mark.parametrize("yanked", [True, False])
def test_a_withdrawn_release(package: Path, locked: Path, yanked: bool) -> None:
    mark = ' data-yanked="broken"' if yanked else ""
    (package.parent / "index.html").write_text(f'<a href="{package.name}"{mark}>{package.name}</a>')
    found, why = audit.withdrawn(locked)
    assert found == (["thing 1.0 was withdrawn by who has published it"] if yanked else [])
    assert why == ""


def test_an_index_that_cannot_be_asked(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///none")
    found, why = audit.withdrawn(locked)
    assert found == []
    assert "thing" in why


def test_every_fault_is_told(package: Path, scratch: Path) -> None:
    thing = Distribution.at(scratch / "installed/thing-1.0.dist-info")
    locked = list(audit.pins("other==2.0 \\\n    --hash=sha256:00\n# of nobody\nbare==1 ; python_version < '4'\n"))
    found = list(audit.faults(locked, {"thing": thing}, {"other"}, "| other | MIT | It is needed. |"))
    assert found == [
        "bare is locked without a hash",
        "nothing that is declared needs bare",
        "docs/dependencies.md does not say why there is bare",
        "thing 1.0 is installed and not locked",
        "thing has a licence that is not allowed here: GPL",
    ]


def test_a_requirement_without_a_version() -> None:
    with pytest.raises(ValueError, match="thing>=1 has no version"):
        list(audit.pins("thing>=1 --hash=sha256:00\n"))


def test_what_is_locked_here() -> None:
    done = subprocess.run([sys.executable, REPOSITORY / "scripts/audit.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
