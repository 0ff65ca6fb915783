"""What Azure remembers, in wire format, by name; a test looks at it, and puts things there."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any

Things = dict[str, dict[str, Any]]


@dataclass
class State:
    """Everything that was made.

    Attributes:
        resource_groups: By name.
        workspaces: By name.
        computes: By name.
        resources: What else is in resource groups, by its id: storage, key vaults, and what a test puts there.
        environments: By `name:version`.
        codes: By `name:version`.
        models: By `name:version`.
        jobs: By name.
        endpoints: By name.
    """

    resource_groups: Things = field(default_factory=dict)
    workspaces: Things = field(default_factory=dict)
    computes: Things = field(default_factory=dict)
    resources: Things = field(default_factory=dict)
    environments: Things = field(default_factory=dict)
    codes: Things = field(default_factory=dict)
    models: Things = field(default_factory=dict)
    jobs: Things = field(default_factory=dict)
    endpoints: Things = field(default_factory=dict)

    def clear(self) -> None:
        """A subscription in which nothing is."""
        for one in fields(self):
            getattr(self, one.name).clear()

    def take(self) -> dict[str, Things]:
        """A copy of everything, for `put`."""
        return {one.name: copy.deepcopy(getattr(self, one.name)) for one in fields(self)}

    def put(self, taken: dict[str, Things]) -> None:
        """As it was when it was taken."""
        self.clear()
        for name, things in taken.items():
            getattr(self, name).update(things)
