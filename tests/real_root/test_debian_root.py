"""The main job: a Debian root file system as lowest branch, and real programs that change it from inside.

Union.unmount checks what the whole is about: the kernel's overlayfs shows the same tree on the same branches, and
the lower branches are bit for bit as they were.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.files import make_opaque, make_whiteout, write
from tests.harness.mounts import KernelMount, Layers
from tests.harness.union import Union

PROGRAM = r"""
#include <stdio.h>
int main(void) { puts("compiled in a union"); return 0; }
"""

# Each step is a script that runs inside the union as its root directory.
STEPS = {
    "a real package is removed and installed with dpkg": """
        dpkg --purge sqlite3
        dpkg --install /var/cache/apt/archives/sqlite3_*.deb
        dpkg --verify sqlite3""",
    "a big package is installed over itself": """
        dpkg --install /var/cache/apt/archives/git_*.deb
        dpkg --verify git""",
    "a package of our own with a script is built and installed": """
        mkdir -p /tmp/pkg/DEBIAN /tmp/pkg/opt/tool /tmp/pkg/etc
        cd /tmp/pkg/DEBIAN
        printf '%s\\n' 'Package: tool' 'Version: 1' 'Architecture: all' 'Maintainer: t' 'Description: t' > control
        printf '%s\\n' '#!/bin/sh' 'chown -R games:games /opt/tool' 'ln -s ../etc/tool.conf /opt/conf' > postinst
        chmod 755 postinst
        echo /etc/tool.conf > conffiles
        echo setting > /tmp/pkg/etc/tool.conf
        echo data > /tmp/pkg/opt/tool/data
        dpkg-deb --build /tmp/pkg /tmp/tool.deb
        dpkg --install /tmp/tool.deb
        test "$(stat -c %U /opt/tool/data)" = games
        rm -r /tmp/pkg""",
    "a C program is compiled and runs": """
        gcc -O2 -o /usr/local/bin/hello /root/hello.c
        test "$(hello)" = 'compiled in a union'""",
    "a repository is made, cloned and looked at": """
        git init --quiet /root/origin
        cp -r /usr/include /root/origin/headers
        git -C /root/origin add .
        git -C /root/origin -c user.name=n -c user.email=e commit --quiet -m first
        git clone --quiet /root/origin /root/clone
        test -z "$(git -C /root/clone status --porcelain)"
        rm /root/clone/headers/stdio.h
        test "$(git -C /root/clone status --porcelain)" = ' D headers/stdio.h'
        git -C /root/clone checkout --quiet .
        git -C /root/clone gc --quiet
        git -C /root/clone fsck""",
    "a database is filled, changed and packed": """
        sqlite3 /var/lib/data.db <<'SQL'
        pragma journal_mode=wal;
        create table t(k integer primary key, v text);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
            insert into t select i, hex(randomblob(50)) from n;
        update t set v = upper(v) || k where k % 3 = 0;
        delete from t where k % 5 = 0;
        create index i on t(v);
        vacuum;
SQL
        test "$(sqlite3 /var/lib/data.db 'pragma integrity_check; select count(*) from t')" = "$(printf 'ok\\n16000')"
        """,
    "documentation is thrown away": """
        rm -rf /usr/share/doc
        test ! -e /usr/share/doc""",
    "directories of the lowest layer move": """
        mv /usr/share/zoneinfo /opt/zones
        test -e /opt/zones/Europe/Berlin
        mv /usr/share/git-core /usr/share/git-core.old
        mkdir /usr/share/git-core
        mv /usr/share/git-core.old/templates /usr/share/git-core/
        git init --quiet /root/another
        mv /etc/apt /etc/apt.away && mv /etc/apt.away /etc/apt""",
}


def enter(root: Path, script: str) -> None:
    """Run a script with `root` as its root directory; its output is what a failure shows."""
    done = subprocess.run(
        ["chroot", root, "/bin/sh", "-e", "-c", script],
        env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def put_two_layers(union: Union) -> None:
    """What an image and a container runtime would put on a base: changes, removals, a replaced directory."""
    write(union.low2 / "root/hello.c", PROGRAM)
    write(union.low2 / "etc/motd", "from the second layer\n")
    make_whiteout(union.low2 / "usr/share/common-licenses")
    make_opaque(union.low2 / "usr/share/man")
    write(union.low2 / "usr/share/man/README", "no manuals here\n")
    write(union.low / "etc/hosts", "127.0.0.1 localhost\n")
    write(union.low / "etc/hostname", "union\n")
    make_whiteout(union.low / "etc/motd")


def test_a_debian_lives_in_the_union(pyunion: Union, debian: Path) -> None:
    put_two_layers(pyunion)
    lowers = [pyunion.low, pyunion.low2, debian]
    pyunion.mount(lowers=lowers)
    for name, script in STEPS.items():
        try:
            enter(pyunion.at, script)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    pyunion.unmount()

    # The same branches, taken over by the kernel: what was installed there works.
    kernel = KernelMount(pyunion.at)
    kernel.start(Layers(lowers, pyunion.top, pyunion.work))
    try:
        enter(pyunion.at, "hello && git -C /root/clone status && dpkg --verify git && ls /opt/zones/Europe/Berlin")
    finally:
        kernel.stop()
