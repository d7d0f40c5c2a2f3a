"""The index of the store: one SQLite file that may be lost at any time. Never what a row means.

Whatever goes wrong here is a store that knows less, never an error: a miss, and one warning where the user can do
something about it. Values that decide bytes are sealed: a row that was changed on disk is ignored.

Locks: whoever has the file open holds `index.lock` shared; making it, or making it anew, needs it alone, because
SQLite's own files must not be taken away from under somebody.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from detlayer.errors import printable
from detlayer.layer.ports import Reporter, Silence
from detlayer.store.directory import make_directory
from detlayer.store.locks import lock

if TYPE_CHECKING:
    import sqlite3

SCHEMA = 1
_BUSY_S = 5.0
_SEAL_BYTES = 16
_FILES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.sqlite-journal")

_TABLES = """
CREATE TABLE blob (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, proof BLOB, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE output (path BLOB PRIMARY KEY, digest TEXT NOT NULL, proof BLOB NOT NULL, used INTEGER NOT NULL);
CREATE TABLE trace (
  key BLOB PRIMARY KEY, step TEXT NOT NULL, about TEXT NOT NULL, results BLOB NOT NULL,
  local INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX trace_about ON trace (step, about);
CREATE TABLE trace_blob (key BLOB NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (key, digest)) WITHOUT ROWID;
CREATE INDEX trace_blob_digest ON trace_blob (digest);
CREATE TABLE chunk (key BLOB PRIMARY KEY, digest TEXT NOT NULL, spot BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX chunk_digest ON chunk (digest);
CREATE TABLE tree (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, used INTEGER NOT NULL);
CREATE TABLE directory (tree INTEGER NOT NULL, path BLOB NOT NULL, records BLOB NOT NULL, PRIMARY KEY (tree, path));
CREATE TABLE place (
  registry TEXT NOT NULL, principal TEXT NOT NULL, digest TEXT NOT NULL, repository TEXT NOT NULL,
  proof TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (registry, principal, digest, repository)
) WITHOUT ROWID;
CREATE TABLE session (
  registry TEXT NOT NULL, principal TEXT NOT NULL, digest TEXT NOT NULL, repository TEXT NOT NULL,
  location TEXT NOT NULL, offset INTEGER NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (registry, principal, digest, repository)
) WITHOUT ROWID;
"""

Row = tuple[Any, ...]
Statement = tuple[str, Iterable[Sequence[object]]]


class Index:
    """Rows in and out. Opens at the first question; safe to use from several threads and processes."""

    def __init__(self, directory: str, *, reporter: Reporter | None = None) -> None:
        self.directory = directory
        self.path = os.path.join(directory, _FILES[0])
        self._reporter = reporter or Silence()
        self._connection: sqlite3.Connection | None = None
        self._lock_fd = -1
        self._file = 0
        self._is_open = False
        self._is_mended = False
        self._has_warned = False
        # Asked again by the same thread while it mends.
        self._lock = RLock()

    @property
    def is_usable(self) -> bool:
        """Whether there is an index to ask, which opens it."""
        with self._lock:
            return self._connected() is not None

    def rows(self, query: str, parameters: Sequence[object] = (), kinds: Sequence[type] = ()) -> list[Row]:
        """Answer a query; nothing where nothing can be known.

        Rows of other `kinds` of values are left out: in a damaged file a number may have become a text.
        """
        with self._lock:
            for _ in range(2):
                connection = self._connected()
                if connection is None:
                    return []
                try:
                    found = connection.execute(query, parameters).fetchall()
                    return [row for row in found if all(map(isinstance, row, kinds))] if kinds else found
                except Exception as error:
                    if not self._survive(error):
                        return []
            return []

    def write(self, *statements: Statement) -> bool:
        """Carry out statements, each for many rows, all or none; tells whether it is done."""
        with self._lock:
            connection = self._connected()
            if connection is None:
                return False
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statement, parameters in statements:
                    connection.executemany(statement, parameters)
                connection.execute("COMMIT")
                return True
            except Exception as error:
                with suppress(Exception):
                    connection.execute("ROLLBACK")
                self._survive(error)
                return False

    def size_bytes(self) -> int:
        """How much of the disk the index takes."""
        found = 0
        for name in _FILES:
            with suppress(OSError):
                found += os.stat(os.path.join(self.directory, name)).st_size
        return found

    def is_sound(self) -> bool:
        """Read all of it, and tell whether it is as SQLite would have written it."""
        with self._lock:
            connection = self._connected()
            if connection is None:
                return True  # there is none; why was said
            try:
                return bool(connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)])
            except Exception as error:
                self._survive(error)
                return False

    def compact(self) -> None:
        """Give back the room of rows that are gone, if nobody else is at it."""
        with self._lock, suppress(Exception):
            connection = self._connected()
            if connection is not None:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget_all(self) -> None:
        """Remove every row, whoever else has it open."""
        tables = self.rows("SELECT name FROM sqlite_master WHERE type='table'")
        self.write(*((f"DELETE FROM {name}", [()]) for (name,) in tables))
        self.compact()

    def drop(self) -> None:
        """Forget everything, by making the file anew."""
        with self._lock:
            self._let_go()
            self._open(bad=_inode(self.path))

    def close(self) -> None:
        """Let go of the file. Threads that are late find nothing, and open nothing again."""
        with self._lock:
            self._let_go()
            self._is_open = True

    def tell(self, code: str, message: str) -> None:
        """Say what was found wrong in the store, and is mended."""
        self._reporter.warning(code, message)

    def warn(self, code: str, message: str) -> None:
        """Say why the store is of no use, once."""
        if not self._has_warned:
            self._has_warned = True
            self._reporter.warning(code, message)

    # -- opening

    def _connected(self) -> sqlite3.Connection | None:
        if not self._is_open:
            self._open()
        return self._connection

    def _open(self, *, bad: int = 0) -> None:
        """Open the file, made anew if there is none that is of use, or if it is still the `bad` one (an inode)."""
        import sqlite3

        self._is_open = True
        try:
            make_directory(self.directory)
            if not os.access(self.directory, os.W_OK):  # what can be read but never written only ages
                raise PermissionError(errno.EROFS, "it can't be written to")
            self._lock_fd = os.open(os.path.join(self.directory, "index.lock"), os.O_RDWR | os.O_CREAT, 0o600)
            if not lock(self._lock_fd, fcntl.LOCK_SH):
                raise _BlockedError("another process is making it anew")
            connection = self._connect(bad)
            if connection is None:
                if not lock(self._lock_fd, fcntl.LOCK_EX):
                    raise _BlockedError("it has to be made anew, and other processes have it open")
                # Somebody else may have made it while we waited.
                connection = self._connect(bad) or self._make()
                fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
            self._connection = connection
            self._file = _inode(self.path)
        except _NewerError as newer:
            self._let_go()
            self.warn(
                "cache-newer",
                f"{printable(self.path)} was written by a later detlayer (schema {newer}, this one knows {SCHEMA}): "
                "working without it; give this one a --cache-dir of its own",
            )
        except (OSError, sqlite3.Error, _BlockedError) as error:
            self._let_go()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.warn("cache-unusable", f"{printable(self.directory)}: {reason}: working without a cache")

    def _connect(self, bad: int) -> sqlite3.Connection | None:
        """Open what is there; None if it is nothing that we can use. Raises _NewerError, OSError, sqlite3.Error."""
        import sqlite3

        if _inode(self.path) in (0, bad):
            return None
        connection = self._raw()
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA:
                connection.execute("SELECT id FROM tree WHERE id < 0")
                # Enough for an index that may be lost: a crash of the machine loses the newest rows, never the file.
                connection.execute("PRAGMA synchronous=NORMAL")
                return connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            connection.close()
            if not _is_damage(error):
                raise
            return None
        connection.close()
        if version > SCHEMA:
            raise _NewerError(version)
        return None

    def _make(self) -> sqlite3.Connection:
        """Make an empty index; nobody else has it open."""
        for name in _FILES:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, name))
        connection = self._raw()
        try:
            os.chmod(self.path, 0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _raw(self) -> sqlite3.Connection:
        import sqlite3

        return sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

    def _let_go(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()
            self._connection = None
        if self._lock_fd >= 0:
            fd, self._lock_fd = self._lock_fd, -1
            os.close(fd)

    # -- what goes wrong

    def _survive(self, error: Exception) -> bool:
        """Make the best of a failed statement; tells whether to try once more. Raises what is no matter of SQLite."""
        import sqlite3

        if not isinstance(error, sqlite3.Error | UnicodeDecodeError):
            raise error
        if _is_damage(error) and not self._is_mended:
            self._is_mended = True
            self._let_go()
            self._open(bad=self._file)
            return self._connection is not None
        # One that is locked is somebody else's for long: this answer is lost, the next need not be.
        if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._let_go()
            self.warn("cache-unusable", f"{printable(self.path)}: {error}: working without a cache")
        return False


class _BlockedError(Exception):
    """Other processes have what we would need alone."""


class _NewerError(Exception):
    """The index has a schema that this version does not know."""


def seal(key: bytes, value: bytes) -> bytes:
    """Make a value that shows when it, or its key, is not what was written."""
    return blake3(key + value).digest(_SEAL_BYTES) + value


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Give the value back; None if it is not what was written."""
    value = sealed[_SEAL_BYTES:]
    return value if sealed[:_SEAL_BYTES] == blake3(key + value).digest(_SEAL_BYTES) else None


def _is_damage(error: Exception) -> bool:
    """Tell a damaged file from one that is locked, full or not to be written."""
    import sqlite3

    # SQLITE_ERROR is a table or column that is not there.
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _code(error: Exception) -> int:
    """The primary result code; what has none is of Python's module, which could not make sense of what it read."""
    return int(getattr(error, "sqlite_errorcode", 11)) & 0xFF


def _inode(path: str) -> int:
    """Tell which file it is; 0 if there is none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
