"""Builds the optional extension; everything else about the package is in pyproject.toml."""

import subprocess

from setuptools import Extension, setup


def pkg_config(*question: str) -> list[str]:
    return subprocess.run(["pkg-config", *question, "fuse3"], capture_output=True, text=True).stdout.split()


setup(
    ext_modules=[
        Extension(
            "pyunion.fuse._wire",
            ["pyunion/fuse/_wire.c"],
            extra_compile_args=["-Wall", "-Wextra", "-Wno-unused-parameter", *pkg_config("--cflags")],
            extra_link_args=pkg_config("--libs"),
            optional=True,  # without it the mount works with what pyfuse3 has
        )
    ]
)
