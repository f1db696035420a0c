"""The one error that people can cause."""


class UserError(Exception):
    """Bad input: shown as one line (what is wrong, where, what to do), exit code 2.

    Every other exception is ours and keeps its traceback.
    """
