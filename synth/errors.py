"""The one error a user can cause and mend."""


class BadInput(ValueError):
    """Wrong input: one sentence naming the file, row and column. The command line prints it and exits with 2."""
