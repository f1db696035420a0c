"""The one error that people can cause, and what any error says in one line."""


class UserError(Exception):
    """Bad input: shown as one line (what is wrong, where, what to do), exit code 2.

    Every other exception is ours and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
