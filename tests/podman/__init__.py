"""podman and buildah, the real programs, with pyunion as the mount program of their storage."""
