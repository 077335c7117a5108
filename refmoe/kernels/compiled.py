"""The compiled module, imported only when it is first asked for."""

import importlib

MODULE = "refmoe._kernels"


def load_module():
    """(ffi, lib). Raises ImportError."""
    found = importlib.import_module(MODULE)
    return found.ffi, found.lib


def text(ffi, chars):
    return ffi.string(chars).decode()
