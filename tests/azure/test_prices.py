"""What machines cost: both spellings of the SDK's sizes, node-hours, the worst case, and no price at all."""

from __future__ import annotations

from typing import Any

import pytest

from platotk import Project
from platotk.azure.prices import Cost, Size, find, read_size
from platotk.compute import jobs

WIRE: dict[str, Any] = {
    "name": "Standard_DS3_v2",
    "family": "standardDSv2Family",
    "vCPUs": 4,
    "gpus": 0,
    "osVhdSizeMB": 1047552,
    "maxResourceVolumeMB": 28672,
    "memoryGB": 14.0,
    "lowPriorityCapable": True,
    "premiumIO": True,
    "estimatedVMPrices": {
        "billingCurrency": "USD",
        "unitOfMeasure": "OneHour",
        "values": [
            {"retailPrice": 0.45, "osType": "Windows", "vmTier": "Standard"},
            {"retailPrice": 0.27, "osType": "Linux", "vmTier": "Standard"},
            {"retailPrice": 0.054, "osType": "Linux", "vmTier": "LowPriority"},
        ],
    },
    "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
}


def of_the_sdk(wire: dict[str, Any]) -> Any:
    """A size as `ml.compute.list_sizes()` gives it with the installed SDK."""
    from azure.ai.ml._restclient.arm_ml_service.models import VirtualMachineSize
    from azure.ai.ml.entities import VmSize

    return VmSize._from_rest_object(VirtualMachineSize(wire))


def of_an_older_sdk(wire: dict[str, Any]) -> Any:
    """The same with the spelling that its attributes are documented with."""
    from azure.ai.ml.entities import VmSize

    size = VmSize(
        name=wire["name"],
        family=wire["family"],
        v_cp_us=wire["vCPUs"],
        gpus=wire["gpus"],
        memory_gb=wire["memoryGB"],
        low_priority_capable=wire["lowPriorityCapable"],
    )
    prices = wire["estimatedVMPrices"]
    size.estimated_vm_prices = {  # type: ignore[attr-defined]
        "billing_currency": prices["billingCurrency"],
        "values": [
            {"retail_price": one["retailPrice"], "os_type": one["osType"], "vm_tier": one["vmTier"]}
            for one in prices["values"]
        ],
    }
    return size


@pytest.mark.parametrize("given", [of_the_sdk, of_an_older_sdk])
def test_a_size_is_read_in_both_spellings(given: Any) -> None:
    size = read_size(given(WIRE))
    assert size == Size(
        "Standard_DS3_v2", "standardDSv2Family", 4, 14.0, 0, True, (("dedicated", 0.27), ("low_priority", 0.054)), "USD"
    )
    assert (size.price("dedicated"), size.price("low_priority")) == (0.27, 0.054)


def test_a_size_without_prices_has_none() -> None:
    size = read_size(of_the_sdk({key: value for key, value in WIRE.items() if key != "estimatedVMPrices"}))
    assert size.price("dedicated") is None
    assert find([size], "STANDARD_DS3_V2") is size
    assert find([size], "Standard_D1") is None


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        (
            Cost(2, 12, "Standard_DS3_v2", "dedicated", 0.27),
            "at most 2 nodes x 12 h = 24 node-hours of Standard_DS3_v2 (dedicated) at 0.27 USD a node-hour: 6.48 USD",
        ),
        (
            Cost(1, 0.5, "Standard_D1", "low_priority"),
            "at most 1 node x 0.5 h = 0.5 node-hours of Standard_D1 (low priority); its price is not known here",
        ),
        (
            Cost(4, None, "Standard_DS3_v2", "dedicated", 0.27),
            "4 nodes of Standard_DS3_v2 (dedicated), no time limit (timeout:) at 0.27 USD a node-hour: "
            "1.08 USD an hour",
        ),
        (Cost(4, None, "Standard_D1", "dedicated"), "4 nodes of Standard_D1 (dedicated), no time limit (timeout:)"),
        (
            Cost(100, 730, "Standard_E8ds_v5", "dedicated", 0.6, "EUR"),
            "at most 100 nodes x 730 h = 73,000 node-hours of Standard_E8ds_v5 (dedicated) at 0.6 EUR a node-hour: "
            "43,800.00 EUR",
        ),
    ],
)
def test_the_worst_case_is_told(cost: Cost, told: str) -> None:
    assert cost.told() == told


def test_figures_for_programs() -> None:
    assert Cost(2, 12, "Standard_DS3_v2", "dedicated", 0.25).to_dict() == {
        "nodes": 2,
        "hours": 12,
        "size": "Standard_DS3_v2",
        "tier": "dedicated",
        "price": 0.25,
        "currency": "USD",
        "node_hours": 24,
        "worst": 6.0,
    }
    assert Cost(2, None, "Standard_DS3_v2", "dedicated", 0.25).worst is None


def test_a_dry_run_tells_node_hours_without_a_network() -> None:
    backend = {
        "type": "azure_ml",
        "subscription": "01234567-89ab-cdef-0123-456789abcdef",
        "resource_group": "rl",
        "workspace": "rl-ws",
        "timeout": "12h",
    }
    project = Project(sim="CartPole-v1", backends={"azure": backend, "cluster": {"type": "local"}})
    assert jobs.cost(project, on="azure", nodes=3, is_offline=True) == [
        "at most 3 nodes x 12 h = 36 node-hours of Standard_DS3_v2 (dedicated); its price is not known here"
    ]
    assert jobs.cost(project, on="cluster") == []
