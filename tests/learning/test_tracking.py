"""Tracking with a real MLflow store and TensorBoard files: what arrives, and what never stops training."""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platotk import MissingExtraError, Project
from platotk.journal import Journal
from platotk.learning.metrics import CURATED, chosen_metrics
from platotk.learning.mlflow_limits import ANY, AZURE, MetricNames, limits_of, params_of
from platotk.learning.mlflow_log import store_uri, without_secrets
from platotk.learning.tracking import Trackers
from platotk.run import Run, create_run


def line(iteration: int, **more: Any) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "env_steps": iteration * 400,
        "time_s": iteration * 0.5,
        "env_steps_per_s": 800.0,
        "episodes": iteration,
        "return_mean": float(iteration),
        "return_min": 0.0,
        "return_max": 2.0 * iteration,
        "episode_length_mean": 20.0,
        "sim_failures": 0,
        "attempt": 1,
        "rllib": {
            "hostname": "somewhere",
            "learners": {
                "__all_modules__": {"num_env_steps_trained": 7},
                "default_policy": {"entropy": 0.5, "policy_loss": None, "weights_seq_no": 3.0},
            },
        },
        **more,
    }


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """On a busy machine importing MLflow takes longer than the end of a training waits for it."""
    import mlflow.tracking  # noqa: F401


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def project_with(tmp_path: Path, tracking: str, **fields: str) -> Project:
    more = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (tmp_path / "plato.yaml").write_text(f"name: pump\nsim: CartPole-v1\ntracking: {tracking}\n{more}")
    return Project.load(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(project_with(tmp_path, "{}"))


def track(run: Run, *iterations: int, status: str = "finished", project: Project | None = None) -> list[str]:
    """Train for these iterations, as the training loop would; gives the warnings."""
    warned: list[str] = []
    trackers = Trackers(project or run.project, run, lambda event: warned.append(event["text"]))
    run.update(attempt=run.info["attempt"] + 1, algorithm="PPO")
    trackers.start()
    journal = Journal(run.metrics_path)
    for iteration in iterations:
        journal.append(line(iteration, attempt=run.info["attempt"]))
        trackers.log(line(iteration))
    trackers.finish(status)
    return warned


def client_of(run: Run) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=run.info["mlflow"]["uri"])


def steps(run: Run, name: str = "return_mean") -> list[int]:
    return [metric.step for metric in client_of(run).get_metric_history(run.info["mlflow"]["run_id"], name)]


# --- what is logged


def test_fewer_than_40_names_of_ours_and_only_numbers() -> None:
    rllib = {"learners": {"default_policy": {"entropy": 0.1, "policy_loss": "?", "total_loss": math.inf}}}
    chosen = chosen_metrics(line(1, return_mean=None, return_min=math.nan, rllib=rllib))
    assert len(CURATED) < 40
    assert set(chosen) <= CURATED
    assert chosen["learner/entropy"] == 0.1
    assert not {"return_mean", "return_min", "learner/policy_loss", "learner/total_loss"} & set(chosen)
    assert all(isinstance(value, float) for value in chosen.values())


def test_what_callbacks_and_own_losses_log_comes_after_and_rllibs_counters_stay_in_the_journal() -> None:
    runners = {
        "pump": {"energy": 3.0},
        "num_collisions": 2,
        "num_env_steps_sampled": 400,
        "episode_return_mean": 1.0,
        "env_step_timer": 0.1,
        "env_to_module_connector": {"timers": {"x": 1.0}},
        "agent_episode_return_mean": {"default_agent": 1.0},
    }
    rllib = {"env_runners": runners, "learners": {"default_policy": {"my_loss": 0.5, "entropy": 0.1}}}
    chosen = list(chosen_metrics(line(1, rllib=rllib)))
    assert chosen[-3:] == ["pump/energy", "num_collisions", "learner/my_loss"]
    assert set(chosen[:-3]) <= CURATED


def test_rllibs_own_evaluation_is_logged_too() -> None:
    evaluated = line(1, rllib={"evaluation": {"env_runners": {"episode_return_mean": 12.0}}})
    assert chosen_metrics(evaluated)["evaluation/return_mean"] == 12.0


def test_a_run_is_logged_with_metrics_params_tags_and_its_configuration(run: Run) -> None:
    assert track(run, 1, 2, 3) == []
    client, logged = client_of(run), client_of(run).get_run(run.info["mlflow"]["run_id"])
    assert (logged.info.run_name, logged.info.status) == (run.name, "FINISHED")
    assert client.get_experiment(logged.info.experiment_id).name == "pump"
    assert steps(run) == [1, 2, 3]
    assert logged.data.metrics["learner/entropy"] == 0.5
    assert logged.data.metrics["env_steps"] == 1200
    assert logged.data.params["stop.iterations"] == "100"
    assert logged.data.params["sim"] == "CartPole-v1"
    tags = logged.data.tags
    assert (tags["platotk.run"], tags["platotk.algorithm"], tags["platotk.seed"]) == (run.name, "PPO", "0")
    assert tags["platotk.path"] == str(run.path)
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"config.json", "plato.yaml"}


def test_the_store_lies_beside_the_runs_and_nothing_is_left_where_one_stands(run: Run) -> None:
    track(run, 1)
    assert run.info["mlflow"]["uri"] == (run.path.parents[1] / "mlruns").as_uri()
    assert (run.path.parents[1] / "mlruns").is_dir()
    assert list(Path.cwd().iterdir()) == []


# --- within what Azure ML takes: 200 parameters and 50 metric names a run


@pytest.fixture
def azure_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job of Azure ML as a training finds it, with a store on this machine; gives the job's MLflow run."""
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "theirs").as_uri()
    opened = str(MlflowClient(tracking_uri=uri).create_run("0").info.run_id)
    for name, value in [("MLFLOW_TRACKING_URI", uri), ("MLFLOW_RUN_ID", opened), ("AZUREML_RUN_ID", "night")]:
        monkeypatch.setenv(name, value)
    return opened


def crowded(iteration: int, names: int = 300) -> dict[str, Any]:
    """An iteration of a project whose callbacks log hundreds of metrics; before the 3rd no episode has ended."""
    runners = {f"valve_{n:03d}": float(iteration) for n in range(names)}
    learners = {"default_policy": {"entropy": 0.5, "policy_loss": 0.1, "vf_loss": 0.2}}
    cluster = {"nodes": 2, "cpus": 16, "cpu_percent": 31.0, "memory_percent": 12.0}
    ended = {} if iteration > 2 else {"return_mean": None, "return_min": None, "return_max": None}
    return line(iteration, rllib={"env_runners": runners, "learners": learners}, cluster=cluster, **ended)


def track_crowded(run: Run, *iterations: int) -> list[str]:
    warned: list[str] = []
    trackers = Trackers(run.project, run, lambda event: warned.append(event["text"]))
    trackers.start()
    journal = Journal(run.metrics_path)
    for iteration in iterations:
        journal.append(crowded(iteration))
        trackers.log(crowded(iteration))
    trackers.finish("finished")
    return warned


def test_hundreds_of_long_parameters_stay_within_the_limits(tmp_path: Path, azure_job: str) -> None:
    config = "{" + ", ".join(f"p{n:03d}: {'x' * 700}" for n in range(300)) + "}"
    run = create_run(project_with(tmp_path, "{}", sim_config=config, training="{lr: 1e-3}"))
    (warning,) = track(run, 1)
    assert " gets 150 of " in warning
    assert warning.endswith(" parameters; config.json there has them all.")
    params = client_of(run).get_run(azure_job).data.params
    assert len(params) == 150
    assert max(map(len, params.values())) == 500
    assert params["training.lr"] == "0.001"
    assert client_of(run).download_artifacts(azure_job, "config.json", str(tmp_path))
    assert "p299" in (tmp_path / "config.json").read_text()


def test_hundreds_of_metrics_stay_within_the_limits_and_those_that_count_come_first(run: Run, azure_job: str) -> None:
    (warning,) = track_crowded(run, 1, 2, 3, 4)
    assert " gets 50 metrics of a run; left out: valve_" in warning
    assert warning.endswith(" more. metrics.jsonl has them all.")
    logged = client_of(run).get_run(azure_job).data.metrics
    assert len(logged) <= 50
    # No episode had ended in the first two iterations: the return kept its place all the same.
    needed = {"return_mean", "env_steps", "learner/policy_loss", "learner/vf_loss", "cluster/cpu_percent"}
    assert needed <= set(logged)
    assert steps(run) == [3, 4]
    assert steps(run, "cluster/nodes") == [1, 2, 3, 4]


def test_a_resume_counts_the_names_that_are_there(run: Run, azure_job: str) -> None:
    track_crowded(run, 1, 2, 3)
    client = client_of(run)
    names = set(client.get_run(azure_job).data.metrics)
    client.log_metric(azure_job, "from_the_projects_own_code", 1.0)
    track_crowded(run, 4, 5)
    assert set(client.get_run(azure_job).data.metrics) == names | {"from_the_projects_own_code"}
    assert steps(run) == [3, 4, 5]


def test_names_that_are_there_leave_less_room_and_ours_still_come_first() -> None:
    names = MetricNames(50, [f"theirs_{n}" for n in range(45)])
    admitted = names.admit({**{f"own_{n}": 1.0 for n in range(9)}, "return_mean": 1.0, "env_steps": 2.0})
    assert admitted == {"return_mean": 1.0, "env_steps": 2.0}
    assert names.left_out() == [f"own_{n}" for n in range(9)]


def test_elsewhere_every_metric_of_a_project_is_logged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_RUN_ID", "night")  # a project that names its own store has that store's limits
    warned: list[str] = []
    trackers = Trackers(run.project, run, lambda event: warned.append(event["text"]))
    trackers.start()
    Journal(run.metrics_path).append(crowded(3, names=100))
    trackers.log(crowded(3, names=100))
    trackers.finish("finished")
    logged = client_of(run).get_run(run.info["mlflow"]["run_id"]).data.metrics
    assert warned == []
    assert {f"valve_{n:03d}" for n in range(100)} <= set(logged)


def test_which_stores_are_azures(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = "/mlflow/v1.0/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    assert limits_of(f"azureml://westeurope.api.azureml.ms{workspace}", is_from_environment=False) is AZURE
    assert limits_of("https://mlflow.example", is_from_environment=True) is ANY
    monkeypatch.setenv("AZUREML_RUN_ID", "night")
    assert limits_of("https://mlflow.example", is_from_environment=True) is AZURE
    assert limits_of("https://mlflow.example", is_from_environment=False) is ANY


def test_names_that_mlflow_refuses_are_mended() -> None:
    params, num_left_out = params_of({"sim_config": {"a b": 1, "größe (°C)": 2}, "seed": 7}, ANY)
    assert params == [("seed", "7"), ("sim_config.a b", "1"), ("sim_config.größe __C_", "2")]
    assert num_left_out == 0
    assert MetricNames(50).admit({"temperature (°C)": 1.0}) == {"temperature __C_": 1.0}


def test_quick_iterations_go_out_in_few_calls(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to Azure takes a third of a second; a training may have many iterations in that time."""
    from mlflow.tracking import MlflowClient

    calls: list[int] = []
    send = MlflowClient.log_batch

    def slow(self: Any, run_id: str, metrics: Any = (), **more: Any) -> Any:
        if metrics:
            calls.append(len(metrics))
            time.sleep(0.2)
        return send(self, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    track(run, *range(1, 101))
    assert steps(run) == list(range(1, 101))
    assert len(calls) < 20
    assert max(calls) <= ANY.metrics_a_call


@pytest.mark.parametrize(("status", "means"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")])
def test_how_it_ended_is_mlflows_status(run: Run, status: str, means: str) -> None:
    track(run, 1, status=status)
    assert client_of(run).get_run(run.info["mlflow"]["run_id"]).info.status == means


def test_false_logs_nothing_and_does_not_even_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from platotk import Project; from platotk.run import create_run\n"
        "from platotk.learning.tracking import Trackers\n"
        "project = Project(sim='CartPole-v1', tracking={'mlflow': False})\n"
        "trackers = Trackers(project, create_run(project, runs_dir=sys.argv[1]))\n"
        "trackers.start(); trackers.log({'iteration': 1, 'env_steps': 1}); trackers.finish('finished')\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.rglob("mlruns"))


# --- where


def test_the_environment_names_the_store_unless_the_project_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "theirs").as_uri())
    track(run, 1)
    assert run.info["mlflow"]["uri"] == (tmp_path / "theirs").as_uri()
    assert not (run.path.parents[1] / "mlruns").exists()
    project = project_with(tmp_path, "{mlflow: ./ours}")
    assert store_uri(project, run) == ((tmp_path / "ours").as_uri(), False)
    assert store_uri(project_with(tmp_path, "{mlflow: 'http://127.0.0.1:5000'}"), run)[0].startswith("http")


def test_the_run_that_a_job_opened_is_used_and_left_open(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure ML opens an MLflow run for each job and closes it itself."""
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "theirs").as_uri()
    opened = MlflowClient(tracking_uri=uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    track(run, 1, 2)
    assert run.info["mlflow"] == {"uri": uri, "run_id": opened}
    assert steps(run) == [1, 2]
    assert client_of(run).get_run(opened).info.status == "RUNNING"


def test_a_password_in_the_uri_is_written_nowhere() -> None:
    assert without_secrets("https://me:secret@mlflow.example:5000/x") == "https://mlflow.example:5000/x"
    assert without_secrets("file:///a@b/mlruns") == "file:///a@b/mlruns"


# --- going on


def test_a_resume_continues_the_same_mlflow_run_after_its_last_iteration(run: Run) -> None:
    track(run, 1, 2, 3, 4, status="stopped")
    first = run.info["mlflow"]
    Journal(run.metrics_path).discard_after(2)
    track(run, 3, 4, 5)
    assert run.info["mlflow"] == first
    assert steps(run) == [1, 2, 3, 4, 5]
    logged = client_of(run).get_run(first["run_id"])
    assert (logged.info.status, logged.data.tags["platotk.attempt"]) == ("FINISHED", "2")


def test_a_resume_fills_in_what_never_arrived(run: Run) -> None:
    track(run, 1)
    journal = Journal(run.metrics_path)
    for iteration in (2, 3):
        journal.append(line(iteration))  # killed before these went out
    track(run, 4)
    assert steps(run) == [1, 2, 3, 4]


def test_an_mlflow_run_that_was_deleted_is_made_anew(run: Run) -> None:
    track(run, 1)
    client_of(run).delete_run(run.info["mlflow"]["run_id"])
    track(run, 2)
    assert steps(run) == [1, 2]


def test_killed_in_the_middle_no_step_is_there_twice(run: Run) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from test_tracking import line; from platotk.run import Run; from platotk.journal import Journal\n"
        "from platotk.learning.tracking import Trackers\n"
        "run = Run(sys.argv[1]); trackers = Trackers(run.project, run); trackers.start()\n"
        "journal = Journal(run.metrics_path)\n"
        "for n in range(1, 100000):\n"
        "    journal.append(line(n)); trackers.log(line(n)); time.sleep(0.005)\n"
        "    print(n, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        until = time.monotonic() + 60
        metric = "mlruns/*/*/metrics/env_steps"
        while not list(run.path.parents[1].glob(metric)) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
    written = [found["iteration"] for found in run.metrics()]
    track(run, written[-1] + 1)
    assert steps(run, "env_steps") == [*written, written[-1] + 1]


# --- never in the way


@pytest.fixture
def dead_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_no_server_is_one_warning_and_no_error(
    run: Run, dead_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (warning,) = track(run, *range(1, 20), project=project_with(tmp_path, f"{{mlflow: '{dead_address}'}}"))
    assert warning.startswith(f"MLflow at {dead_address} cannot be written: ")
    assert warning.endswith("Training goes on; metrics.jsonl has it all.")
    assert len(run.metrics()) == 19


def test_a_server_that_does_not_answer_never_makes_training_wait(
    run: Run, silent_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platotk.learning.mlflow_log.FLUSH_S", 1.0)
    project = project_with(tmp_path, f"{{mlflow: '{silent_address}'}}")
    warned: list[str] = []
    trackers = Trackers(project, run, lambda event: warned.append(event["text"]))
    trackers.start()
    began = time.monotonic()
    for iteration in range(1, 5000):
        trackers.log(line(iteration))
    assert time.monotonic() - began < 5.0
    trackers.finish("finished")
    assert time.monotonic() - began < 10.0
    assert warned == [
        f"MLflow at {silent_address} did not take everything within 1 s. Training goes on; metrics.jsonl has it all."
    ]


def test_a_store_that_comes_back_gets_what_it_missed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platotk.learning.mlflow_log.RETRY_S", 0.0)
    mount = tmp_path / "mount"
    mount.write_text("where the folder should be")
    project = project_with(tmp_path, "{mlflow: ./mount/mlruns}")
    warned: list[str] = []
    trackers = Trackers(project, run, lambda event: warned.append(event["text"]))
    trackers.start()
    journal = Journal(run.metrics_path)
    for iteration in (1, 2, 3):
        journal.append(line(iteration))
        trackers.log(line(iteration))
        until = time.monotonic() + 60
        while iteration == 1 and not warned and time.monotonic() < until:
            time.sleep(0.05)
            trackers._warn(trackers._mlflow.warnings() if trackers._mlflow else [])
        if mount.is_file():
            mount.unlink()
    trackers.finish("finished")
    assert len(warned) == 1
    assert steps(run) == [1, 2, 3]


def test_a_training_that_never_began_is_closed_without_a_word(run: Run) -> None:
    trackers = Trackers(run.project, run)
    trackers.finish("failed")
    trackers.start()
    trackers.finish("failed")
    assert "mlflow" not in run.info


def test_warnings_go_to_logging_when_nobody_listens(
    run: Run,
    dead_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trackers = Trackers(project_with(tmp_path, f"{{mlflow: '{dead_address}'}}"), run)
    trackers.start()
    trackers.log(line(1))
    trackers.finish("finished")
    assert f"MLflow at {dead_address}" in caplog.text


# --- TensorBoard


def scalars(path: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a TensorBoard file: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, data = [], path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
        data = data[16 + size :]
    return found


def test_tensorboard_files_are_written_when_asked_for(tmp_path: Path) -> None:
    run = create_run(project_with(tmp_path, "{mlflow: false, tensorboard: true}"))
    track(run, 1, 2)
    (file,) = (run.path / "tensorboard").iterdir()
    assert scalars(file, "return_mean") == [(400, 1.0), (800, 2.0)]
    assert scalars(file, "learner/entropy") == [(400, 0.5), (800, 0.5)]


def test_tensorboard_drops_what_a_resume_went_back_behind(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    run = create_run(project_with(tmp_path, "{mlflow: false, tensorboard: true}"))
    track(run, 1, 2, 3)
    Journal(run.metrics_path).discard_after(1)
    track(run, 2, 3)
    first, second = sorted((run.path / "tensorboard").iterdir(), key=lambda file: file.suffix)
    assert scalars(first, "return_mean") == [(400, 1.0), (800, 2.0), (1200, 3.0)]
    assert scalars(second, "return_mean") == [(800, 2.0), (1200, 3.0)]
    data, starts = second.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        starts += [event.step] if event.HasField("session_log") else []
        data = data[16 + size :]
    assert starts == [401]


def test_without_tensorboardx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    run = create_run(project_with(tmp_path, "{mlflow: false, tensorboard: true}"))
    with pytest.raises(MissingExtraError, match="tensorboardX is not installed"):
        Trackers(run.project, run).start()
