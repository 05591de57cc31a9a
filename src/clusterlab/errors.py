"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Say in one line what was expected, what came, and what to do; the command line exits with 1."""
