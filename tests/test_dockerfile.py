"""No engine builds it here; what can be read of it is held against the repository."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import proteus

ROOT = Path(proteus.__file__).parents[1]
LINES = [
    line.split(" ", 1)
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    if line and not line.startswith("#")
]
PROJECT = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]


def of(instruction):
    return [rest for word, rest in LINES if word == instruction]


def test_everything_that_is_copied_is_there_and_reaches_the_builder():
    sources = [
        source
        for rest in of("COPY")
        if not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    assert "proteus" in sources
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines()
             if line and not line.startswith("#")]  # fmt: skip
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"
    assert sorted(kept) == sorted(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    # What the package needs to be built, and its data files, which no later rule leaves out.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(sources)
    left_out = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    for file in ("py.typed", "demo/teacher/model.safetensors", "demo/images/test.tar"):
        assert (ROOT / "proteus" / file).exists()
        assert not any(fnmatch(part, rule) for part in Path(file).parts for rule in left_out)


def test_versions_are_those_of_the_project():
    asked = {line for rest in of("RUN") for line in re.findall(r'"(torch\w*>=[^"]+)"', rest)}
    assert asked == {line for line in PROJECT["dependencies"] if line.startswith("torch")}
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    bases = {re.match(r"python:(\d+)\.(\d+)-slim", rest).groups() for rest in of("FROM")}
    assert len(bases) == 1  # a virtual environment moves to the same Python only
    assert tuple(map(int, bases.pop())) >= least


def test_it_runs_the_command_and_not_as_root():
    (entry,), (user,) = of("ENTRYPOINT"), of("USER")
    assert json.loads(entry) == ["proteus"]
    assert "proteus" in PROJECT["scripts"]
    assert user != "root"
    words = [word for word, _ in LINES]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert any(f"useradd --create-home --uid 1000 {user}" in rest for rest in of("RUN"))
    (path,) = [rest for rest in of("ENV") if "PATH=" in rest]
    assert f"PATH={of('COPY')[-1].split()[-1]}/bin:" in path
