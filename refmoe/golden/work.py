"""Unfinished work beside a bundle in the making, so that an interrupted run goes on where it stopped.   Spec 7.4.1

A folder holds one file, to which records are appended: what was made of one expert (a digest, a sample, rows), under
the name of what it is, with a checksum. Its first record is the key of the case. A record that was cut short when the
run ended, or altered since, is dropped with all that follows it, and made again.
"""

import errno
import fcntl
import hashlib
import json
import shutil
from pathlib import Path

FILE = "journal"


class Work:
    """What has been made of a case with this key. `get` and `put` may be called from several threads.

    Raises ValueError if the folder belongs to another case or another run is at work in it.
    """

    def __init__(self, folder, key):
        self.folder, self._made = Path(folder), {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / FILE, "a+b", buffering=0)
        try:
            self._lock()
            self._read(key)
        except BaseException:
            self._file.close()
            raise
        self.found = len(self._made)

    def get(self, name, expert, size):
        """The record's bytes, `size` of them, or None."""
        data = self._made.get((name, expert))
        return data if data is not None and len(data) == size else None

    def put(self, name, expert, data):
        """Keeps a record; one write, so that threads do not mix theirs."""
        record = _record(name, expert, bytes(data))
        if self._file.write(record) != len(record):
            raise OSError(errno.ENOSPC, "no room for the unfinished work", str(self.folder))
        self._made[name, expert] = bytes(data)

    def close(self):
        """The folder stays if there is anything in it that would be made again."""
        self._file.close()
        if not self._made:
            self.remove()

    def remove(self):
        """The bundle is there, or nothing was made: the folder goes."""
        self._file.close()
        shutil.rmtree(self.folder)

    def __len__(self):
        return len(self._made)

    def _lock(self):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"--out: expected no other run at work on it, {self.folder} is in use; wait for it, or choose another"
            ) from None

    def _read(self, key):
        self._file.seek(0)
        data = self._file.read()
        records, whole = _records(data)
        if data and records[:1] != [("key", 0, key.encode())]:
            raise ValueError(
                f"--out: expected {self.folder} to hold unfinished work of this case, it is of another (or altered); "
                "ask for that case again, remove the folder, or choose another --out"
            )
        self._file.truncate(whole)
        if not data:
            self._file.write(_record("key", 0, key.encode()))
        self._made = {(name, expert): kept for name, expert, kept in records[1:]}


def key_of(value):
    """The key of a case: the digest of a JSON value that says everything its bytes depend on."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _record(name, expert, data):
    head = json.dumps([name, expert, len(data)]).encode() + b"\n"
    return head + hashlib.sha256(head + data).digest() + data


def _records(data):
    """([(name, expert, bytes)], how many bytes they take) of the records from the beginning that are whole."""
    records, at = [], 0
    while (end := data.find(b"\n", at, at + 200) + 1) > 0:
        head = data[at:end]
        try:
            name, expert, size = json.loads(head)
            kept = data[end + 32 : end + 32 + size]
        except (ValueError, TypeError):
            break
        if data[end : end + 32] != hashlib.sha256(head + kept).digest():
            break
        records.append((name, expert, kept))
        at = end + 32 + size
    return records, at
