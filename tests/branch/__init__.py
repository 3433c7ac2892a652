"""Tests of the system calls on branches, on real file systems, without a union."""
