"""What the name of a size of virtual machine says: its CPUs.

From the name alone, so that a dry run needs no network: `Standard_E8ds_v5` has 8. The older D and DS sizes number
their steps instead, and are listed.
"""

from __future__ import annotations

import re

STEPS = {1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 11: 2, 12: 4, 13: 8, 14: 16, 15: 20}
"""Of D1 to D15 and DS1 to DS15, in their first and second version."""


def num_cpus(size: str) -> int | None:
    """Virtual CPUs of one machine; None when its name does not say."""
    stepped = re.fullmatch(r"(?:standard|basic)_ds?(\d+)(?:_v2)?", size, re.IGNORECASE)
    if stepped is not None:
        return STEPS.get(int(stepped[1]))
    counted = re.fullmatch(r"(?:standard|basic)_[a-z]+(\d+)(?:-(\d+))?[a-z]*(?:_.*)?", size, re.IGNORECASE)
    return None if counted is None else int(counted[2] or counted[1])
