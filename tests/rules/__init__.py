"""Tests of the pure rules; no file system is involved."""
