"""Looks over what pyunion depends on, without a network beyond the package index. Run by scripts/test.

Each locked requirement has hashes, is needed by what pyproject.toml or scripts/lock declare, is named in
docs/dependencies.md, has a licence that is allowed, and was not withdrawn (yanked, PEP 592) by who has published it.
The exit status is 1 if that does not hold, and each fault is told.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKED = ("requirements-build.txt", "requirements-dev.txt", "requirements.txt")
# Any of these in what a package says of its licence; of "or" one is enough, and nothing else is an "and" here.
ALLOWED = re.compile(r"\b(MIT|Apache|BSD|ISC|PSF|MPL|Mozilla Public License|LGPL)\b")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)")
_YANKED = re.compile(r"is a yanked version: '([^']+)' candidate \(version (\S+)")


class Pin(NamedTuple):
    """A line of a locked file."""

    name: str
    version: str
    hashes: int


def pins(text: str) -> Iterator[Pin]:
    """The locked requirements. Raises ValueError for one without a version."""
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            found = _PIN.match(line)
            if found is None:
                raise ValueError(f"{line.split()[0]} has no version")
            yield Pin(canonicalize_name(found[1]), found[2], line.count("--hash=sha256:"))


def needed(roots: set[str], installed: Mapping[str, Distribution]) -> set[str]:
    """The roots and all that these need, on any Python."""
    found: set[str] = set()
    left = set(roots)
    while left:
        name = left.pop()
        found.add(name)
        requirements = map(Requirement, (installed[name].requires or ()) if name in installed else ())
        left |= {canonicalize_name(one.name) for one in requirements if "extra" not in str(one.marker)} - found
    return found


def declared() -> set[str]:
    """What pyproject.toml names, and scripts/lock for the build."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    build = re.findall(r"^printf '%s\\n' (.*) \| compile", (ROOT / "scripts/lock").read_text(), re.MULTILINE)
    names = [Requirement(text).name for texts in lists for text in texts] + build[0].split()
    return {str(canonicalize_name(name)) for name in names} - {"pyunion"}


def licence(package: Distribution) -> str:
    """What a package says, in whichever field it does."""
    told = package.metadata.json
    classifiers = [text for text in told.get("classifier", []) if text.startswith("License ::")]
    return str(told.get("license_expression") or " ".join(classifiers) or told.get("license") or "none")


def faults(
    locked: Sequence[Pin], installed: Mapping[str, Distribution], roots: set[str], documented: str
) -> Iterator[str]:
    """A sentence for each thing that is wrong."""
    wanted = needed(roots, installed)
    words = {canonicalize_name(word.rstrip(".")) for word in re.findall(r"[A-Za-z0-9._-]+", documented)}
    for pin in locked:
        if not pin.hashes:
            yield f"{pin.name} is locked without a hash"
        if pin.name not in wanted:
            yield f"nothing that is declared needs {pin.name}"
        if pin.name not in words:
            yield f"docs/dependencies.md does not say why there is {pin.name}"
    versions = {(pin.name, pin.version) for pin in locked}
    for name, package in installed.items():
        if name in ("pip", "pyunion"):
            continue
        if (name, package.version) not in versions:
            yield f"{name} {package.version} is installed and not locked"
        if not ALLOWED.search(licence(package)):
            yield f"{name} has a licence that is not allowed here: {licence(package)[:100]}"


def withdrawn(requirements: Path) -> tuple[list[str], str]:
    """The locked releases that the package index calls yanked; and why it could not say so, "" if it could. pip asks
    it, as it is configured, and compares the hashes again."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory(prefix="audit-") as to:
        done = subprocess.run(
            [*pip, "--no-build-isolation", "--require-hashes", "--dest", to, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
        )
    yanked = _YANKED.findall(done.stderr)
    found = [f"{name} {version} was withdrawn by who has published it" for name, version in yanked]
    if done.returncode == 0:
        return found, ""
    return found, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip has failed"


def main() -> int:
    locked = [pin for name in LOCKED for pin in pins((ROOT / name).read_text())]
    installed = {str(canonicalize_name(package.metadata["Name"])): package for package in distributions()}
    found = list(faults(locked, installed, declared(), (ROOT / "docs/dependencies.md").read_text()))
    for name in LOCKED:
        yanked, why = withdrawn(ROOT / name)
        found += yanked
        if why:
            print(f"audit: the package index does not say which releases of {name} were withdrawn: {why}")
    for sentence in sorted(set(found)):
        print(f"audit: {sentence}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
