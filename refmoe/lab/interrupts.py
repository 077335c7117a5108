"""Ctrl-C that lets a step come to its end."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def asked_to_stop():
    """Gives a function that tells whether Ctrl-C was pressed; a second one interrupts at once.

    Outside the main thread, where no handler can be set, the function says no and Ctrl-C does what it did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard = []

    def hear(number, frame):
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)
