"""The one error that a user is meant to read."""


class SidestepError(Exception):
    """Bad input, said in one line: which file or value, what is wrong with it, what to do.

    The command line prints the message and exits with 1. A library user catches this class and nothing else;
    every other exception that escapes Sidestep is a defect.
    """
