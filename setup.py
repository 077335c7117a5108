"""The compiled module; everything else about the package stands in pyproject.toml.

The module is optional: without a compiler the package installs and computes with NumPy. REFMOE_REQUIRE_C=1 makes that
an error.
"""

from setuptools import setup

setup(cffi_modules=["csrc/build.py:ffibuilder"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
