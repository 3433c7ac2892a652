"""Public test suites of file systems, run on pyunion and on the kernel's overlayfs: one module for each suite.

A suite is a checkout outside of this project. Each module ends with a `Suite`, which scripts/conformance.py lists.
"""
