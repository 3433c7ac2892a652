"""Operating a running mount: its commands, its control socket, its metrics."""
