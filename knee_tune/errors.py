"""The one error that people can cause, and how any error is shown in a line."""


class UserError(Exception):
    """Bad input: shown as one line (what is wrong, where, what to do), exit code 2.

    Every other exception is ours and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says, or its type's name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
