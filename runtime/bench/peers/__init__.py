"""Gorgon beside its peers on the same machine: `python -m runtime.bench peers`."""
