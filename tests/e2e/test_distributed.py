"""Two real processes under torchrun, against one: the same losses, shared or sharded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_jobs import STEPS, Batches, build, run_job

import proteus
from proteus.training import World, fit

SCRIPT = Path(__file__).with_name("training_jobs.py")

OPTIONS = {"lr": 3e-3, "save_every": 4, "clip_grad": 1.0, "ema": 0.9, "warmup": 0.25}
ALONE = World(torch.device("cpu"))


def torchrun(folder, jobs, *more, check=True):
    """Run jobs in two processes; the finished process, and what each rank saw of each job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        command(folder, *more), env=environment(), capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr[-4000:]
    seen = {
        job["name"]: [json.loads(file.read_text()) for file in files]
        for job in jobs
        if len(files := sorted(folder.glob(f"{job['name']}.[01].json"))) == 2
    }
    return done, seen


def command(folder, *more):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*launcher, *more, str(SCRIPT), str(folder / "jobs.json")]


def environment():
    path = os.pathsep.join([str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def alone(out, **job):
    return run_job({"out": str(out), **job}, ALONE)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_losses(ours, theirs, rel=1e-6):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("total", "token", "feature", "patch"):
            assert mine[name] == pytest.approx(other[name], rel=rel), (mine["step"], name)
        assert mine["lr"] == other["lr"]


def weights_of(out, name="weights", step=STEPS):
    return load_file(out / f"checkpoint/step-{step:08d}/{name}.safetensors")


def assert_same_weights(ours, theirs, atol=2e-5):
    assert ours.keys() == theirs.keys()
    for name in ours:
        mine, other = ours[name], theirs[name]
        if name.endswith("qkv.bias"):
            # Adding a constant to all keys changes no attention: this gradient is zero but for
            # rounding, which AdamW turns into steps of full length in any direction.
            third = len(mine) // 3
            mine, other = (torch.cat([t[:third], t[2 * third :]]) for t in (mine, other))
        torch.testing.assert_close(
            mine, other, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run of one process that all others must equal."""
    out = tmp_path_factory.mktemp("reference")
    alone(out, options=OPTIONS)
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(40):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(folder / f"{n:02}.png")
    return folder


# FSDP2 of torch 2.6 asks a stream for what the CPU's does not have: there it wants a GPU.
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")
KINDS = ("ddp", "fsdp") if SHARDS_ON_CPU else ("ddp",)
SOME_FROZEN = {"frozen": ["patch_embed.*", "blocks.0.*"], "layer_decay": 0.7}
MASKS = {"strategy": "block", "ratio": [0.1, 0.5], "shuffle": True}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, files):
    """All that two processes can do without dying, in one launch: folder, and what was seen."""
    folder, jobs = tmp_path_factory.mktemp("two"), []

    def add(name, *, options, **job):
        job = {"name": name, "out": str(folder / name), "options": OPTIONS | options, **job}
        jobs.append(job)

    for kind in KINDS:
        add(f"{kind}-whole", options={"parallel": kind})
        named = {"student": "demo-student", "results": True}
        add(f"{kind}-named", options={"parallel": kind, "steps": 2}, **named)
        chosen = {"parallel": kind, "steps": 3, "activation_checkpointing": True}
        add(f"{kind}-layers", options=chosen, layers=[0, -1])
        add(f"{kind}-parts", options={"parallel": kind, "accumulate": 2}, masks=MASKS)
        stop_after(5, folder / f"{kind}-from-one")
        add(f"{kind}-from-one", options={"parallel": kind, "resume": True})
        # One of the two is told to stop; agreeing takes a second, so the steps are slow.
        trouble = {"trouble": "sigterm", "at": 2, "on": 1, "pause": 0.4}
        add(f"{kind}-stop", options={"parallel": kind}, trouble=trouble)
        # One is told in the middle of quick steps that are all saved.
        trouble = {"trouble": "sigterm", "at": 2, "on": 1}
        add(f"{kind}-stop-saving", options={"parallel": kind, "save_every": 1}, trouble=trouble)
        copy = str(folder / f"{kind}-stop")
        add(f"{kind}-go-on", options={"parallel": kind, "resume": True}, copy_of=copy)
        trouble = {"trouble": "nan", "at": 5, "on": 1}
        add(f"{kind}-nan", options={"parallel": kind}, trouble=trouble)
        add(f"{kind}-frozen", options={"parallel": kind, "steps": 4} | SOME_FROZEN)
        add(f"{kind}-seeds", options={"parallel": kind}, seeds=[0, 1])
    add("files", options={"steps": 6}, folder=str(files))
    _, seen = torchrun(folder, jobs)
    return folder, seen


def stop_after(steps, out, **options):
    """A run of one process that is told to stop."""
    trouble = {"trouble": "sigterm", "at": steps - 1}
    seen = alone(out, options=OPTIONS | options, trouble=trouble)
    assert seen["stopped"][0] == "RunStopped"
    assert f"after {steps} of {STEPS}" in seen["stopped"][1]


@pytest.mark.slow
def test_several_students_are_those_of_runs_of_their_own_and_stop_together(tmp_path):
    trouble = {"trouble": "sigterm", "at": 2, "on": 1, "pause": 0.4}
    jobs = [
        {"name": "one", "out": str(tmp_path / "one")},
        {"name": "all", "out": str(tmp_path / "all"), "several": True},
        {"name": "stop", "out": str(tmp_path / "stop"), "several": True, "trouble": trouble},
        {"name": "go-on", "out": str(tmp_path / "go-on"), "several": True,
         "copy_of": str(tmp_path / "stop"), "options": {"resume": True}},
    ]  # fmt: skip
    for job in jobs:
        job["options"] = OPTIONS | {"accumulate": 2} | job.get("options", {})
    _, seen = torchrun(tmp_path, jobs)
    first, second = (rank["stopped"] for rank in seen["stop"])
    assert first == second
    assert first[0] == "RunStopped"
    assert log_of(tmp_path / "all/a") == log_of(tmp_path / "one")
    done = {len(log_of(tmp_path / "stop" / name)) for name in "ab"}
    assert len(done) == 1
    assert 3 <= done.pop() < STEPS
    for name in "ab":
        assert log_of(tmp_path / "go-on" / name) == log_of(tmp_path / "all" / name)
    for file in ("weights", "ema", "optimizer"):
        whole = weights_of(tmp_path / "all/a", file)
        for other in (tmp_path / "one", tmp_path / "go-on/a"):
            ours = weights_of(other, file)
            assert all(torch.equal(ours[key], whole[key]) for key in whole)
    alone(tmp_path / "alone", options=OPTIONS | {"accumulate": 2}, several=True)
    for name in "ab":
        assert_same_losses(log_of(tmp_path / "all" / name), log_of(tmp_path / "alone" / name))


@pytest.mark.parametrize("kind", KINDS)
class TestTwoProcesses:
    def test_they_have_the_losses_and_weights_of_one(self, kind, shared, reference):
        folder, seen = shared
        for rank in seen[f"{kind}-whole"]:
            assert rank["stopped"] is None
            assert_same_losses(rank["rows"], log_of(reference))
        for name in ("weights", "ema"):
            ours, theirs = (weights_of(run, name) for run in (folder / f"{kind}-whole", reference))
            assert_same_weights(ours, theirs)

    def test_accumulation_of_shuffled_block_masks_too_is_the_big_batch(
        self, kind, shared, tmp_path
    ):
        folder, _ = shared
        alone(tmp_path, options=OPTIONS, masks=MASKS)
        assert_same_losses(log_of(folder / f"{kind}-parts"), log_of(tmp_path))
        assert_same_weights(weights_of(folder / f"{kind}-parts"), weights_of(tmp_path))

    def test_patches_of_chosen_layers_too(self, kind, shared, tmp_path):
        folder, _ = shared
        alone(tmp_path, options=OPTIONS | {"steps": 3}, layers=[0, -1])
        assert_same_losses(log_of(folder / f"{kind}-layers"), log_of(tmp_path))

    def test_they_go_on_with_what_one_process_saved(self, kind, shared, reference):
        folder, seen = shared
        assert seen[f"{kind}-from-one"][0]["stopped"] is None
        assert_same_losses(log_of(folder / f"{kind}-from-one"), log_of(reference))
        assert_same_weights(weights_of(folder / f"{kind}-from-one"), weights_of(reference))

    def test_both_stop_after_the_same_step_when_one_is_told_to(self, kind, shared):
        folder, seen = shared
        first, second = (rank["stopped"] for rank in seen[f"{kind}-stop"])
        assert first == second
        assert first[0] == "RunStopped"
        done = len(log_of(folder / f"{kind}-stop"))
        assert 3 <= done < STEPS
        assert f"after {done} of {STEPS} steps" in first[1]
        assert (folder / f"{kind}-stop/checkpoint/step-{done:08d}").is_dir()

    def test_they_agree_on_stopping_where_every_step_is_saved_too(self, kind, shared):
        folder, seen = shared
        first, second = (rank["stopped"] for rank in seen[f"{kind}-stop-saving"])
        assert first == second
        assert first[0] == "RunStopped"
        assert "after 3 of" in first[1]
        assert (folder / f"{kind}-stop-saving/checkpoint/step-00000003").is_dir()

    def test_what_was_stopped_ends_as_the_whole_run_bit_for_bit(self, kind, shared):
        folder, _ = shared
        whole, again = folder / f"{kind}-whole", folder / f"{kind}-go-on"
        assert log_of(again) == log_of(whole)
        for name in ("weights", "ema", "optimizer"):
            ours, theirs = weights_of(again, name), weights_of(whole, name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    def test_one_process_goes_on_with_what_two_saved(self, kind, shared, reference, tmp_path):
        folder, _ = shared
        shutil.copytree(folder / f"{kind}-stop", tmp_path / "run")
        alone(tmp_path / "run", options=OPTIONS | {"resume": True})
        assert_same_losses(log_of(tmp_path / "run"), log_of(reference))
        assert_same_weights(weights_of(tmp_path / "run"), weights_of(reference))

    def test_a_nan_on_one_stops_both_with_one_message_and_keeps_the_checkpoint(self, kind, shared):
        folder, seen = shared
        first, second = (rank["stopped"] for rank in seen[f"{kind}-nan"])
        assert first == second
        assert first[0] == "NonFiniteLossError"
        assert "at step 5" in first[1]
        assert "step-00000004" in first[1]
        kept = [path.name for path in (folder / f"{kind}-nan/checkpoint").iterdir()]
        assert kept == ["step-00000004"]
        weights = weights_of(folder / f"{kind}-nan", step=4)
        assert all(t.isfinite().all() for t in weights.values())
        assert [row["step"] for row in log_of(folder / f"{kind}-nan")] == [0, 1, 2, 3, 4]

    def test_models_that_began_differently_become_the_first_process_s(
        self, kind, shared, reference
    ):
        folder, _ = shared
        assert_same_losses(log_of(folder / f"{kind}-seeds"), log_of(reference))

    def test_what_either_skipped_is_listed(self, kind, shared):
        folder, _ = shared
        for run in (f"{kind}-whole", f"{kind}-stop", f"{kind}-from-one"):
            listed = (folder / run / "skipped.tsv").read_text()
            assert listed == "0.png\tno image\n1.png\tno image\n"

    def test_the_student_changes_and_the_teacher_does_not(self, kind, shared):
        _, seen = shared
        for rank in seen[f"{kind}-whole"]:
            assert all(rank["teacher_unchanged"].values())
            assert not any(rank["student_unchanged"].values())

    def test_nobody_waits_for_the_frozen_which_stay(self, kind, shared, tmp_path):
        folder, seen = shared
        assert seen[f"{kind}-frozen"][0]["stopped"] is None
        alone(tmp_path, options=OPTIONS | {"steps": 4} | SOME_FROZEN)
        assert_same_losses(log_of(folder / f"{kind}-frozen"), log_of(tmp_path))
        unchanged = seen[f"{kind}-frozen"][0]["student_unchanged"]
        for name, same in unchanged.items():
            assert same == name.startswith(("backbone.patch_embed.", "backbone.blocks.0.")), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_two_processes_export_are_whole_plain_weights(kind, shared):
    folder, _ = shared
    out = folder / f"{kind}-named"
    prefix = "student.backbone."
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights_of(out, step=2).items()
        if name.startswith(prefix)
    }
    for name, saved in (("export", backbone), ("export-ema", weights_of(out, "ema", step=2))):
        exported = proteus.load_pretrained(out / name).state_dict()
        assert exported.keys() == saved.keys()
        assert all(torch.equal(exported[key], saved[key]) for key in saved)
    assert (out / "pca.png").exists()
    assert (out / "curves.png").exists()


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch shards on a GPU only")
def test_fsdp_shards_student_and_teacher_and_ddp_neither(shared):
    _, seen = shared
    for rank in seen["fsdp-whole"]:
        assert rank["sharded_teacher_blocks"]
        assert all(rank["sharded_teacher_blocks"])
        assert all(rank["sharded_student"])
    for rank in seen["ddp-whole"]:
        assert not any(rank["sharded_teacher_blocks"])
        assert not any(rank["sharded_student"])


def test_image_files_are_shared_and_give_one_process_s_losses(shared, files, tmp_path):
    folder, seen = shared
    assert seen["files"][0]["stopped"] is None
    alone(tmp_path, options=OPTIONS | {"steps": 6}, folder=str(files))
    assert_same_losses(log_of(folder / "files"), log_of(tmp_path))


def test_fsdp_wants_processes(tmp_path):
    with pytest.raises(ValueError, match="needs a process group"):
        fit(build(), Batches(), steps=1, parallel="fsdp", device="cpu", progress=False)


def test_data_for_other_processes_are_refused():
    data = Batches(rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"world_size=2; expected rank=0, world_size=1"):
        fit(build(), data, steps=1, device="cpu", progress=False)


@pytest.mark.slow
def test_a_nan_ends_torchrun_with_an_error_and_the_message_of_every_process(tmp_path):
    trouble = {"trouble": "nan", "at": 5, "on": 1}
    job = {"name": "nan", "out": str(tmp_path / "run"), "options": OPTIONS, "trouble": trouble}
    done, _ = torchrun(tmp_path, [job | {"uncaught": True}], check=False)
    assert done.returncode == 1
    assert done.stderr.count("NonFiniteLossError: Training stopped: the token and") == 2
    assert [p.name for p in (tmp_path / "run/checkpoint").iterdir()] == ["step-00000004"]


@pytest.mark.slow
@pytest.mark.parametrize("asleep", [0.0, 600.0])
def test_a_process_that_fails_ends_all_and_all_say_its_reason(tmp_path, asleep):
    """At a collective the other fails at once; where it waits for something else, it is ended."""
    trouble = {"trouble": "raise", "at": 3, "on": 1, "asleep": asleep}
    job = {"name": "fail", "out": str(tmp_path / "run"), "options": OPTIONS, "trouble": trouble}
    began = time.monotonic()
    done, _ = torchrun(tmp_path, [job | {"uncaught": True}], check=False)
    assert done.returncode == 1
    assert time.monotonic() - began < 100  # of which the start takes most; it was 30 s and more
    assert "KeyError: 'only here'" in done.stderr
    assert "Process 1 failed first: KeyError: 'only here'" in done.stderr
    assert "Connection closed by peer" not in done.stderr


@pytest.mark.slow
def test_a_process_that_is_killed_is_said_to_be(tmp_path):
    trouble = {"trouble": "sigkill", "at": 3, "on": 1}
    job = {"name": "kill", "out": str(tmp_path / "run"), "options": OPTIONS, "trouble": trouble}
    done, _ = torchrun(tmp_path, [job | {"uncaught": True}], check=False)
    assert done.returncode == 1
    assert "Another process failed first, and gave no reason" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_torchrun_recovers_from_a_process_that_is_killed(kind, tmp_path, reference):
    job = {
        "name": "restart",
        "out": str(tmp_path / "run"),
        "options": OPTIONS | {"parallel": kind, "save_every": 2},
        "trouble": {"trouble": "sigkill", "at": 5, "on": 1},
    }
    done, seen = torchrun(tmp_path, [job], "--max-restarts=1")
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    assert [rank["stopped"] for rank in seen["restart"]] == [None, None]
    assert_same_losses(log_of(tmp_path / "run"), log_of(reference))
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(reference))


@pytest.mark.slow
def test_a_scheduler_s_sigterm_saves_and_the_run_goes_on(tmp_path):
    options = OPTIONS | {"steps": 400, "save_every": 400}
    job = {"name": "term", "options": options, "trouble": {"pause": 0.1}}
    whole = alone(tmp_path / "whole", options=options)
    out = tmp_path / "run"
    (tmp_path / "jobs.json").write_text(json.dumps([job | {"out": str(out)}]))
    with subprocess.Popen(
        command(tmp_path), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: (out / "log.jsonl").exists() and len(log_of(out)) > 5, process)
        process.send_signal(signal.SIGTERM)  # torchrun hands it on to both
        process.communicate(timeout=120)
    seen = [json.loads((tmp_path / f"term.{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0]["stopped"] == seen[1]["stopped"]
    done = len(log_of(out))
    assert 5 < done < 400
    assert (out / f"checkpoint/step-{done:08d}/state.json").exists()
    _, seen = torchrun(tmp_path, [
        {"name": "term", "options": options | {"resume": True}, "out": str(out)}
    ])  # fmt: skip
    assert_same_losses(log_of(out)[:20], whole["rows"][:20])
    assert [row["step"] for row in log_of(out)] == list(range(400))


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
