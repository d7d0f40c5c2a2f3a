"""A disk whose blocks can be changed behind the file system's back: an ext4 image on a loop device. Needs root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

_FIBMAP, _FIGETBSZ = 1, 2
_SIZE_BYTES = 12 << 20


class Disk:
    """An ext4 file system, mounted at a directory. Its device stays the same, and so do stat records."""

    def __init__(self, image: Path, at: Path) -> None:
        self._at = at
        with image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image))
        self._device = _run("losetup", "--find", "--show", str(image)).strip()
        try:
            self._mount()
            (at / "lost+found").rmdir()
        except BaseException:
            _run("losetup", "--detach", self._device)
            raise

    def save(self) -> bytes:
        """Give the blocks of the whole disk."""
        self._unmount()
        try:
            with open(self._device, "rb") as file:
                return file.read()
        finally:
            self._mount()

    def load(self, data: bytes) -> None:
        """Put all blocks back."""
        self._unmount()
        try:
            self._write(0, data)
        finally:
            self._mount()

    def rot(self, path: Path) -> None:
        """Flip a bit in the middle of a file; its stat record stays as it is."""
        before = os.stat(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            block_bytes = _ioctl(file.fileno(), _FIGETBSZ, 0)
            place = before.st_size // 2
            block = _ioctl(file.fileno(), _FIBMAP, place // block_bytes)
        at = block * block_bytes + place % block_bytes
        self._unmount()
        try:
            with open(self._device, "rb") as device:
                device.seek(at)
                byte = device.read(1)[0]
            self._write(at, bytes([byte ^ 0x10]))
        finally:
            self._mount()
        after = os.stat(path)
        for one in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev"):
            assert getattr(before, one) == getattr(after, one), one

    def close(self) -> None:
        self._unmount()
        _run("losetup", "--detach", self._device)

    def _write(self, at: int, data: bytes) -> None:
        with open(self._device, "r+b") as file:
            file.seek(at)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", "-o", "noatime", self._device, str(self._at))

    def _unmount(self) -> None:
        _run("umount", str(self._at))


def can_mount(scratch: Path) -> bool:
    """Tell whether this machine lets us mount a disk."""
    (scratch / "at").mkdir(parents=True)
    try:
        Disk(scratch / "try.img", scratch / "at").close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _ioctl(fd: int, what: int, value: int) -> int:
    found: int = struct.unpack("i", fcntl.ioctl(fd, what, struct.pack("i", value)))[0]
    return found


def _run(*command: str) -> str:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": path}).stdout
