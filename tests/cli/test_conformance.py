"""scripts/conformance says what it needs; the suites themselves are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import clean_environment
from tests.harness.mounts import PATIENCE, REPOSITORY

VARIABLES = ("UNIONMOUNT_DIR", "PJDFSTEST_DIR", "XFSTESTS_DIR")


def conformance(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without checkouts but for those given."""
    kept = {name: value for name, value in clean_environment().items() if name not in VARIABLES}
    command = [sys.executable, str(REPOSITORY / "scripts/conformance.py"), *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=PATIENCE)


def test_suites_that_are_not_there_are_named_with_variable_and_address() -> None:
    done = conformance()
    assert done.returncode == 2, done.stderr
    for variable in VARIABLES:
        assert f"is not there: set {variable} to a built checkout of https://" in done.stdout


def test_a_checkout_that_is_not_built_is_named(scratch: Path) -> None:
    done = conformance("--suite", "pjdfstest", PJDFSTEST_DIR=str(scratch))
    assert f"cannot be used: {scratch} (PJDFSTEST_DIR) has no pjdfstest; get and build https://" in done.stdout
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("side", ["pyunion", "kernel"])
def test_one_side_alone(side: str) -> None:
    assert conformance("--only", side).stderr == ""
