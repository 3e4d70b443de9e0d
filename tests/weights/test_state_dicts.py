import argparse
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from proteus.weights import from_dinov2, read_state_dict

FOLDER = Path(__file__).parents[1] / "golden/02_dinov2_vit"


@pytest.fixture
def weights():
    return load_file(FOLDER / "mlp_reg0_weights.safetensors")


def test_a_pth_file_with_training_arguments_is_read(tmp_path, weights):
    content = {"model": weights, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    torch.save(content, tmp_path / "c.pth")
    read = read_state_dict(tmp_path / "c.pth")
    assert torch.equal(read["model"]["norm.bias"], weights["norm.bias"])
    torch.save(weights, tmp_path / "flat.pth")
    assert from_dinov2(tmp_path / "flat.pth", num_heads=3).embed_dim == 48


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.pth", "raw.pth"):
        with pytest.raises(ValueError, match=rf"{name} is not a readable weight file"):
            read_state_dict(name)
    assert not Path("exploded").exists()


def test_files_that_are_no_weights_are_refused_by_name(tmp_path, weights):
    save_file(weights, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("cut.safetensors", "page.safetensors", "page.pth", "empty.pth", "list.pth"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"no such file.*nowhere\.pth"):
        read_state_dict(tmp_path / "nowhere.pth")


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_damage_does_to_a_file_the_error_names_it(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    tensors = {"model": {"a": torch.ones(2, 2)}, "epoch": 3}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(5):
            data[rng.randrange(min(len(data), 700))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_state_dict(path)
        except ValueError as error:
            refused += 1
            assert "weights.pth" in str(error)
    assert refused > 50
