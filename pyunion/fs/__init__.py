"""The union as an asynchronous file system that knows no kernel: nodes, look-up, open files, changes.

Uses pyunion.branch for every system call and pyunion.union for every rule. Knows neither pyfuse3 nor the daemon;
errors are OSError with the errno that the caller shall see.
"""
