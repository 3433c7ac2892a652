"""Tests of the file system without a mount: the tests are its only caller."""
