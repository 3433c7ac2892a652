"""The only folder that makes system calls on branches: descriptors, marks on disk, copy_up, probing.

May use the pure rules of pyunion.union; knows nothing of nodes, requests, pyfuse3 or trio.
"""
