"""What a recipe refuses before it trains."""

import pytest

from proteus.recipes.launch import build
from proteus.recipes.recipe import Models, Recipe, Science

t = pytest.importorskip("transformers")


def test_a_student_that_a_run_could_not_export_is_refused(tmp_path):
    config = t.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    t.Dinov2Model(config).save_pretrained(tmp_path)
    name = f"hf-transformers:{tmp_path}"
    models = Models(teacher=name, student=name)
    with pytest.raises(ValueError, match=r"could not leave.*student\.backbone\.save_pretrained"):
        build(Recipe(name="custom", science=Science(model=models)))
