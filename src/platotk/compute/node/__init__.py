"""One Ray cluster out of N machines, each of which runs the same command line: `plato node -- COMMAND`.

`launcher.launch` reads from the environment which machine this is; `head` leads the cluster and runs the command,
`worker` joins it and leaves with it, and `channel` is how they talk.
"""
