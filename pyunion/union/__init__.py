"""The rules of a union as pure functions: who wins, what is hidden, what a mark means, where things go.

No module here does I/O or knows descriptors, pyfuse3 or trio.
"""
