"""Behaviour on real mounts: tests run on pyunion and, where both must agree, on the kernel's overlayfs."""
