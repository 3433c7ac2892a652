"""Bounded parts of what scripts/reliability does, and what it does not: who may do what, and hostile branches."""
