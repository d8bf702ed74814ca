"""The one exception that the lab raises for a user's mistake or a missing piece of the machine."""


class CannotRun(Exception):
    """The work asked for cannot be done here; the message says what happened and the remedy, in one line.

    Scripts and `lab.py` print it without a stack trace and exit with code 2.
    """
