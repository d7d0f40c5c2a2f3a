"""The index of the store: one SQLite file that may be lost at any time. Does not know what a row means.

Failures are cache misses, never errors, with one warning if the user can act on it. If another process keeps the file
locked, one query waits for it; later ones do not, until a row could be written. Values that decide bytes are sealed: a
row that was changed on disk is ignored.

Locks: each process that has the file open holds `index.lock` shared. Creating or replacing the file needs it
exclusively, because SQLite's files must not be removed while they are in use.
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
    """Rows in and out. Opens at the first query; safe to use from several threads and processes."""

    def __init__(self, directory: str, *, reporter: Reporter | None = None) -> None:
        self.directory = directory
        self.path = os.path.join(directory, _FILES[0])
        self._reporter = reporter or Silence()
        self._connection: sqlite3.Connection | None = None
        self._lock_fd = -1
        self._file = 0
        self._is_open = False
        self._is_mended = False
        self._busy_s = _BUSY_S
        self._has_warned = False
        self._has_told_lock = False
        # Locked again by the same thread during a repair.
        self._lock = RLock()

    @property
    def is_usable(self) -> bool:
        """Whether there is a usable index; opens it."""
        with self._lock:
            return self._connected() is not None

    def rows(self, query: str, parameters: Sequence[object] = (), kinds: Sequence[type] = ()) -> list[Row]:
        """Run a query; no rows if the index is unusable.

        Rows with values of other `kinds` are skipped: in a damaged file a number may have become a text.
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
        """Execute statements, each for many rows, all or none; tells whether they succeeded."""
        with self._lock:
            connection = self._connected()
            if connection is None:
                return False
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statement, parameters in statements:
                    connection.executemany(statement, parameters)
                connection.execute("COMMIT")
                self._wait_for_locks(_BUSY_S)
                return True
            except Exception as error:
                with suppress(Exception):
                    connection.execute("ROLLBACK")
                self._survive(error)
                return False

    def size_bytes(self) -> int:
        """Return the disk usage of the index in bytes."""
        found = 0
        for name in _FILES:
            with suppress(OSError):
                found += os.stat(os.path.join(self.directory, name)).st_size
        return found

    def is_sound(self) -> bool:
        """Check the integrity of the whole file."""
        with self._lock:
            connection = self._connected()
            if connection is None:
                return True  # no index; the reason was already reported
            try:
                return bool(connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)])
            except Exception as error:
                self._survive(error)
                return False

    def compact(self) -> None:
        """Free the space of deleted rows, if the index is not in use elsewhere."""
        with self._lock, suppress(Exception):
            connection = self._connected()
            if connection is not None:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget_all(self) -> None:
        """Delete all rows, even if other processes have the file open."""
        tables = self.rows("SELECT name FROM sqlite_master WHERE type='table'")
        self.write(*((f"DELETE FROM {name}", [()]) for (name,) in tables))
        self.compact()

    def drop(self) -> None:
        """Replace the file by an empty one."""
        with self._lock:
            self._let_go()
            self._open(bad=_inode(self.path))

    def close(self) -> None:
        """Close the file. Later queries of other threads find nothing, and do not open it again."""
        with self._lock:
            self._let_go()
            self._is_open = True

    def tell(self, code: str, message: str) -> None:
        """Warn of something that detlayer works around."""
        self._reporter.warning(code, message)

    def warn(self, code: str, message: str) -> None:
        """Warn once that the store is unusable."""
        if not self._has_warned:
            self._has_warned = True
            self._reporter.warning(code, message)

    # -- opening

    def _connected(self) -> sqlite3.Connection | None:
        if not self._is_open:
            self._open()
        return self._connection

    def _open(self, *, bad: int = 0) -> None:
        """Open the file; create it if it is missing, unusable, or still the `bad` one (an inode)."""
        import sqlite3

        self._is_open = True
        try:
            make_directory(self.directory)
            if not os.access(self.directory, os.W_OK):  # a read-only cache only gets older
                raise PermissionError(errno.EROFS, "it can't be written to")
            self._lock_fd = os.open(os.path.join(self.directory, "index.lock"), os.O_RDWR | os.O_CREAT, 0o600)
            if not lock(self._lock_fd, fcntl.LOCK_SH):
                raise _BlockedError("another process is replacing it")
            connection = self._connect(bad)
            if connection is None:
                if not lock(self._lock_fd, fcntl.LOCK_EX):
                    raise _BlockedError("it has to be replaced, but other processes have it open")
                # Another process may have replaced it while we waited.
                connection = self._connect(bad) or self._make()
                fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
            self._connection = connection
            self._file = _inode(self.path)
        except _NewerError as newer:
            self._let_go()
            self.warn(
                "cache-newer",
                f"{printable(self.path)} was written by a later detlayer (schema {newer}, supported: {SCHEMA}): "
                "working without a cache; use another --cache-dir with this version",
            )
        except (OSError, sqlite3.Error, _BlockedError) as error:
            self._let_go()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.warn("cache-unusable", f"{printable(self.directory)}: {reason}: working without a cache")

    def _connect(self, bad: int) -> sqlite3.Connection | None:
        """Open the existing file; None if it is unusable. Raises _NewerError, OSError, sqlite3.Error."""
        import sqlite3

        if _inode(self.path) in (0, bad):
            return None
        connection = self._raw()
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA:
                connection.execute("SELECT id FROM tree WHERE id < 0")
                # Enough for a cache: a crash of the machine loses the newest rows, never the file.
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
        """Create an empty index; no other process has it open."""
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

        self._busy_s = _BUSY_S
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
        """Handle a failed statement; tells whether to retry. Raises errors that are not SQLite's."""
        import sqlite3

        if not isinstance(error, sqlite3.Error | UnicodeDecodeError):
            raise error
        if _is_damage(error) and not self._is_mended:
            self._is_mended = True
            self._let_go()
            self._open(bad=self._file)
            return self._connection is not None
        if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            # A long lock by another process: only this query is lost.
            if not self._has_told_lock:
                self._has_told_lock = True
                self.tell(
                    "cache-locked",
                    f"{printable(self.path)}: another process has kept it locked for {_BUSY_S:g} s: "
                    "working without it until it is free",
                )
            self._wait_for_locks(0.0)
            return False
        self._let_go()
        self.warn("cache-unusable", f"{printable(self.path)}: {error}: working without a cache")
        return False

    def _wait_for_locks(self, seconds: float) -> None:
        """Set how long a query waits for another process."""
        if self._busy_s != seconds and self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout={seconds * 1000:.0f}")
            self._busy_s = seconds


class _BlockedError(Exception):
    """Other processes hold a lock that we need exclusively."""


class _NewerError(Exception):
    """The index has a newer schema than this version supports."""


def seal(key: bytes, value: bytes) -> bytes:
    """Seal a value, so that a change of it or its key is detected."""
    return blake3(key + value).digest(_SEAL_BYTES) + value


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return the sealed value; None if it was changed."""
    value = sealed[_SEAL_BYTES:]
    return value if sealed[:_SEAL_BYTES] == blake3(key + value).digest(_SEAL_BYTES) else None


def _is_damage(error: Exception) -> bool:
    """Tell a damaged file from one that is locked, full or read-only."""
    import sqlite3

    # SQLITE_ERROR is a missing table or column.
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _code(error: Exception) -> int:
    """Return the primary result code; errors without one come from Python's module, which could not decode a value."""
    return int(getattr(error, "sqlite_errorcode", 11)) & 0xFF


def _inode(path: str) -> int:
    """Return the inode of the file; 0 if it is missing."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
