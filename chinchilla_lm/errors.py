"""The two errors that a user can meet; everything else is our own bug.

Each message is one line that shows the value, the rule and the remedy:
`margin 70.0 is not in (0, 50] F1 points; pass --margin 1.0`.
"""


class InputError(ValueError):
    """Bad input or wrong usage: exit status 2."""


class ContractError(RuntimeError):
    """What was asked cannot be had on this machine with this model: exit status 1."""


def in_one_line(error: Exception) -> str:
    """What another library's exception says, cut to 200 characters; its name where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class LostError(ContractError):
    """A process that works along is gone, or does not answer: what would go well if all were started again."""
