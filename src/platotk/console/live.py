"""What live views of long work share: a picture at the bottom of a terminal, and a method for each kind of event."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .people import is_live, people

if TYPE_CHECKING:
    from rich.console import RenderableType
    from typing_extensions import Self


class LiveView(ABC):
    """Shows work to people while it goes on; call it with the work's events, each of which has an `_on_...` method."""

    def __init__(self) -> None:
        self._people = people()
        self._live: Any = None
        self._began = time.monotonic()
        self._doing = "Starting"

    def __enter__(self) -> Self:
        if is_live(self._people):
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, console=self._people, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in an event."""
        tell = getattr(self, f"_on_{event['event']}", None)
        if tell is not None:
            tell(event)

    def _close(self) -> None:
        """Take the picture away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @abstractmethod
    def _picture(self) -> RenderableType:
        """What stands at the bottom of the terminal just now."""
