import os
import socket

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import proteus

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: tests fill all cores


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def vit(dim=24, depth=2, size=32, patch=8, **options):
    """A plain timm ViT, small enough for a step in milliseconds."""
    return VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        num_classes=0,
        **options,
    )


@pytest.fixture
def teacher():
    return proteus.Teacher(vit(36), image_size=32)


@pytest.fixture
def student():
    return proteus.Student(vit(24), image_size=32)


@pytest.fixture
def distiller(teacher, student):
    return proteus.Distiller(teacher, student)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32)
