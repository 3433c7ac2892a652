"""pyunion under a real root file system: a Debian that installs, compiles and clones in its union."""
