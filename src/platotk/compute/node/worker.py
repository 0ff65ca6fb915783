"""Every other machine: it joins the head's Ray, joins again when it fell out, and leaves when the job is over.

It leaves with 0 whatever the command did: the head's exit code is the job's, and a platform that sees a worker fail
would take the whole job for failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from .channel import Link, Refused
from .head import Asked
from .placement import Placement, own_address, resolve
from .processes import RayNode, Settings

POLL_S = 0.2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0
FAILED = 1


def work(placement: Placement, settings: Settings, tell: Callable[[str], None]) -> int:
    """Be a worker until the head says goodbye.

    Returns:
        0 when the job is over; 1 when the head never answered or refused this machine; 128 + the signal it was sent.
    """
    return _Worker(placement, settings, tell).work()


class _Worker:
    def __init__(self, placement: Placement, settings: Settings, tell: Callable[[str], None]) -> None:
        self._placement, self._settings, self._tell = placement, settings, tell
        self._asked = Asked()
        self._ray: RayNode | None = None
        self._session = ""
        self._has_said_joined = False
        self._failures = 0
        self._starts_at = 0.0

    def work(self) -> int:
        gives_up_at = time.monotonic() + self._settings.start_s
        try:
            while True:
                if self._asked.number is not None:
                    return 128 + self._asked.number
                try:
                    link = self._connect()
                except Refused as error:
                    self._tell(f"the head refuses this machine: {error}")
                    return FAILED
                except OSError as error:
                    if time.monotonic() > gives_up_at:
                        return self._give_up(error)
                    time.sleep(FIRST_PAUSE_S)
                    continue
                try:
                    code = self._serve(link)
                finally:
                    link.close()
                if code is not None:
                    return code
                gives_up_at = time.monotonic() + self._settings.patience_s
        finally:
            self._end_ray()

    def _connect(self) -> Link:
        head = resolve(self._placement.head)
        self._address = own_address(head)
        link = Link(
            head,
            self._settings.port + 1,
            self._settings.token,
            rank=self._placement.rank,
            nodes=self._placement.nodes,
            address=self._address,
        )
        if link.session != self._session:
            # Another head: what joined the one before is of no use to it.
            self._end_ray()
            self._session, self._failures, self._starts_at = link.session, 0, 0.0
        self._has_said_joined = False
        return link

    def _serve(self, link: Link) -> int | None:
        """Until the job is over (an exit code) or the head cannot be heard (None)."""
        head: str | None = None
        beat_at = 0.0
        while True:
            if self._asked.number is not None:
                return 128 + self._asked.number
            try:
                message = link.receive(POLL_S) or {}
                if "bye" in message:
                    self._tell("the job is over")
                    return 0
                head = message.get("go", head)
                if head is not None:
                    self._watch_ray(link, str(head))
                if time.monotonic() > beat_at:
                    link.say(alive=True)
                    beat_at = time.monotonic() + 1.0
            except OSError as error:
                self._tell(f"the head cannot be heard ({error}); this machine stays for a while")
                return None

    def _watch_ray(self, link: Link, head: str) -> None:
        """Start Ray, say when it has joined, and start it again when it has fallen out of the cluster."""
        if self._ray is None:
            if time.monotonic() >= self._starts_at:
                self._ray = RayNode(self._address, self._settings, rank=self._placement.rank, head=head)
                self._has_said_joined = False
                if self._ray.note:
                    self._tell(self._ray.note)
            return
        if self._ray.poll() is not None:
            tail = self._ray.tail()
            self._tell(f"Ray ended on this machine:\n{tail}")
            self._end_ray()
            self._failures += 1
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures)
            self._starts_at = time.monotonic() + pause_s
            link.say(failed=tail[-1500:])
        elif not self._has_said_joined and self._ray.is_up():
            link.say(joined=True)
            self._has_said_joined, self._failures = True, 0

    def _give_up(self, error: OSError) -> int:
        where = f"the head at {self._placement.head}:{self._settings.port + 1}"
        if self._session:
            self._tell(f"{where} has been gone for {self._settings.patience_s:g} s; leaving")
            return 0
        self._tell(f"{where} did not answer within {self._settings.start_s:g} s: {error}")
        return FAILED

    def _end_ray(self) -> None:
        if self._ray is not None:
            with suppress(OSError):
                self._ray.end()
            self._ray = None
