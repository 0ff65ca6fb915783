"""What plato.yaml says about Azure Machine Learning: `backends: {azure: {type: azure_ml, ...}}`.

One model for the cluster that is made, the jobs that run on it and the endpoints that serve. Names are held to Azure's
own rules before anything is sent. Loads no SDK.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..compute.base import BaseOptions
from ..project_fields import Count, Free, Natural, Seconds, Words

ENVIRONMENT_KEYS = ("name", "version", "image", "conda_file", "dockerfile", "variables")
"""What `environment:` may hold."""


def named(pattern: str, rule: str) -> Any:
    """A check of a name against the rule that Azure has for it."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"{value!r} is not a name that Azure takes: {rule}")
        return value

    return AfterValidator(check)


_HEX = "[0-9a-fA-F]"
Subscription = Annotated[
    Words,
    named(
        f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
        "a subscription is 32 hexadecimal digits such as 01234567-89ab-cdef-0123-456789abcdef (az account show)",
    ),
]
ResourceGroup = Annotated[
    Words,
    named(r"[\w.()-]{0,89}[\w()-]", "1 to 90 letters, digits and _ - . ( ), not ending in a full stop"),
]
Workspace = Annotated[
    Words,
    named(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,32}", "3 to 33 letters, digits, - and _, beginning with a letter or digit"),
]
Cluster = Annotated[
    Words,
    named(
        r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]",
        "3 to 32 letters, digits and hyphens, beginning with a letter, not ending in a hyphen",
    ),
]
Datastore = Annotated[Words, named(r"[a-zA-Z0-9_]{1,255}", "1 to 255 letters, digits and _")]
Experiment = Annotated[
    Words, named(r"[a-zA-Z0-9][\w-]{0,254}", "up to 255 letters, digits, - and _, beginning with a letter or digit")
]
Location = Annotated[
    Words, named(r"[a-z0-9]{3,40}", "a region as az account list-locations names it, such as westeurope")
]
Size = Annotated[Words, named(r"[A-Za-z]+_\w+", "a size of virtual machine such as Standard_E8ds_v5")]
Memory = Annotated[Words, named(r"auto|[1-9]\d*[bkmg]", "auto, or a number and one of b k m g, such as 8g")]


class AzureOptions(BaseOptions):
    """A cluster of an Azure Machine Learning workspace."""

    subscription: Subscription
    """The id of the subscription that pays (az account show --query id)."""
    resource_group: ResourceGroup
    """The resource group of the workspace."""
    workspace: Workspace
    """The workspace."""
    location: Location | None = None
    """The region where new things are made, such as westeurope; that of the resource group by default."""
    compute: Cluster = "rl-cpu"
    """The compute cluster that jobs run on."""
    size: Size = "Standard_DS3_v2"
    """The kind of machine of a new cluster."""
    min_nodes: Natural = 0
    """Machines that are kept when nothing runs; they are billed."""
    max_nodes: Count = 4
    """The most machines of the cluster."""
    idle_s: Seconds = 120.0
    """How long an idle machine is kept."""
    tier: Literal["dedicated", "low_priority"] = "dedicated"
    """low_priority machines cost a fraction and may be taken away at any moment; training then goes on by itself."""
    nodes: Count = 1
    """How many machines a job takes."""
    environment: Free = Field(default_factory=dict)
    """Of jobs: name, version, and one of image, conda_file, dockerfile; variables. By default one is built."""
    requirements: tuple[Words, ...] = ()
    """Packages that the project needs beside platotk, as pip takes them."""
    timeout: Seconds | None = None
    """How long a job may run: 90m, 12h; no limit by default."""
    distribution: Literal["pytorch", "mpi", "ray"] = "pytorch"
    """How Azure starts the command on each machine; mpi needs MPI in the image, ray is a preview of Azure's."""
    datastore: Datastore = "workspaceblobstore"
    """Where runs go through, under platotk/runs."""
    shm: Memory = "auto"
    """Shared memory of each machine's container, such as 16g; auto is 8g, which is a limit."""
    experiment: Experiment | None = None
    """The experiment that jobs stand under in the studio; the project's name by default."""
    sync: Seconds = 10.0
    """How often a job copies what it has written to the datastore."""
    grace: Seconds = 60.0
    """How long a stopped job may take to save itself."""

    @property
    def timeout_s(self) -> float | None:
        """`timeout` in seconds."""
        return self.timeout

    @property
    def is_low_priority(self) -> bool:
        """Whether machines may be taken away."""
        return self.tier == "low_priority"

    @field_validator("environment")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in ENVIRONMENT_KEYS:
                raise ValueError(f"unknown key {key!r}. There are: {', '.join(ENVIRONMENT_KEYS)}")
        kinds = [key for key in ("image", "conda_file", "dockerfile") if key in value]
        if "dockerfile" in value and len(kinds) > 1:
            raise ValueError("a dockerfile says all; leave image and conda_file out")
        if "conda_file" not in value and "version" in value and "name" not in value:
            raise ValueError("a version is that of a named environment: give its name too")
        return value

    @model_validator(mode="after")
    def _nodes_fit(self) -> AzureOptions:
        if self.nodes > self.max_nodes:
            raise ValueError(f"nodes: {self.nodes} is more than max_nodes: {self.max_nodes}")
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes: {self.min_nodes} is more than max_nodes: {self.max_nodes}")
        return self
