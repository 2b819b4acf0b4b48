"""The one error that a user is meant to read."""

_LONGEST = 2000  # characters; a path may have 4096 bytes, and what a file says may have millions


class SidestepError(Exception):
    """Bad input, said in one line: which file or value, what is wrong with it, what to do.

    The command line prints the message and exits with 1. A library user catches this class and nothing else;
    every other exception that escapes Sidestep is a defect. What a message quotes of a file cannot break the line, nor
    write to the terminal what it takes for commands.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    """The text without what is not printable, which is shown as in Python's source, and without its middle if long."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
