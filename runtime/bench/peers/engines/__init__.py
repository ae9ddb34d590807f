"""What runs in the peers' own environments, one module an engine: it imports its engine and nothing of the project."""
