"""Learning: from a project to a trained policy, with Ray RLlib. Knows nothing of where it runs."""
