"""Programs that people run."""

from benchmark.workload import State, Workload

_STATUS = 'test -z "$(git -C repository status --porcelain)"'

WORKLOADS = (
    Workload("git-status-cold", "of a repository that holds the tree", "repository", _STATUS, State.COLD),
    Workload("git-status-warm", "of a repository that holds the tree", "repository", _STATUS, State.WARM),
    Workload("compile", "C sources with their headers, by gcc", "sources", "cd sources && gcc -o program *.c"),
    Workload(
        "dpkg",
        "a package is installed over itself in a Debian root",
        "root",
        "chroot . sh -c 'dpkg -i /var/cache/apt/archives/git_*.deb'",
        long=True,
    ),
)
