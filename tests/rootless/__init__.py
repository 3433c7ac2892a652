"""Tests of pyunion run by an ordinary user, with fusermount3 or as root of a user namespace."""
