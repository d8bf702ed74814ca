"""What the lab raises for a user's mistake, a missing piece of the machine, and a signal that ends a run in good order."""


class CannotRun(Exception):
    """The work asked for cannot be done here; the message says what happened and the remedy, in one line.

    Scripts and `lab.py` print it without a stack trace and exit with code 2.
    """


class Stopped(KeyboardInterrupt):
    """A signal has ended a run that has put its work into safety first; the message says what was saved and where.

    Scripts print it in one line and exit with 128 + the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
