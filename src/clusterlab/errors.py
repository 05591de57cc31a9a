"""The one exception a user is meant to read, and how a program ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


def quote(key: str, value: object) -> str:
    """Return the remedy for a name that is read as a number, such as a folder's, 2024.

    Example:
        >>> print(quote("output_dir", 2024))
        quote it, as in "output_dir='2024'"
    """
    return f"""quote it, as in "{key}='{value}'\""""


@contextmanager
def exit_on_error(*others: type[Exception]) -> Iterator[None]:
    """End a program with the one line and exit code 1, on a ``UserError`` or one of ``others``."""
    expected: tuple[type[Exception], ...] = (UserError, *others)
    try:
        yield
    except expected as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def asked_for_help(usage: str) -> bool:
    """Print how a program is called where its command asks, and say whether it did."""
    asked = not {"-h", "--help"}.isdisjoint(sys.argv[1:])
    if asked:
        print(f"usage: {usage}")
    return asked
