"""Mistakes that a user can mend, and the hint that goes with a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake that the user can mend. Commands print it as one line, without a traceback."""


class Diverged(UserError):
    """The numbers of a training went bad: from here on nothing is learned any more."""


def raised_by(error: BaseException, package: str) -> bool:
    """Whether a module of `package` raised the error itself: a library that refuses a setting, not a bug of ours."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).partition(".")[0] == package


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """The end of an error message about a name that does not exist: the nearest of `names`, or all of them
    where none is near."""
    options = list(names)
    near = get_close_matches(wrong, options, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f" (there are {', '.join(options)})"
