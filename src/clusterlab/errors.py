"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Say in one line what was expected, what came, and what to do."""


def problem(expected: object, got: object, remedy: str) -> UserError:
    """Make the one line.

    Example:
        >>> print(problem("2 clusters or more", 1, "set n_clusters=2"))
        Expected 2 clusters or more, got 1; set n_clusters=2.
    """
    # An error quoted in `got` may have several lines.
    return UserError(" ".join(f"Expected {expected}, got {got}; {remedy}.".split()))
