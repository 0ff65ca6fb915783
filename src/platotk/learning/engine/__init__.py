"""The fast engine: PPO of RLlib with sampling and learning in columns; see docs/explain/engine.md.

`plan` says whether a config can be trained by it, and plugs it into the config through RLlib's own fields; nothing
here is imported by a run that does without.
"""
