"""Bytes of a teacher's features."""

import pytest

from proteus.target_size import target_bytes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "fp32"}, 4 * 5 * 8),
        ({"dtype": "fp16"}, 2 * 5 * 8),
        ({"dtype": "int8"}, 5 * 8 + 5 * 2),
        ({"dtype": "fp16", "tokens": "cls", "views": 3}, 3 * 2 * 8),
        ({"dtype": "fp16", "patch_dim": 4}, 2 * (8 + 4 * 4)),
    ],
)
def test_tokens_numbers_and_views(options, expected):
    assert target_bytes((2, 2), 8, **options) == expected


def test_a_model_without_patches_has_a_class_token():
    assert target_bytes((0, 0), 8, tokens="all") == target_bytes((0, 0), 8, tokens="cls") == 16


@pytest.mark.parametrize("options", [{"tokens": "x"}, {"dtype": "fp8"}, {"views": 0}])
def test_what_is_no_format_is_refused(options):
    with pytest.raises(ValueError, match="targets: "):
        target_bytes((2, 2), 8, **options)
