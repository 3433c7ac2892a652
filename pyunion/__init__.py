"""pyunion: read-only branches and one writable branch as one tree, a union mount in user space (FUSE).

The command line is pyunion.cli, the daemon behind a mount is pyunion.daemon.
"""

__version__ = "0.1.0"
