"""The architecture as tests: which folder may import which, and how large things may grow."""
