"""Tests of the kernel's side, without a kernel: the errno boundary and the wait for requests."""
