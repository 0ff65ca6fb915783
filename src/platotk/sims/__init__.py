"""Simulators: how a project's sim is loaded, checked, measured and kept alive while training."""

from __future__ import annotations

from .loading import SimSpec, sim_spec

__all__ = ["SimSpec", "sim_spec"]
