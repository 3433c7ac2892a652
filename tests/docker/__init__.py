"""Layers of Docker's overlay2, read where a real dockerd has written them."""
