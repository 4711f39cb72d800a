"""The one exception type for mistakes that the user can mend."""


class UserError(Exception):
    """Bad input: one line that names the file, key or value and the remedy. The command line exits with status 2."""
