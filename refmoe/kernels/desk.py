"""What a call of C needs beside its arrays, kept for the next one: making it anew takes longer than many a call."""

import numpy as np

from . import memory


class Desk:
    """`report`, and a refmoe_how for each tuple of its fields. One caller at a time has it."""

    __slots__ = ("report", "_ffi", "_hows")

    def __init__(self, ffi):
        self.report, self._ffi, self._hows = ffi.new("refmoe_report *"), ffi, {}

    def how(self, fields):
        """Its workspace is whatever the last call had."""
        if fields not in self._hows:
            self._hows[fields] = self._ffi.new("refmoe_how *", fields)
        return self._hows[fields]


class Room:
    """Scratch memory of so many bytes. One caller at a time has it."""

    __slots__ = ("_array", "_workspace")

    def __init__(self, ffi, nbytes):
        self._array = memory.empty((nbytes,), np.uint8)
        self._workspace = ffi.new("refmoe_workspace *", (ffi.from_buffer(self._array), nbytes))

    def workspace(self):
        """A refmoe_workspace: a call overwrites its size."""
        self._workspace.bytes = len(self._array)
        return self._workspace


def take(idle):
    """One of a list that several threads take from; None where another was faster."""
    try:
        return idle.pop()
    except IndexError:
        return None
