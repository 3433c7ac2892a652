"""The kernel's side: requests in, replies out. The only folder that imports pyfuse3.

Translates between pyfuse3's types and pyunion.fs, and owns the session with the kernel. Decides nothing about
the union.
"""

from pyunion.fuse import wire as wire  # before anything imports pyfuse3, see there
