"""The benchmark: workloads on unions of the same branches, by pyunion and by others, side by side in one run.

`workloads` is data: what is run, on which lower branches, and how much pyunion may take. `materials` makes those
branches, `systems` mounts them, `runner` takes the times, `report` and `chart` show them, `limits` judges. `growth` and
`inside` are other questions to the same parts. scripts/bench.py is the command line.
"""
