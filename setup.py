"""Builds the C extension; everything else about the package is in pyproject.toml.

The extension keeps to the stable ABI of Python 3.11, so that one wheel serves that version and all later ones.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "syncer.native._scan",
            sources=["syncer/native/_scan.c"],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
