"""Every way in which `pyunion mount` refuses: one sentence that says what to do, an exit status, nothing mounted."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import pyunion
from tests.harness.mounts import PyunionMount
from tests.harness.mounts import mounted as all_mounts

_RW = "--lower lower --upper upper --work work"
_UNUSED = "use directories that do not overlap"

# Arguments (in a directory with lower, upper, work, mnt, file), exit status, what the sentence says.
_REFUSED = {
    # the command line
    "no-lower": ("mnt", ExitCode.USAGE, "no lower branch is given; name one"),
    "empty-lower": ("--lower= mnt", ExitCode.USAGE, "the list of lower branches is empty"),
    "trailing-colon": ("--lower lower: mnt", ExitCode.USAGE, "'lower:' has an empty element: name a directory"),
    "leading-colon": ("--lower :lower mnt", ExitCode.USAGE, "':lower' has an empty element: name a directory"),
    "data-only-alone": ("--lower ::lower mnt", ExitCode.USAGE, "'::lower' has an empty element"),
    "data-only-first": ("--lower lower::other --lower lower mnt", ExitCode.USAGE, "data-only branches .* come last"),
    "data-only-file": ("--lower lower::file mnt", ExitCode.BRANCH, "lower branch file is not a directory"),
    "upper-alone": ("--lower lower --upper upper mnt", ExitCode.USAGE, r"branch upper needs a work directory \(--work"),
    "work-alone": ("--lower lower --work work mnt", ExitCode.USAGE, "directory work is of no use without an up"),
    "lower-twice": ("--lower lower -o lowerdir=lower mnt", ExitCode.USAGE, "given twice, by --lower and by -o"),
    "upper-twice": (f"{_RW} -o upperdir=upper mnt", ExitCode.USAGE, "given twice, by --upper and by -o"),
    "unknown-option": ("--lower lower -o ro,frobnicate=3 mnt", ExitCode.USAGE, "unknown option 'frobnicate=3'"),
    "unknown-value": ("--lower lower -o metacopy=maybe mnt", ExitCode.USAGE, "unknown option 'metacopy=maybe'"),
    "unknown-switch": ("--lower lower --frobnicate mnt", ExitCode.USAGE, "unrecognized arguments: --frobnicate"),
    "no-mount-point": ("--lower lower", ExitCode.USAGE, "no mount point is given; name a directory"),
    "empty-mount-point": ("--lower lower ''", ExitCode.USAGE, "the mount point is empty"),
    "log-file": ("--lower lower --log-file nope/log mnt", ExitCode.USAGE, "cannot write the log file .*/nope/log: No"),
    # branches
    "lower-missing": ("--lower lower:nope mnt", ExitCode.BRANCH, "lower branch nope does not exist; create it"),
    "lower-is-file": ("--lower file mnt", ExitCode.BRANCH, "lower branch file is not a directory"),
    "lower-below-file": ("--lower file/x mnt", ExitCode.BRANCH, "lower branch file/x is not a directory"),
    "lower-is-loop": ("--lower loop mnt", ExitCode.BRANCH, "lower branch loop cannot be used: Too many levels"),
    "upper-missing": (
        "--lower lower --upper nope --work work mnt",
        ExitCode.BRANCH,
        "upper branch nope does not exist",
    ),
    "work-missing": ("--lower lower --upper upper --work nope mnt", ExitCode.BRANCH, "work directory nope does not"),
    "same-lower": ("--lower lower:lower mnt", ExitCode.BRANCH, "lower branch lower is named twice; name each"),
    "same-lower-by-link": ("--lower lower:link mnt", ExitCode.BRANCH, "branch link is named twice, also as lower"),
    "lower-in-lower": (
        "--lower upper:upper/in mnt",
        ExitCode.BRANCH,
        f"lower branch upper/in lies inside the lower branch upper; {_UNUSED}",
    ),
    "lower-around-lower": (
        "--lower upper/in:upper mnt",
        ExitCode.BRANCH,
        f"lower branch upper/in lies inside the lower branch upper; {_UNUSED}",
    ),
    "data-only-in-lower": ("--lower upper::upper/in mnt", ExitCode.BRANCH, "upper/in lies inside the lower branch up"),
    "upper-is-lower": (
        "--lower lower --upper lower --work work mnt",
        ExitCode.BRANCH,
        f"is the lower branch.*{_UNUSED}",
    ),
    "upper-in-lower": ("--lower upper --upper upper/in --work work mnt", ExitCode.BRANCH, "upper/in lies inside the l"),
    "lower-in-upper": ("--lower upper/in --upper upper --work work mnt", ExitCode.BRANCH, "upper/in lies inside the u"),
    "work-is-upper": ("--lower lower --upper upper --work upper mnt", ExitCode.BRANCH, "upper is the work directory"),
    "work-in-upper": (
        "--lower lower --upper upper --work upper/in mnt",
        ExitCode.BRANCH,
        "work directory upper/in lies",
    ),
    "upper-in-work": ("--lower lower --upper upper/in --work upper mnt", ExitCode.BRANCH, "upper branch upper/in lies"),
    "work-in-lower": (
        "--lower upper --upper lower --work upper/in mnt",
        ExitCode.BRANCH,
        "work directory upper/in lies",
    ),
    # the mount point
    "mnt-missing": ("--lower lower nope", ExitCode.MOUNT, "mount point nope does not exist; create it"),
    "mnt-is-file": ("--lower lower file", ExitCode.MOUNT, "mount point file is not a directory"),
    "mnt-in-upper": (f"{_RW} upper/in", ExitCode.MOUNT, "mount point upper/in lies inside the upper branch upper"),
    "mnt-is-work": (f"{_RW} work", ExitCode.MOUNT, "mount point work lies inside the work directory work"),
}


def _assert_refused(done: CompletedProcess[str], status: ExitCode, sentence: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(rf"pyunion: .*{sentence}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("case", _REFUSED)
def test_refusal(here: Path, case: str) -> None:
    (here / "upper/in").mkdir()
    (here / "link").symlink_to("lower")
    (here / "loop").symlink_to("loop")
    arguments, status, sentence = _REFUSED[case]
    words = [word.strip("'") for word in arguments.split()]
    _assert_refused(pyunion("mount", *words, cwd=here), status, sentence)
    assert not [mount for mount in all_mounts() if mount.point.startswith(os.fsencode(here))]


# What only shows with mounts of its own: a script to run before, exit status, what the sentence says.
_REFUSED_WITH_MOUNTS = {
    "other-file-system": ("mount -t tmpfs none work", ExitCode.WORK, "are on different file systems"),
    "other-mount": ("mount --bind work work", ExitCode.WORK, "different mounts of one file system"),
    "read-only-upper": ("mount -t tmpfs -o ro none upper", ExitCode.WORK, "a read-only file system; .*-o ro"),
    "no-device": ("mount -t tmpfs none /dev", ExitCode.MOUNT, "/dev/fuse does not exist; run `modprobe fuse`"),
    "no-driver": ("mount -t tmpfs none /dev; mknod /dev/fuse c 60 1", ExitCode.MOUNT, "has no driver behind it"),
}


@pytest.mark.parametrize("case", _REFUSED_WITH_MOUNTS)
def test_refusal_with_mounts(here: Path, case: str) -> None:
    script, status, sentence = _REFUSED_WITH_MOUNTS[case]
    _assert_refused(pyunion("mount", *_RW.split(), "mnt", before=script, cwd=here), status, sentence)


def test_an_upper_without_room_for_the_work(here: Path) -> None:
    (here / "full").mkdir()
    script = "mount -t tmpfs -o nr_inodes=4 none full; mkdir full/upper full/work; touch full/last"
    branches = ("--lower", "lower", "--upper", "full/upper", "--work", "full/work")
    done = pyunion("mount", *branches, "mnt", before=script, cwd=here)
    sentence = f"cannot prepare the work directory {here}/full/work: No space left on device; make room there"
    _assert_refused(done, ExitCode.WORK, sentence)


@pytest.mark.parametrize("options", ["lowerdir=lower,upperdir=upper,workdir=work", "lowerdir=lower:other"])
def test_an_upper_of_the_kernel(here: Path, options: str) -> None:
    """It takes no lock; and looks at lower branches only, as we do."""
    (here / "other").mkdir()
    (here / "kernel").mkdir()
    script = f"mount -t overlay -o {options.replace('dir=', f'dir={here}/').replace(':', f':{here}/')} none kernel"
    done = pyunion("mount", *_RW.split(), "mnt", "-f", before=script, cwd=here)
    if "upper" in options:
        _assert_refused(done, ExitCode.BUSY, f"upper is in use by the overlay mount on {here}/kernel; unmount that f")
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_without_root_it_takes_fusermount3(here: Path) -> None:
    # in a user namespace of its own we are nobody, and yet may read the files of this checkout
    script = 'PATH=/nowhere; set -- "$unshare" --user "$@"'
    done = pyunion("mount", "--lower", "lower", "mnt", before=script, cwd=here, unshare="/usr/bin/unshare")
    _assert_refused(done, ExitCode.MOUNT, "fusermount3 is not in PATH, and only root can mount without it")


def test_without_root_the_mount_point_cannot_be_in_a_lower(here: Path) -> None:
    (here / "lower/in").mkdir()
    done = pyunion("mount", "--lower", "lower", "lower/in", before='set -- unshare --user "$@"', cwd=here)
    _assert_refused(done, ExitCode.MOUNT, "mount point lower/in lies inside the lower branch lower, which takes root")


@pytest.mark.parametrize("options", ["rw", "ro", "volatile"])
def test_mark_of_a_volatile_mount(here: Path, options: str) -> None:
    (here / "work/work/incompat/volatile").mkdir(parents=True)
    done = pyunion("mount", *_RW.split(), "-o", options, "mnt", cwd=here)
    _assert_refused(done, ExitCode.WORK, f"volatile mount, .* remove {here}/work/work/incompat/volatile")


def test_mark_of_a_feature_that_is_not_known(here: Path) -> None:
    (here / "work/work/incompat/frobnicate").mkdir(parents=True)
    done = pyunion("mount", *_RW.split(), "mnt", cwd=here)
    _assert_refused(done, ExitCode.WORK, f"{here}/work/work/incompat/frobnicate marks a feature .* does not have")


def test_branches_of_a_running_mount(here: Path, mounted: PyunionMount) -> None:
    (here / "other").mkdir()
    done = pyunion("mount", *_RW.split(), "other", cwd=here)
    _assert_refused(done, ExitCode.BUSY, rf"upper is in use by process {mounted.pid} \(.*\)")
    mounted.stop()


def test_dead_mount_point(here: Path, mounted: PyunionMount) -> None:
    mounted.kill()
    done = pyunion("mount", *_RW.split(), "mnt", cwd=here)
    _assert_refused(done, ExitCode.MOUNT, "mount point mnt is a dead mount, .* run `pyunion umount mnt` first")
    assert pyunion("umount", "mnt", cwd=here).returncode == 0
    done = pyunion("mount", *_RW.split(), "mnt", cwd=here)
    assert done.returncode == 0, done.stderr
    assert pyunion("umount", "mnt", cwd=here).returncode == 0


def test_names_cannot_steer_the_terminal(here: Path) -> None:
    name = os.fsdecode(b"a\nb\x1b[31m\xff")
    done = pyunion("mount", "--lower", name, "mnt", cwd=here)
    _assert_refused(done, ExitCode.BRANCH, re.escape(r"lower branch a\nb\x1b[31m\xff does not exist"))


def test_missing_library_is_no_traceback(here: Path) -> None:
    (here / "shadow").mkdir()
    (here / "shadow/pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open', name='pyfuse3')\n")
    path = f"{here}/shadow:{Path(__file__).parents[2]}"
    done = pyunion("mount", "--lower", "lower", "mnt", cwd=here, PYTHONPATH=path)
    _assert_refused(done, ExitCode.FAILURE, "libfuse3.so.3: cannot open; run scripts/pyunion, which installs")


def test_help_and_refusals_import_no_library(here: Path) -> None:
    code = (
        "import sys; from pyunion.cli import main; main(['mount', '--lower', 'nope', 'mnt']);"
        "print(sorted({'trio', 'pyfuse3', 'rich'} & set(sys.modules)))"
    )
    done = pyunion(before=f'exec {sys.executable} -c "{code}"', cwd=here)
    assert done.stdout == "[]\n"
    assert "lower branch nope does not exist" in done.stderr
