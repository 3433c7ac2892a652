"""Programs in an image: `pyunion run`.

Owns namespaces, the processes in them, and what a program finds around it. Knows layers as directories; what is mounted
as its root, and by whom, it is told.
"""
