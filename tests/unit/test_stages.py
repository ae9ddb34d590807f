"""A decoder run a few layers at a time gives, to the bit, what it gives whole."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export import stages
from export.artifact import Source, export
from runtime.batch import Packer
from runtime.manifest import FORMS, Manifest
from tests.checkpoints import tiny_llama

LAYERS = 3


@pytest.mark.parametrize("precision", FORMS["ragged"])
def test_layer_by_layer_as_whole(tmp_path: Path, precision: str) -> None:
    export(Source(tiny_llama(tmp_path / "base", num_hidden_layers=LAYERS), None, precision), tmp_path / "tiny")
    path, manifest = tmp_path / "tiny" / "decoder.onnx", Manifest.read(tmp_path / "tiny")
    packer = Packer(exact=True, even=manifest.even_tokens, widest=8)
    steps = [packer.pack(rows)[0] for rows in ([(0, [1, 5, 9])], [(3, [7]), (0, [1, 4])], [(4, [2]), (2, [3])])]

    model = onnx.load(path, load_external_data=False)
    assert [len(list(stages._stages(model, LAYERS, limit))) for limit in (1, 2**30)] == [LAYERS, 1]
    alone, whole = (stages.run(path, manifest, steps, limit) for limit in (1, 2**30))
    assert alone.keys() == whole.keys() == {"logits", "hidden"}
    for name, values in whole.items():
        assert np.isfinite(values).all() and values.std() > 0
        np.testing.assert_array_equal(alone[name], values)
