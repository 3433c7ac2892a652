"""mount(8), umount(8) and fstab, the real programs, with pyunion installed as their helper."""
