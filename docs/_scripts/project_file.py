"""Write docs/reference/project-file.md from the model of the project: every key, its default, what it means.

Given nothing but `platotk.project.Project`; gives back one Markdown page. `tests/test_docs.py` holds the two
together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "reference/project-file.md"
INTRO = """# The project file

<!-- Written by docs/_scripts/project_file.py. -->

`plato.yaml` says what to train and how. It is data only: no code, no templates, no environment variables.
`sim` alone is a whole project:

```yaml
sim: CartPole-v1
```

In Python, `platotk.Project(...)` takes the same keys, and `platotk.Project.load(path)` reads the file.

- **Numbers** are read as Python reads them: `3e-4`, `1e6`, `1_000`, `.5`; infinity is `.inf`.
- **Booleans** are `true` and `false` alone; `yes`, `no`, `on` and `off` are text.
- **Durations** are `90s`, `10m`, `1h30m`, `2d`, or a number of seconds.
- **Code** is `module:attribute`, looked up next to plato.yaml first; in Python also the object itself.
- **A mistake** is an error with file and line: an unknown key (with the nearest known one), a key set twice,
  a value that does not fit. Anchors and aliases work; merge keys (`<<`) and tags (`!!...`) do not.
- **For one run**, any key can be set by its dotted path, with a value as in the file:
  `plato train --set training.lr=1e-3 --set stop.time=10m`.
- **Passwords and keys** do not belong in it: every run folder keeps a copy, with defaults filled in and
  overrides applied.
"""
OUTRO = """## For editors

The JSON Schema of the file, for completion and checking while typing, comes from the installed platotk:

```bash
python -c "import json, platotk; print(json.dumps(platotk.Project.json_schema()))" > plato.schema.json
```

Editors with the YAML language server find it, without a network, by this first line of plato.yaml:

```yaml
# yaml-language-server: $schema=plato.schema.json
sim: CartPole-v1
```
"""
# A value worth seeing beside the explanation, where the default says little.
EXAMPLES = {
    "sim_config": """
sim: CartPole-v1
sim_config: {sutton_barto_reward: true}
""",
    "training": """
sim: CartPole-v1
training:
  lr: 3e-4
  gamma: 0.99
  train_batch_size_per_learner: 4096
""",
    "env_runners": """
sim: CartPole-v1
env_runners: {num_env_runners: auto}
""",
    "rl_module": """
sim: CartPole-v1
rl_module: {model_config: {fcnet_hiddens: [64, 64], fcnet_activation: tanh}}
""",
    "stop": """
sim: CartPole-v1
stop: {iterations: 200, env_steps: 500_000, return_mean: 475, time: 10m}
""",
    "frame_stack": """
sim: CartPole-v1
frame_stack: 4
""",
    "guard": """
sim: sim:Tank
guard: # see learn/guards.md
  clamp: {valve: {low: 0.02, high: 0.98}}
  slew: {valve: {per_step: 0.1}}
  forbid:
    - when: {level: {below: 0.2}, pump: 1}
      then: {pump: 0}
  on_missing: hold
  fallback: {valve: 0.5, pump: 0}
""",
    "backends": """
sim: CartPole-v1
backends:
  cluster: {type: ray, address: "http://127.0.0.1:8265"}
""",
}


KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "a section",
    "array": "a list",
}


def page() -> str:
    """The whole page: a table of all keys, then each with its explanation."""
    from platotk.project import Project

    schema = Project.json_schema()
    keys = schema["properties"]
    rows = ["| Key | Takes | Default |", "| --- | --- | --- |"]
    rows += [
        f"| [`{name}`](#{name}) | {_takes(about, schema)} | {_default(name, about)} |" for name, about in keys.items()
    ]
    parts = [INTRO, "## Keys", "", *rows, ""]
    for name, about in keys.items():
        parts += [f"### {name}", "", about.get("description") or _model(about, schema)["description"], ""]
        section = _section(about, schema)
        if section:
            parts += ["| Key | Takes | Default | |", "| --- | --- | --- | --- |"]
            for inner, details in section.items():
                cells = (
                    f"`{inner}`",
                    _takes(details, schema),
                    _default(inner, details),
                    details["description"],
                )
                parts.append(f"| {' | '.join(cells)} |")
            parts.append("")
        if name in EXAMPLES:
            parts += ["```yaml", EXAMPLES[name].strip(), "```", ""]
    return "\n".join([*parts, OUTRO])


def _model(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a section that platotk itself owns, or an empty one."""
    model: dict[str, Any] = schema.get("$defs", {}).get(about.get("$ref", "").rpartition("/")[2], {})
    return model


def _section(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The keys inside such a section."""
    keys: dict[str, Any] = _model(about, schema).get("properties", {})
    return keys


def _takes(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """The kind of value, in words."""
    if _section(about, schema):
        return "a section"
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    options = about.get("anyOf", [about])
    if any("pattern" in option for option in options):
        return "duration"
    words = [
        "`" + "`, `".join(option["enum"]) + "`" if "enum" in option else KINDS[option["type"]]
        for option in options
        if option.get("type") != "null"
    ]
    return " or ".join(words)


def _default(name: str, about: dict[str, Any]) -> str:
    if name == "sim":
        return "(required)"
    if name == "stop":
        return "`{iterations: 100}`"
    default = about.get("default")
    if default is None or isinstance(default, (dict, list)):
        return ""
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), "utf-8")
