"""What a stat record proves: while a file has the same record, its content is unchanged (SPEC 10.2).

The record is size, mtime, ctime, inode and device. Users cannot set a ctime, so any change moves it, unless the change
came within one tick of the file system's clock. So a record that is too young proves nothing.
"""

from __future__ import annotations

import os

StatRecord = tuple[int, int, int, int, int]

# Linux keeps times in nanoseconds and moves them with its timer, every 1 to 10 ms. Times without a fraction of a
# millisecond come from file systems that round: FAT to 2 s, others to 1 s.
_TICK_NS = 50_000_000
_COARSE_NS = 2_000_000_000


def stat_record_of(status: os.stat_result) -> StatRecord:
    """Return the stat record of a file."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def is_racy(stamp: StatRecord, seen_ns: int) -> bool:
    """Tell whether a file may have changed after it was `seen`, and still have this record.

    Also true if its ctime is in the future: the clock was set back.
    """
    ctime_ns = stamp[2]
    return ctime_ns + (_TICK_NS if ctime_ns % 1_000_000 else _COARSE_NS) >= seen_ns
