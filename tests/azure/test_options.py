"""What plato.yaml may say about Azure Machine Learning, and what a wrong line is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from platotk import Project
from platotk.azure.options import AzureOptions
from platotk.azure.sizes import num_cpus
from platotk.errors import ProjectError

NEEDED: dict[str, Any] = {
    "type": "azure_ml",
    "subscription": "01234567-89ab-cdef-0123-456789abcdef",
    "resource_group": "rl",
    "workspace": "rl-ws",
}


def test_three_names_are_enough() -> None:
    options = AzureOptions(**NEEDED)
    assert (options.compute, options.nodes, options.min_nodes, options.max_nodes) == ("rl-cpu", 1, 0, 4)
    assert options.timeout_s is None
    assert AzureOptions(**NEEDED, timeout="1h30m").timeout_s == 5400


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"subscription": "my subscription"}, "az account show"),
        ({"resource_group": "rl."}, "not ending in a full stop"),
        ({"workspace": "ws"}, "3 to 33 letters"),
        ({"compute": "1cpu"}, "beginning with a letter"),
        ({"location": "West Europe"}, "az account list-locations"),
        ({"size": "big"}, "Standard_E8ds_v5"),
        ({"shm": "8 GB"}, "such as 8g"),
        ({"datastore": "my-store"}, "letters, digits and _"),
        ({"nodes": 5}, "nodes: 5 is more than max_nodes: 4"),
        ({"min_nodes": 5}, "min_nodes: 5 is more than max_nodes: 4"),
        ({"tier": "cheap"}, "'dedicated' or 'low_priority'"),
        ({"environment": {"docker": "x"}}, "unknown key 'docker'"),
        ({"environment": {"dockerfile": "D", "image": "i"}}, "leave image and conda_file out"),
    ],
)
def test_what_azure_would_refuse_is_refused_here(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        AzureOptions(**{**NEEDED, **wrong})
    assert said in str(caught.value)


def test_an_error_names_the_line(tmp_path: Path) -> None:
    lines = "".join(f"    {key}: {value}\n" for key, value in {**NEEDED, "workspace": "a b"}.items())
    (tmp_path / "plato.yaml").write_text(f"sim: CartPole-v1\nbackends:\n  azure:\n{lines}")
    with pytest.raises(ProjectError) as caught:
        Project.load(tmp_path)
    assert "plato.yaml:7" in str(caught.value)
    assert "'a b' is not a name that Azure takes" in str(caught.value)


def test_the_name_of_a_size_says_its_cpus() -> None:
    sizes = {"Standard_E8ds_v5": 8, "Standard_DS3_v2": 4, "Standard_F16s_v2": 16, "Standard_NC6s_v3": 6}
    sizes |= {"Standard_DS12_v2": 4, "Standard_E4-2ds_v4": 2, "Standard_D16as_v5": 16}
    assert {size: num_cpus(size) for size in sizes} == sizes
    assert num_cpus("Strange") is None
