"""The progress bar of several runs on the same batches."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Bar(Protocol):
    """What a run's log asks of its bar; tqdm's is one."""

    def update(self, n: int) -> Any:
        """Go on by some steps."""

    def set_postfix(self, ordered_dict: Any, refresh: bool) -> Any:
        """Show these numbers."""

    def close(self) -> Any:
        """Leave it as it stands."""


class SharedBar:
    """One bar: steps and speed of the first run, and the newest total of each.

    Args:
        names: Of the runs.
        start: Steps done before.
        total: Steps of each run.
        shown: False = show nothing.
    """

    def __init__(self, names: Sequence[str], start: int, total: int, *, shown: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(initial=start, total=total, unit="step", disable=not shown)
        self._first = names[0]
        self._totals = dict.fromkeys(names, "…")
        self._speed: dict[str, str] = {}

    def part(self, name: str) -> Bar:
        """The bar as the log of one run sees it."""
        return _Part(self, name)

    def show(self, name: str, shown: Mapping[str, str]) -> None:
        """Take over what a run would show alone."""
        self._totals[name] = shown["total"]
        if name == self._first:
            self._speed = {key: shown[key] for key in ("images/s", "wait", "memory")}
        self._bar.set_postfix({**self._totals, **self._speed}, refresh=False)

    def go_on(self, name: str, steps: int) -> None:
        """Count the first run's steps: the others are as far, but for one."""
        if name == self._first:
            self._bar.update(steps)

    def close(self) -> None:
        """Leave it as it stands."""
        self._bar.close()


class _Part:
    def __init__(self, whole: SharedBar, name: str) -> None:
        self._whole, self._name = whole, name

    def update(self, n: int) -> None:
        self._whole.go_on(self._name, n)

    def set_postfix(self, ordered_dict: Mapping[str, str], refresh: bool) -> None:
        del refresh  # the next step's does
        self._whole.show(self._name, ordered_dict)

    def close(self) -> None:
        self._whole.close()
