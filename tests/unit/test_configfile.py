"""The file of --config: what each key means, and the sentence for everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyunion import configfile
from pyunion.config import Options, parse_options
from pyunion.configfile import ConfigFile
from pyunion.errors import ExitCode, PyunionError

_EXAMPLE = Path(__file__).parents[2] / "systemd/merged.toml"
_PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map("/{}".format)


def _write(folder: Path, text: str) -> str:
    path = folder / "mount.toml"
    path.write_text(text)
    return str(path)


def test_the_example() -> None:
    assert configfile.read(str(_EXAMPLE)) == ConfigFile(
        lower=(b"/srv/site", b"/srv/base"),
        upper=b"/srv/upper",
        work=b"/srv/work",
        mountpoint=b"/mnt/merged",
        options=(b"noatime", b"metacopy=on"),
        log_level="info",
    )


def test_nothing_has_to_be_said(tmp_path: Path) -> None:
    assert configfile.read(_write(tmp_path, "")) == ConfigFile()


@given(st.lists(_PATHS, min_size=1), _PATHS)
def test_any_path_is_itself(tmp_path_factory: pytest.TempPathFactory, lower: list[str], upper: str) -> None:
    """Colons, commas and backslashes are no syntax here."""
    said = {"lower": lower, "upper": upper}
    text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in said.items())
    text = text.replace("\x7f", "\\u007f")  # in which alone JSON's strings are not TOML's
    options = Options()
    configfile.read(_write(tmp_path_factory.mktemp("any"), text)).fill(options)
    assert (options.lowers, options.upper) == ([path.encode() for path in lower], upper.encode())


def test_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    said = ["ro,nodev", "fsname=a", "uidmapping=5:6:1", "metacopy=off", "datadir+=/data"]
    options = Options()
    configfile.read(_write(tmp_path, f'lower = ["/l"]\noptions = {json.dumps(said)}\n')).fill(options)
    wanted = Options(lowers=[b"/l"])
    for text in said:
        parse_options(text.encode(), wanted)
    assert options == wanted


_WRONG = {
    "no-value": ("upper =\n", "line 1: this is no TOML: "),
    "later": ('upper = "/u"\n\nwork = "/w\n', "line 3: this is no TOML: "),
    "twice": ('upper = "/u"\nupper = "/v"\n', "line 2: this is no TOML: "),
    "unfinished": ('upper = "/u"\nlower = [\n', "line 2: this is no TOML: "),
    "unknown": ('upper = "/u"\nuper = "/u"\n', "line 2: the key 'uper' is not known; those that are: lower, upper, w"),
    "a-table": ('upper = "/u"\n\n[mount]\nlower = ["/l"]\n', "line 3: the key 'mount' is not known"),
    "underscore": ('log_level = "info"\n', "line 1: the key 'log_level' is not known"),
    "lower-is-text": ('lower = "/a:/b"\n', "line 1: lower has to be a list of directories, topmost first"),
    "lower-is-empty": ("lower = []\n", "line 1: lower has to be a list of directories, topmost first"),
    "lower-of-numbers": ('lower = ["/a", 5]\n', "line 1: each element of lower has to be a string"),
    "relative": ('\nwork = "w"\n', "line 2: work has to be an absolute path, and 'w' is none"),
    "empty-path": ('mountpoint = ""\n', "line 1: mountpoint has to be an absolute path"),
    "nul": ('upper = "/a\\u0000"\n', "line 1: upper has to be an absolute path"),
    "options-are-text": ('options = "ro"\n', "line 1: options has to be a list of strings, each as after -o"),
    "options-of-flags": ("options = [true]\n", "line 1: options has to be a list of strings"),
    "unknown-option": ('options = ["ro", "frob"]\n', "line 1: unknown option 'frob'"),
    "branch-option": ('options = ["lowerdir=/a"]\n', "line 1: in options there is 'lowerdir=/a'; use the keys"),
    "hidden-branch-option": ('options = ["ro,workdir=/a"]\n', "line 1: in options there is 'ro,workdir=/a'; use the"),
    "remount": ('options = ["remount"]\n', "line 1: the option remount is for the command line"),
    "metrics": ('metrics = "9300"\n', "line 1: metrics has to be HOST:PORT, such as '127.0.0.1:9300'"),
    "metrics-number": ("metrics = 9300\n", "line 1: metrics has to be HOST:PORT, such as"),
    "log-level": ('"log-level" = "loud"\n', "line 1: log-level has to be one of debug, info, warning, error"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, case: str) -> None:
    text, sentence = _WRONG[case]
    path = _write(tmp_path, text)
    with pytest.raises(PyunionError) as caught:
        configfile.read(path)
    assert str(caught.value).startswith(f"{path}, {sentence}")
    assert caught.value.exit_code == ExitCode.CONFIG


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b'upper = "\xff"\n')
    sentences = {
        "nope.toml": f"{tmp_path}/nope.toml does not exist; create it or correct the path",
        ".": f"cannot read {tmp_path}: Is a directory",
        "bytes.toml": f"{tmp_path}/bytes.toml: this is not UTF-8, as TOML has to be",
    }
    for name, sentence in sentences.items():
        with pytest.raises(PyunionError) as caught:
            configfile.read(str(tmp_path / name))
        assert (str(caught.value), caught.value.exit_code) == (sentence, ExitCode.CONFIG)
