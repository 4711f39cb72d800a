"""The one exception type for mistakes that the user can mend, and the system's errors that are such mistakes."""

import errno


class UserError(Exception):
    """Bad input: one line that names the file, key or value and the remedy. The command line exits with status 2."""


USERS_ERRORS = {
    errno.ENOSPC: "no space left on the device; free some",
    errno.EACCES: "permission denied; change the permissions",
    errno.EROFS: "the file system is read-only; mount it for writing",
    errno.ENOTDIR: "a file lies where a folder should be; move it away",
    errno.EEXIST: "a file lies where a folder should be; move it away",
}
"""What the system may say of the user's disk, and the remedy; any other system error is a defect of ours."""
