"""Compiles checkpoints to artifacts."""
