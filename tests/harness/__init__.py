"""What the tests share: branch sets, snapshots of trees, real mounts, the watch over what is left behind.

Knows pyunion only by its command line and overlayfs only by mount(8): both stand behind one interface.
"""
