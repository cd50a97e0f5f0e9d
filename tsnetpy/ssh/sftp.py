"""SFTP version 3 on the real file system, with the rights of this process. Runs in the SSH engine's threads."""

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import paramiko
from paramiko.sftp import SFTP_EOF, SFTP_FAILURE, SFTP_OK

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from 3.12

_MAX_READ = 256 * 1024  # a client may ask for 4 GiB in one request


class FileSystem(paramiko.SFTPServerInterface):
    """What an SFTP client sees: the machine's own paths, relative ones below the home directory."""

    def __init__(self, server: paramiko.ServerInterface, directory: str) -> None:
        super().__init__(server)
        self._directory = directory

    def canonicalize(self, path: str) -> str:
        """Return *path* absolute, with links and dots resolved."""
        return os.path.realpath(self._real(path))

    def list_folder(self, path: str) -> "list[paramiko.SFTPAttributes] | int":
        """List a directory with the attributes of its entries."""
        try:
            entries = []
            with os.scandir(self._real(path)) as found:
                for entry in found:
                    attributes = paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False))
                    attributes.filename = entry.name
                    entries.append(attributes)
        except OSError as error:
            return _status(error)
        return entries

    def stat(self, path: str) -> "paramiko.SFTPAttributes | int":
        """Return the attributes of what *path* leads to."""
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(self._real(path)))
        except OSError as error:
            return _status(error)

    def lstat(self, path: str) -> "paramiko.SFTPAttributes | int":
        """Return the attributes of *path* itself."""
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(self._real(path)))
        except OSError as error:
            return _status(error)

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> "paramiko.SFTPHandle | int":
        """Open a file; a new one gets the mode that the client asks for, cut by the umask."""
        mode = attr.st_mode if attr.st_mode is not None else 0o666
        try:
            descriptor = os.open(self._real(path), flags | os.O_CLOEXEC, mode & 0o7777)
        except OSError as error:
            return _status(error)
        return _File(descriptor, flags)

    def remove(self, path: str) -> int:
        """Remove a file."""
        return self._do(os.remove, path)

    def rename(self, oldpath: str, newpath: str) -> int:
        """Rename; like OpenSSH's server this refuses to replace an existing file (draft-02 section 6.5)."""
        if os.path.lexists(self._real(newpath)):
            return SFTP_FAILURE
        return self.posix_rename(oldpath, newpath)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        """Rename, replacing what is there."""
        try:
            os.replace(self._real(oldpath), self._real(newpath))
        except OSError as error:
            return _status(error)
        return SFTP_OK

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        """Make a directory."""
        mode = attr.st_mode if attr.st_mode is not None else 0o777
        try:
            os.mkdir(self._real(path), mode & 0o7777)
        except OSError as error:
            return _status(error)
        return SFTP_OK

    def rmdir(self, path: str) -> int:
        """Remove an empty directory."""
        return self._do(os.rmdir, path)

    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        """Set mode, owner, times or size."""
        try:
            paramiko.SFTPServer.set_file_attr(self._real(path), attr)
        except OSError as error:
            return _status(error)
        return SFTP_OK

    def symlink(self, target_path: str, path: str) -> int:
        """Make *path* a link to *target_path*, which is stored as it is."""
        try:
            os.symlink(target_path, self._real(path))
        except OSError as error:
            return _status(error)
        return SFTP_OK

    def readlink(self, path: str) -> "str | int":
        """Return where a link points."""
        try:
            return os.readlink(self._real(path))
        except OSError as error:
            return _status(error)

    def _real(self, path: str) -> str:
        return os.path.join(self._directory, path)

    def _do(self, call: Callable[[str], None], path: str) -> int:
        try:
            call(self._real(path))
        except OSError as error:
            return _status(error)
        return SFTP_OK


def _status(error: OSError) -> int:
    return paramiko.SFTPServer.convert_errno(error.errno or errno.EIO)


class _File(paramiko.SFTPHandle):
    """An open file, read and written by offset, so that requests may come in any order."""

    def __init__(self, descriptor: int, flags: int) -> None:
        super().__init__(flags)
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> "bytes | int":
        try:
            data = os.pread(self._descriptor, min(length, _MAX_READ), offset)
        except OSError as error:
            return _status(error)
        return data or SFTP_EOF

    def write(self, offset: int, data: "Buffer") -> int:
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._descriptor, view, offset)
                view = view[done:]
                offset += done
        except OSError as error:
            return _status(error)
        return SFTP_OK

    def stat(self) -> "paramiko.SFTPAttributes | int":
        try:
            return paramiko.SFTPAttributes.from_stat(os.fstat(self._descriptor))
        except OSError as error:
            return _status(error)

    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        try:
            if attr.st_mode is not None:
                os.fchmod(self._descriptor, attr.st_mode & 0o7777)
            if attr.st_atime is not None and attr.st_mtime is not None:
                os.utime(self._descriptor, (attr.st_atime, attr.st_mtime))
            if attr.st_size is not None:
                os.ftruncate(self._descriptor, attr.st_size)
        except OSError as error:
            return _status(error)
        return SFTP_OK


class Subsystem(paramiko.SFTPServer):
    """The ``sftp`` subsystem; it ends with exit status 0, without which OpenSSH reports a failure."""

    def finish_subsystem(self) -> None:
        """Send the status, then close."""
        if self.sock is not None and not self.sock.closed:
            self.sock.send_exit_status(0)
        super().finish_subsystem()
