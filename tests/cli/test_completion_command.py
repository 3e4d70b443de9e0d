import shutil
import subprocess
import sys

import pytest

from proteus.cli import main

pytest.importorskip("shtab")

# What bash itself does when TAB is pressed behind the last word.
ASK = """
set -u
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
definition=$(complete -p proteus)
function=${definition##*-F }
"${function% *}" proteus "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def complete(tmp_path, capsys):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "proteus.bash").write_text(script("bash", capsys))

    def ask(*words, at=tmp_path):
        done = subprocess.run(
            [bash, "--norc", "-c", ASK, "ask", tmp_path / "proteus.bash", *words],
            capture_output=True, text=True, check=True, cwd=at,
        )  # fmt: skip
        return set(done.stdout.split())

    return ask


def test_bash_completes_commands_options_and_choices(complete, tmp_path):
    assert complete("proteus", "di") == {"distill"}
    assert {"demo", "distill", "info", "plan", "completion"} <= complete("proteus", "")
    assert complete("proteus", "distill", "--teacher-ch") == {"--teacher-checkpoint"}
    assert {"--student", "--student-layers"} <= complete("proteus", "distill", "--student")
    assert complete("proteus", "recipes", "--preset", "off") == {"official"}
    assert complete("proteus", "export", "runs/first", "--to", "") == {
        "transformers", "onnx", "torch",
    }  # fmt: skip
    (tmp_path / "photographs").mkdir()
    assert complete("proteus", "distill", "--data", "photo") == {"photographs"}
    assert complete("proteus", "completion", "") >= {"bash", "zsh", "fish"}


@pytest.mark.parametrize(
    ("shell", "parts"),
    [
        ("zsh", ["#compdef proteus", '"--teacher-checkpoint[', "distill:'"]),
        ("fish", ["complete -c proteus", "-l teacher-checkpoint", "-a distill"]),
    ],
)
def test_scripts_of_other_shells_hold_commands_and_options(shell, parts, capsys):
    found = script(shell, capsys)
    assert [part for part in parts if part not in found] == []
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=found, text=True, check=True)


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "Run: pip install shtab" in capsys.readouterr().err


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as done:
        main(["completion", "zhs"])
    assert done.value.code == 2
    assert "Did you mean zsh" in capsys.readouterr().err
