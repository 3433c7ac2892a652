"""Generated sequences of operations, run side by side on pyunion and on the kernel's overlayfs."""
