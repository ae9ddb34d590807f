"""Measures an artifact on this machine: `python -m runtime.bench`."""
