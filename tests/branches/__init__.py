"""Branches on other file systems than the machine's own disk."""
