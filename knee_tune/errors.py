"""The one error that people can cause, and what any error says in one line."""


class UserError(Exception):
    """Bad input: shown as one line (what is wrong, where, what to do), exit code 2.

    Every other exception is ours and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


LONGEST = 500
"""Characters of what is said about a mistake; what people typed may be much longer."""


def one_line(text: str) -> str:
    """``text`` in one line of :data:`LONGEST` characters at most: its start and its end.

    What is wrong stands at the start, what to do at the end.
    """
    text = " ".join(text.splitlines())
    if len(text) <= LONGEST:
        return text
    end = LONGEST // 3
    return f"{text[: LONGEST - end - 5]} ... {text[-end:]}"
