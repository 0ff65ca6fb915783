"""An agent on Ray Serve: scales over a Ray cluster; `plato serve` is faster on one machine."""

import os

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from platotk import Agent, PlatoError
from platotk.spaces import from_json, to_json


@serve.deployment(num_replicas=int(os.environ.get("REPLICAS", "1")), ray_actor_options={"num_cpus": 0.5})
class Acting:
    def __init__(self, path: str) -> None:
        self.agent = Agent.load(path)
        if self.agent.has_memory:
            raise ValueError("An agent with memory needs one replica and a session for each client.")

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            obs = from_json(self.agent.observation_space, (await request.json())["observation"])
            return JSONResponse({"action": to_json(self.agent.action_space, self.agent.act(obs))})
        except (PlatoError, KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, status_code=422)


app = Acting.bind(os.path.abspath(os.environ["AGENT"]))
