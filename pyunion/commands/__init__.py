"""The commands, a module each: run(arguments) does it and returns the exit status.

They may use everything of pyunion, and are imported by nothing but pyunion.cli, one at a time.
"""
