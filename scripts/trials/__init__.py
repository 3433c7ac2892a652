"""What scripts/reliability does to pyunion, and how it tells whether anything was lost.

Knows pyunion by its command line only; the kernel's overlayfs says what is right.
"""
