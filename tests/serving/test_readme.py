"""What README.md says to paste is scored by the model of the deployment's configuration, alike in both protocols."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from serving.model import ServedModel
from serving.tensors import read_inference
from stream.config import load
from tests.serving.served_world import new_model, published

ROOT = Path(__file__).parents[2]


def test_both_requests_of_the_readme_get_the_same_scores(tmp_path: Path) -> None:
    config = load(ROOT / "deploy" / "recd.yaml")
    model = ServedModel(published(new_model(1, config), tmp_path, config))
    text = (ROOT / "README.md").read_text()
    score, infer = (body.encode() for body in re.findall(r"curl [^']*(?:'[^'{]*')?[^']*'(\{.*?\})'", text, re.DOTALL))
    plain = model.score(score)
    [tensors] = model.score_all([model.recipe.tensors.request(read_inference(infer, json_size=None).tensors)]).scores
    assert plain.candidates == 2
    np.testing.assert_array_equal(np.array(list(plain.scores.values()), np.float32), tensors)  # type: ignore[arg-type]
    assert tensors[0, 0] != tensors[0, 1]  # type: ignore[index]
