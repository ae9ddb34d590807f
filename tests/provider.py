"""The execution provider that the padded form's tests run on: `pytest --provider cuda` where there is a GPU."""

chosen = "cpu"
