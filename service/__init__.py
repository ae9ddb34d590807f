"""Serves an engine over HTTP."""
