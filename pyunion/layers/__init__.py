"""Work on layers that are not mounted: what changed, whether it is sound, images in and out.

Reads and writes branches by pyunion.branch and the rules of pyunion.union; knows nothing of nodes, requests, pyfuse3 or
trio, and prints nothing.
"""
