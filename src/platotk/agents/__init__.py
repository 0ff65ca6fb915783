"""Agents: what training produces and production runs. No Ray and no torch in here."""
