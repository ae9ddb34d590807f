"""pydoc-chat: a small chat model that answers what an object of Python's standard library does."""
