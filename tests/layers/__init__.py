"""Layers without a mount, held against docker, podman, umoci, skopeo and the kernel's overlayfs."""
