"""The parent's end: contestants as processes, in an environment of their own, with a limit to every wait."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What would decide the speed of somebody's threads or products behind the table's back.
CLEARED = ("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "BLAS_", "VECLIB_", "ATLAS_", "NUMEXPR_",
           "ONEDNN_", "DNNL_", "TORCH_", "XLA_", "JAX_", "NPY_", "REFMOE_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD",
           "PYTORCH_", "ATEN_", "GGML_", "ORT_")  # fmt: skip
COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class ChildFailed(RuntimeError):
    """A contestant did not answer as agreed. kind: refused, parity, missing, error, died, hangs."""

    def __init__(self, reason, kind):
        super().__init__(reason)
        self.kind = kind


def clean_environment(environment, threads, extra=()):
    """The environment without what steers BLAS and thread pools, then as many threads as are timed, then `extra`."""
    kept = {name: value for name, value in environment.items() if not name.startswith(CLEARED)}
    kept |= dict.fromkeys(COUNTS, str(threads))
    root = Path(__file__).parents[2]
    if (root / "csrc").is_dir():  # a checkout; an installed package must be installed for the peers' Python too
        kept |= {"PYTHONPATH": str(root)}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(extra)


class Child:
    """One contestant's process. `ask` sends a message and waits for its answer; `close` ends it."""

    def __init__(self, name, threads, extra=(), python=None, command=None):
        command = command or [python or sys.executable, "-m", "refmoe.bench.child", name]
        self._said = tempfile.TemporaryFile()  # what it prints besides its answers
        environment = clean_environment(os.environ, threads, extra)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                                         env=environment, cwd=tempfile.gettempdir())  # fmt: skip
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._rest = b""

    def ask(self, message, seconds):
        """The answer. Raises ChildFailed for a failure it reports, for its death, and when the time is over."""
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._died()
        line = self._line(time.monotonic() + seconds, seconds)
        try:
            answer = json.loads(line)
        except ValueError:
            self.close()
            raise ChildFailed(f"answered {line[:60]!r}", "error") from None
        if "failed" in answer and "kind" in answer:
            raise ChildFailed(answer["failed"], answer["kind"])
        return answer

    def _line(self, deadline, seconds):
        while b"\n" not in self._rest:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self.close()
                raise ChildFailed(f"no answer in {seconds:.0f} s", "hangs")
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                self._died()
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _died(self):
        self._process.stdin = _closed(self._process.stdin)
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        self.close()
        raise ChildFailed(f"ended with status {code}" + (f": {last[0][:300]}" if last else ""), "died")

    def is_alive(self):
        return self._process.poll() is None

    def close(self):
        """Ends the process, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            _closed(pipe)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _closed(pipe):
    """Closes a pipe that may hold unsent bytes for a process that is gone."""
    try:
        pipe.close()
    except OSError:
        pass
    return pipe
