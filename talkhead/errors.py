"""The exception for errors that the caller can fix."""


class TalkheadError(Exception):
    """Something the caller can put right, said in one line: "where: what; how to mend".

    The shell prints the line and exits with 1. Any other exception is a bug of this package and keeps its traceback.
    """
