"""Errors that a user can fix, and the hint for a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from textwrap import shorten


class UserError(ValueError):
    """An error that the user can fix. Commands print it as one line, without a traceback."""


class Diverged(UserError):
    """A loss or a weight is no longer finite."""


@contextmanager
def user_errors(group: str) -> Iterator[None]:
    """Re-raise the errors of other people's constructors as `UserError`, prefixed with `group`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, AttributeError) as error:  # their text alone says little
        raise UserError(f"{group}: {type(error).__name__}: {error}") from error
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, ImportError) as error:
        raise UserError(f"{group}: {one_line(error)}") from error
    except Exception as error:  # Hydra wraps import and call errors
        if type(error).__module__.startswith("hydra.") or "Misconfiguration" in type(error).__name__:
            text = one_line(error).split(", set env var")[0].split(" full_key:")[0]  # what only Hydra's users know
            raise UserError(f"{group}: {text}") from error
        raise


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 600 characters."""
    return shorten(str(error), 600, placeholder=" …")


def raised_by(error: BaseException, package: str) -> bool:
    """Return whether a module of `package` raised the error."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and f"{traceback.tb_frame.f_globals.get('__name__')}.".startswith(f"{package}.")


def check_installed(extra: str, *packages: str) -> None:
    """Raise `UserError` if one of the packages that come with an extra is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'cnnlab[{extra}]'")


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest of `names`, or all of them."""
    options = list(names)
    near = get_close_matches(wrong, options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f" (there are {', '.join(options)})" if options else ""
