"""What machines cost: the sizes of a region with their prices, and what so many nodes for so long come to.

Prices are asked of Azure (`list_sizes`), never shipped; where Azure gives none, only node-hours are told. The SDK
spells what it reads in two ways, depending on its version, and both are read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import AzureError
from .client import Azure, asking

TIERS = {"dedicated": "Standard", "low_priority": "LowPriority"}
"""Azure's words for ours."""
HOURS_PER_MONTH = 730


@dataclass(frozen=True)
class Size:
    """A size of virtual machine as a region offers it.

    Attributes:
        name: Such as `Standard_DS3_v2`.
        family: Whose quota it counts against, such as `standardDSv2Family`.
        cpus: Virtual CPUs.
        memory_gb: GiB.
        gpus: Graphics cards.
        has_low_priority: Whether it is to be had at low priority.
        prices: Per hour on Linux, by tier: `{"dedicated": 0.27}`.
        currency: Of the prices.
    """

    name: str
    family: str = ""
    cpus: int = 0
    memory_gb: float = 0.0
    gpus: int = 0
    has_low_priority: bool = False
    prices: tuple[tuple[str, float], ...] = ()
    currency: str = "USD"

    def price(self, tier: str) -> float | None:
        """Per node and hour; None when Azure says none."""
        return dict(self.prices).get(tier)


@dataclass(frozen=True)
class Cost:
    """What nodes come to.

    Attributes:
        nodes: How many at most.
        hours: For how long at most; None without a limit.
        size: Of each.
        tier: dedicated or low_priority.
        price: Per node and hour; None when it is not known.
        currency: Of the price.
    """

    nodes: int
    hours: float | None
    size: str
    tier: str
    price: float | None = None
    currency: str = "USD"

    @property
    def node_hours(self) -> float | None:
        """At most; None without a time limit."""
        return None if self.hours is None else self.nodes * self.hours

    @property
    def worst(self) -> float | None:
        """What they come to at most; None when price or time limit are not known."""
        return None if self.price is None or self.node_hours is None else self.price * self.node_hours

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "node_hours": self.node_hours, "worst": self.worst}

    def told(self) -> str:
        """`at most 2 nodes x 12 h = 24 node-hours of Standard_DS3_v2 (dedicated), at 0.27 USD: 6.48 USD`."""
        what = f"{self.size} ({self.tier.replace('_', ' ')})"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        each = "" if self.price is None else f" at {_money(self.price)} {self.currency} a node-hour"
        if self.hours is None:
            hour = "" if self.price is None else f": {_money(self.price * self.nodes)} {self.currency} an hour"
            return f"{nodes} of {what}, no time limit (timeout:){each}{hour}"
        text = f"at most {nodes} x {self.hours:g} h = {self.node_hours:,g} node-hours of {what}"
        if self.worst is None:
            return f"{text}; its price is not known here"
        return f"{text}{each}: {_money(self.worst)} {self.currency}"


def sizes(azure: Azure, location: str | None = None) -> list[Size]:
    """The sizes that a region offers for clusters.

    Args:
        azure: Signed in.
        location: Of the region; that of the workspace by default.

    Raises:
        AzureError: Azure does not say.
    """
    with asking(f"the sizes of {location or 'the region of the workspace'}"):
        return [read_size(one) for one in azure.ml.compute.list_sizes(location=location)]


def read_size(size: Any) -> Size:
    """A size of the SDK, whichever way it spells its fields: `v_cp_us` or `vCPUs`."""
    read = dict(vars(size))

    def one(*names: str) -> Any:
        return next((read[name] for name in names if read.get(name) is not None), None)

    listed = one("estimated_vm_prices", "estimatedVMPrices") or {}
    listed = listed if isinstance(listed, dict) else dict(vars(listed))
    values = listed.get("values") or []
    prices: dict[str, float] = {}
    for value in values if isinstance(values, list) else []:
        about = value if isinstance(value, dict) else dict(vars(value))
        system, tier = str(about.get("osType", about.get("os_type"))), str(about.get("vmTier", about.get("vm_tier")))
        price = about.get("retailPrice", about.get("retail_price"))
        ours = next((name for name, theirs in TIERS.items() if theirs.lower() == tier.lower()), None)
        if ours is not None and price is not None and system.lower() == "linux":
            prices[ours] = float(price)
    return Size(
        name=str(one("name") or ""),
        family=str(one("family") or ""),
        cpus=int(one("v_cp_us", "vCPUs") or 0),
        memory_gb=float(one("memory_gb", "memoryGB") or 0.0),
        gpus=int(one("gpus") or 0),
        has_low_priority=bool(one("low_priority_capable", "lowPriorityCapable")),
        prices=tuple(prices.items()),
        currency=str(listed.get("billingCurrency") or listed.get("billing_currency") or "USD"),
    )


def find(offered: list[Size], name: str) -> Size | None:
    """A size by its name, however it is capitalised."""
    return next((size for size in offered if size.name.lower() == name.lower()), None)


def cost(azure: Azure, *, nodes: int, hours: float | None, location: str | None = None) -> Cost:
    """What nodes of the configured size and tier come to; without a price where Azure gives none.

    Args:
        azure: Whose options say size, tier and region.
        nodes: How many at most.
        hours: For how long at most; None without a limit.
        location: Of the region; the configured one, or that of the workspace, by default.
    """
    options = azure.options
    try:
        found = find(sizes(azure, location or options.location), options.size)
    except AzureError:
        found = None
    price = None if found is None else found.price(options.tier)
    currency = "USD" if found is None else found.currency
    return Cost(nodes, hours, options.size, options.tier, price, currency)


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.3g}"
