"""Errors that people are told in one line, by whose they are, and what any error says in one."""


class UserError(Exception):
    """Bad input, data and code of one's own included: one line, exit code 2.

    The line says what is wrong, where, and what to do. Every exception that is neither this nor a
    :class:`MachineError` is ours and keeps its traceback (exit code 1).
    """

    exit_code = 2


class MachineError(Exception):
    """No input's fault: one line, exit code 1, and the same command goes on.

    The machine ended a process, a disk is full, a server is gone; or something of ours went wrong
    in a rank, whose log has the traceback.
    """

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
