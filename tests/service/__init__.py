"""pyunion as a service: a Debian that is really booted, with systemd as its first process."""
