"""The tests of pyunion, one folder for each layer; what they share is in tests/harness.

Tests that mount need root and /dev/fuse, and fail without.
"""
