"""An agent behind a managed online endpoint of Azure Machine Learning: made, proven, switched over, and deleted.

`deploy` registers the agent as a model, makes what is missing, starts the agent beside the one that answers (blue and
green), sends it the agent's own recording, and only then shifts the traffic. Whatever fails, what answered before goes
on answering, and what was made is deleted again. `delete` ends the endpoint and its bill.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..agents.agent import Agent
from ..errors import AzureError, PlatoError
from .client import Azure, NotThereError, ask, asking, connect
from .endpoint_plan import COLORS, ROUTES, SCRIPT, EndpointPlan, plan, score_file, write
from .options import AzureOptions
from .smoke import Scoring, Smoke, first_body, smoke

TAG = "platotk"
"""On everything that is made here; an endpoint without it is not touched."""
MANIFEST_TAG = "platotk-manifest"
POLL_S = 5.0
NUM_LOG_LINES = 200
MOST_LOG_LINES = 25
"""Of those: what an error shows."""
INIT_FAILED = "init function failed"
"""As Microsoft's inference server says it, before the traceback."""
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Deployed:
    """An agent that answers.

    Attributes:
        endpoint: Its endpoint.
        deployment: blue or green.
        url: Where observations are sent, with the endpoint's key.
        model: Name and version, `pump:3`.
        size: Of the machines.
        instances: How many.
        smoke: What the smoke test found.
        replaced: The deployment that answered before; None on a new endpoint.
        is_kept: Whether that one is still there, without traffic.
    """

    endpoint: str
    deployment: str
    url: str
    model: str
    size: str
    instances: int
    smoke: Smoke
    replaced: str | None = None
    is_kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "smoke": self.smoke.to_dict()}


def deploy(
    agent: Path | str,
    options: AzureOptions,
    *,
    endpoint: str | None = None,
    size: str | None = None,
    instances: int = 1,
    keep_old: bool = False,
    on_event: Tell | None = None,
) -> Deployed:
    """Make an agent answer behind an endpoint; it bills from then on until it is deleted.

    Args:
        agent: The folder, or the archive, that `plato export` wrote.
        options: The workspace.
        endpoint: Its name; default: made of the agent's.
        size: The kind of machine.
        instances: How many machines.
        keep_old: Keep what answered before, without traffic; it bills too.
        on_event: Called with `{"event": "deploying", "step": ..., "seconds": ...}`, again and again while Azure works.

    Raises:
        AgentError: The agent is not whole, or needs code of its project.
        ProjectError: A name or number that Azure does not take.
        AzureError: Azure refused, or the agent did not act there as it does here. What was made is deleted.
    """
    planned, loaded = plan(agent, options, endpoint=endpoint, size=size, instances=instances)
    work = _Deploying(connect(options), planned, loaded, on_event or (lambda event: None))
    try:
        return work.run(keep_old=keep_old)
    finally:
        work.azure.close()


def delete(endpoint: str, options: AzureOptions, *, on_event: Tell | None = None) -> bool:
    """Delete an endpoint with all its deployments; models and environments stay, which cost nothing to speak of.

    Returns:
        Whether it was there.

    Raises:
        AzureError: It was not made by platotk, or Azure refused.
    """
    azure = connect(options)
    try:
        if _find(azure, endpoint) is None:
            return False
        what = f"endpoint {endpoint}"
        _wait(lambda: azure.ml.online_endpoints.begin_delete(endpoint), what, on_event or (lambda event: None))
        return True
    finally:
        azure.close()


class _Deploying:
    """One deployment under way."""

    def __init__(self, azure: Azure, planned: EndpointPlan, agent: Agent, tell: Tell) -> None:
        self.azure, self.plan, self.agent, self.tell = azure, planned, agent, tell
        self.name = planned.endpoint

    def run(self, *, keep_old: bool) -> Deployed:
        ml, name = self.azure.ml, self.name
        there = _find(self.azure, name)
        before = {} if there is None else _traffic(there)
        old = max(before, key=lambda color: before[color], default=None)
        new = COLORS[1] if old == COLORS[0] else COLORS[0]
        if before.get(new):
            raise AzureError(
                f"both {old} and {new} of endpoint {name} have traffic.",
                hint=f"Give one all of it first: az ml online-endpoint update --name {name} --traffic {old}=100",
            )
        model, environment = self._model(), self._environment()
        with self._undoing(new, before, is_new=there is None):
            if there is None:
                self._wait(lambda: ml.online_endpoints.begin_create_or_update(self._endpoint()), f"endpoint {name}")
            self._start(new, model, environment)
            url, key = self._address()
            self.tell({"event": "deploying", "step": "smoke test", "seconds": 0.0})
            found = self._prove(Scoring(url, key, new))
            self._shift({new: 100})
            with contextlib.closing(Scoring(url, key)) as scoring:
                scoring.ask(first_body(self.agent))  # by the way that clients come
        is_kept = old is not None and (keep_old or not self._removed(old))
        return Deployed(
            endpoint=name,
            deployment=new,
            url=url,
            model=model.removeprefix("azureml:"),
            size=self.plan.size,
            instances=self.plan.instances,
            smoke=found,
            replaced=old,
            is_kept=is_kept,
        )

    def _model(self) -> str:
        """`azureml:pump:3`, registered unless this very agent is."""
        from azure.ai.ml.constants import AssetTypes
        from azure.ai.ml.entities import Model

        what, name = f"model {self.plan.model}", self.plan.model
        self.tell({"event": "deploying", "step": what, "seconds": 0.0})
        with contextlib.suppress(NotThereError), asking(what):
            for one in self.azure.ml.models.list(name):
                if (one.tags or {}).get(MANIFEST_TAG) == self.plan.manifest:
                    return f"azureml:{name}:{one.version}"
        tags = {TAG: "agent", MANIFEST_TAG: self.plan.manifest}
        with tempfile.TemporaryDirectory(prefix="plato-endpoint-") as draft, asking(what):
            folder = write(self.plan.agent_files, Path(draft)) / "agent"
            made = self.azure.ml.models.create_or_update(
                Model(name=name, path=str(folder), type=AssetTypes.CUSTOM_MODEL, tags=tags)
            )
        return f"azureml:{name}:{made.version}"

    def _environment(self) -> str:
        """`azureml:platotk-serve-...:1`, made unless it is there; its name says what is in it."""
        from azure.ai.ml.entities import BuildContext, Environment

        name = self.plan.environment
        what = f"environment {name}"
        self.tell({"event": "deploying", "step": what, "seconds": 0.0})
        try:
            ask(lambda: self.azure.ml.environments.get(name, version="1"), what)
        except NotThereError:
            with tempfile.TemporaryDirectory(prefix="plato-endpoint-") as draft, asking(what):
                context = BuildContext(path=str(write(self.plan.image, Path(draft))))
                made = Environment(name=name, version="1", build=context, inference_config=ROUTES, tags={TAG: "serve"})
                self.azure.ml.environments.create_or_update(made)
        return f"azureml:{name}:1"

    def _endpoint(self) -> Any:
        from azure.ai.ml.entities import ManagedOnlineEndpoint

        return ManagedOnlineEndpoint(name=self.name, auth_mode="key", tags={TAG: "endpoint"})

    def _start(self, color: str, model: str, environment: str) -> None:
        """Start the agent without traffic; what is left of an earlier attempt goes first."""
        from azure.ai.ml.entities import CodeConfiguration, ManagedOnlineDeployment, OnlineRequestSettings

        operations = self.azure.ml.online_deployments
        what = f"deployment {color} of {self.name}"
        with contextlib.suppress(NotThereError):
            ask(lambda: operations.get(color, self.name), what)
            self._wait(lambda: operations.begin_delete(color, self.name), f"left-over {color}")
        with tempfile.TemporaryDirectory(prefix="plato-endpoint-") as draft:
            wanted = ManagedOnlineDeployment(
                name=color,
                endpoint_name=self.name,
                model=model,
                environment=environment,
                code_configuration=CodeConfiguration(
                    code=str(write({SCRIPT: score_file()}, Path(draft))), scoring_script=SCRIPT
                ),
                instance_type=self.plan.size,
                instance_count=self.plan.instances,
                # One process answers one after the other, a thousand times faster than Azure's limit of one expects.
                request_settings=OnlineRequestSettings(
                    max_concurrent_requests_per_instance=64, request_timeout_ms=10_000
                ),
                environment_variables={"ORT_DISABLE_TELEMETRY": "1"},
                tags={TAG: "deployment", MANIFEST_TAG: self.plan.manifest},
            )
            try:
                made = self._wait(lambda: operations.begin_create_or_update(wanted), what)
            except AzureError as error:
                raise type(error)(error.message + self._log(color), hint=error.hint) from error
        # Some versions of the SDK give a word, some an enum, which str() names with its class.
        state = str(getattr(made, "provisioning_state", "") or "Succeeded").rpartition(".")[2]
        if state.lower() != "succeeded":
            raise AzureError(
                f"{what} ended as {state}.{self._log(color)}", hint="The studio shows more under Endpoints."
            )

    def _address(self) -> tuple[str, str]:
        """Of scoring, and its key."""
        operations = self.azure.ml.online_endpoints
        url = ask(lambda: operations.get(self.name), f"endpoint {self.name}").scoring_uri
        key = getattr(ask(lambda: operations.get_keys(self.name), f"the key of {self.name}"), "primary_key", None)
        if not url or not key:
            raise AzureError(f"endpoint {self.name} has no {'key' if url else 'address'}.", hint="Does it use keys?")
        return str(url), str(key)

    def _prove(self, scoring: Scoring) -> Smoke:
        with contextlib.closing(scoring):
            found = smoke(scoring, self.agent)
        if not found.is_equal:
            raise AzureError(
                f"the agent does not act there as it does here: of {found.num_rows} observations "
                f"{found.num_mismatches} chose differently, the largest error is {found.max_error:.2g} of the range.",
                hint="Nothing was switched over. Verify it here: plato verify AGENT",
            )
        return found

    def _shift(self, traffic: dict[str, int]) -> None:
        operations = self.azure.ml.online_endpoints
        endpoint = ask(lambda: operations.get(self.name), f"endpoint {self.name}")
        endpoint.traffic = traffic
        self._wait(lambda: operations.begin_create_or_update(endpoint), "traffic")

    def _removed(self, color: str) -> bool:
        """Whether what answered before is gone; the new one answers in any case."""
        try:
            self._delete_deployment(color)
        except AzureError as error:
            self.tell({"event": "left", "what": f"deployment {color} of {self.name}", "why": error.message})
            return False
        return True

    def _delete_deployment(self, color: str) -> None:
        with contextlib.suppress(NotThereError):
            operations = self.azure.ml.online_deployments
            self._wait(lambda: operations.begin_delete(color, self.name), f"deleting {color}")

    @contextlib.contextmanager
    def _undoing(self, new: str, before: dict[str, int], *, is_new: bool) -> Iterator[None]:
        """Bring back what answered before, and delete what was made, should anything within fail."""
        try:
            yield
        except BaseException as error:
            try:
                self.tell({"event": "deploying", "step": "going back", "seconds": 0.0})
                if is_new:
                    with contextlib.suppress(NotThereError):
                        self._wait(lambda: self.azure.ml.online_endpoints.begin_delete(self.name), "deleting")
                else:
                    if _shares(_traffic(_find(self.azure, self.name))) != _shares(before):
                        self._shift(_shares(before))
                    self._delete_deployment(new)
            except AzureError as other:
                left = f"endpoint {self.name}" if is_new else f"deployment {new} of {self.name}"
                self.tell({"event": "left", "what": left, "why": other.message})
                if isinstance(error, PlatoError):
                    raise AzureError(
                        f"{error.message}\nGoing back failed as well ({other.message}): {left} may be there, and bill.",
                        hint=f"plato deploy --to azure --delete --endpoint {self.name}",
                    ) from error
            raise

    def _log(self, color: str) -> str:
        """Why a deployment did not start, or what it printed last, to be put behind a message; else empty."""
        try:
            text = ask(
                lambda: self.azure.ml.online_deployments.get_logs(color, self.name, lines=NUM_LOG_LINES), "the log"
            )
        except AzureError:
            return ""
        lines = [line for line in str(text).splitlines() if line.strip()]
        if not lines:
            return ""
        failures = [at for at, line in enumerate(lines) if INIT_FAILED in line]
        begin = failures[-1] if failures else max(0, len(lines) - MOST_LOG_LINES)
        return "\n".join(["\nIts log says:", *lines[begin:][:MOST_LOG_LINES]])

    def _wait(self, begin: Callable[[], Any], what: str) -> Any:
        return _wait(begin, what, self.tell)


def _wait(begin: Callable[[], Any], what: str, tell: Tell) -> Any:
    """The outcome of something that Azure takes its time for."""
    began = time.monotonic()
    tell({"event": "deploying", "step": what, "seconds": 0.0})
    # Some pollers of the SDK print a dot on stdout each time they ask.
    with asking(what), contextlib.redirect_stdout(io.StringIO()):
        poller = begin()
        while not poller.done():
            poller.wait(POLL_S)
            tell({"event": "deploying", "step": what, "seconds": time.monotonic() - began})
        return poller.result()


def _find(azure: Azure, name: str) -> Any:
    """The endpoint, if it is there.

    Raises:
        AzureError: Somebody else's.
    """
    try:
        found = ask(lambda: azure.ml.online_endpoints.get(name), f"endpoint {name}")
    except NotThereError:
        return None
    if TAG not in (found.tags or {}):
        raise AzureError(
            f"endpoint {name} was not made by platotk.",
            hint="Take another name with --endpoint; this one is left alone.",
        )
    return found


def _traffic(endpoint: Any) -> dict[str, int]:
    """The deployments of an endpoint with their share; those without any at 0."""
    return {} if endpoint is None else {str(name): int(share) for name, share in (endpoint.traffic or {}).items()}


def _shares(traffic: dict[str, int]) -> dict[str, int]:
    """Only those that are asked."""
    return {name: share for name, share in traffic.items() if share}
