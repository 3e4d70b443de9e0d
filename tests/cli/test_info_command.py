import getpass
import importlib.metadata
import json
import os
import re

import pytest
import torch

from proteus.cli import main
from proteus.cli.system_facts import extras, system_facts
from proteus.version import __version__


def test_a_bug_report_has_versions_devices_and_extras(capsys):
    assert main(["info", "--system"]) == 0
    told = capsys.readouterr().out
    for line in (
        rf"proteus-distill +{re.escape(__version__)}$",
        rf"torch +{re.escape(importlib.metadata.version('torch'))}$",
        r"huggingface_hub +\d",
        r"python +3\.\d+\.\d+ \(CPython\)$",
        r"system +\w+-",
        rf"torch +{torch.get_num_threads()}$",
        r"eval +installed$",
    ):
        assert re.search(f"^  {line}", told, re.MULTILINE), line
    assert main(["info", "--system", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == system_facts()
    assert facts["devices"]["cpu"]
    assert set(facts["caches"]) == {"shards", "hub", "torch"}


def test_a_missing_package_is_named(monkeypatch, capsys):
    lines = [
        "torch>=2.6",
        'scipy>=1.11; extra == "eval"',
        'no-such-package>=2; extra == "eval"',
        "also-missing>=2,<3 ; python_version >= '3.10' and extra == 'log'",
        'pytest>=8; extra == "test"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    found = extras()
    scipy = importlib.metadata.version("scipy")
    assert found == {
        "eval": {"scipy": scipy, "no-such-package": None},
        "log": {"also-missing": None},
    }
    assert main(["info", "--system"]) == 0
    told = capsys.readouterr().out
    assert re.search("eval +missing no-such-package$", told, re.MULTILINE)


def test_a_copied_folder_has_no_extras_to_name(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", none)
    assert extras() == {}


def test_nothing_private_is_told(monkeypatch, tmp_path, capsys):
    home = tmp_path / "home" / "jane"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setenv("PROTEUS_CACHE", "/scratch/jdoe/shards")
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    for words in (["--system"], ["--system", "--json"]):
        assert main(["info", *words]) == 0
        told = capsys.readouterr().out
        assert "/scratch/USER/shards" in told
        assert "~/torch/hub" in told
        for private in ("jane", "jdoe", "hf_secret", str(home), os.uname().nodename):
            assert private not in told


def test_system_and_data_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as done:
        main(["info", "--system", "--data", "x"])
    assert done.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
