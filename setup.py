"""The compiled part of the package.  Optional: without a C compiler everything works in pure Python, more slowly."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tiered._native",
            sources=sorted(glob("tiered/compiled/*.c")),
            depends=sorted(glob("tiered/compiled/*.h")),
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
