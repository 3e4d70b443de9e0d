"""The log: one row a step, read from the device about once a second, exact after a resume."""

import itertools
import json
import math
import signal

import pytest
import torch

from proteus.features import IMAGENET
from proteus.models.read import ImageInput
from proteus.training import NonFiniteLossError, World
from proteus.training import log as log_module
from proteus.training.log import RunLog
from proteus.training.rows import NOTES, covered, go_back, read_rows

CPU = World(torch.device("cpu"))
NAMES = ["total", "token", "grad_norm"]


class Clock:
    """A clock that tests move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(log_module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def open_log(folder, start=0, total=1000, **options):
    return RunLog(folder, start, total, CPU, progress=False, **options)


def add(log, *values, rate=0.1, images=4, **options):
    log.add(NAMES, torch.tensor(values), rate, images, **options)


def test_a_row_holds_the_numbers_of_the_step_bit_for_bit(tmp_path):
    with open_log(tmp_path) as log:
        add(log, 0.1, 1 / 3, 2.5)
    (row,) = read_rows(tmp_path / "log.jsonl")
    assert list(row) == ["step", "total", "token", "lr", "grad_norm"]
    numbers = torch.tensor([row["total"], row["token"], row["grad_norm"]])
    assert torch.equal(numbers, torch.tensor([0.1, 1 / 3, 2.5]))
    assert row["lr"] == 0.1


def test_without_a_folder_rows_are_kept_in_memory():
    with open_log(None) as log:
        add(log, 1.0, 1.0, 1.0)
        add(log, 2.0, 1.0, 1.0)
        log.flush()
        assert [row["total"] for row in log.rows()] == [1.0, 2.0]


class TestFlush:
    def flushes(self, log, clock, steps, seconds):
        """After which steps rows were written."""
        written, after = len(log.rows()), []
        for step in range(steps):
            clock.now += seconds
            add(log, 1.0, 1.0, 1.0)
            if len(log.rows()) != written:
                written = len(log.rows())
                after.append(step)
        return after

    def test_slow_steps_are_written_one_by_one(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            assert self.flushes(log, clock, 5, seconds=3.0) == [0, 1, 2, 3, 4]

    def test_fast_steps_are_written_about_once_a_second(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            after = self.flushes(log, clock, 60, seconds=0.1)
        gaps = [b - a for a, b in itertools.pairwise(after)]
        assert set(gaps) <= {9, 10}

    def test_very_fast_steps_at_least_every_two_hundred(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            after = self.flushes(log, clock, 1000, seconds=1e-5)
        assert after == [0, 200, 400, 600, 800]

    def test_what_is_pending_at_a_save_is_written_and_in_order(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            self.flushes(log, clock, 50, seconds=1e-5)
            log.flush(durable=True)
            assert [row["step"] for row in log.rows()] == list(range(50))

    def test_a_stop_is_noted_at_once_by_one_process(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            self.flushes(log, clock, 5, seconds=1e-5)
            assert log.stop_agreed is None
            log.asked = lambda: signal.SIGTERM
            add(log, 1.0, 1.0, 1.0)
            assert log.stop_agreed is signal.SIGTERM
            assert len(log.rows()) == 6

    def test_a_stop_is_agreed_on_wherever_rows_are_written(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            self.flushes(log, clock, 5, seconds=1e-5)
            log.asked = lambda: signal.SIGINT
            log.flush(durable=True)  # as before a checkpoint
            assert log.stop_agreed is signal.SIGINT


def test_timing_tells_images_a_second_and_the_share_of_waiting(tmp_path, clock):
    def slow_data():
        for _ in range(2):
            clock.now += 1.5
            yield "batch"

    with open_log(tmp_path) as log:
        for _ in log.timed(slow_data()):
            clock.now += 0.5
            add(log, 1.0, 1.0, 1.0, images=8)
    rows = read_rows(tmp_path / "timing.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert [row["images_per_second"] for row in rows] == [4.0, 4.0]
    assert [row["data_wait"] for row in rows] == [0.75, 0.75]
    assert [row["seconds"] for row in rows] == [2.0, 4.0]
    assert all(row["memory_mib"] > 0 for row in rows)


def test_nothing_in_the_log_depends_on_time(tmp_path, clock):
    for name, seconds in (("slow", 2.0), ("fast", 1e-4)):
        (tmp_path / name).mkdir()
        with open_log(tmp_path / name) as log:
            for step in range(30):
                clock.now += seconds
                add(log, 1 / (step + 1), 0.5, 2.0)
            log.flush()
    slow, fast = ((tmp_path / name / "log.jsonl").read_bytes() for name in ("slow", "fast"))
    assert slow == fast


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b'{"step": 3, "total": 1.0}\n{"step": 4, "tot',  # the process was killed
        b'{"step": 3, "total"',
        b"\0\0\0\0",  # the machine lost power
        b'\0\0\0\0{"step": 4}\n',
        b"\xff\xfe\n",
        b"[]\n",
        b'{"step": 3, "total": 1.0}\n' * 3,
    ],
)
@pytest.mark.parametrize("name", ["log.jsonl", "timing.jsonl", "watch.jsonl"])
def test_rows_of_a_run_that_died_are_cut_torn_or_not(tmp_path, name, tail):
    good = b"".join(b'{"step": %d, "total": 1.0}\n' % step for step in range(3))
    (tmp_path / name).write_bytes(good + tail)
    with open_log(tmp_path, start=3):
        assert (tmp_path / name).read_bytes() == good


def test_a_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n{"st')
    assert [row["step"] for row in read_rows(path)] == [0, 1]
    assert read_rows(tmp_path / "none.jsonl") == []


def lines(*steps):
    return b"".join(b'{"step": %d, "total": 1.0}\n' % step for step in steps)


LOSSES = {
    "cut": (lines(0, 1) + b'{"step": 2, "to', "steps 2 to 4"),
    "missing": (None, "steps 0 to 4"),
    "empty": (b"", "steps 0 to 4"),
    "a hole": (lines(0, 2, 4), "steps 1, 3"),
    "a line of noise": (lines(0, 1) + b"\0\xff\n" + lines(3, 4, 5), "steps 2"),
    "too deep": (lines(0, 1) + b"[" * 9_999 + b"\n" + lines(3, 4), "steps 2"),
    "another shape": (b'[1]\n{"step": true}\n{"step": -2}\n' + lines(*range(1, 5)), "steps 0"),
    "a wrong digit": (lines(*range(5)).replace(b"1.0", b"1.5", 1), "changed or lost"),
}


class TestGoBack:
    """A checkpoint after step 4 (of 0 ... 4), and a log that went on to step 6."""

    @pytest.fixture
    def saved(self, tmp_path):
        (tmp_path / "log.jsonl").write_bytes(lines(*range(5)))
        (tmp_path / "watch.jsonl").write_bytes(lines(1, 3))
        found = json.loads(json.dumps(covered(tmp_path)))
        (tmp_path / "log.jsonl").write_bytes(lines(*range(7)) + b'{"st')
        return found

    def test_what_came_after_the_checkpoint_is_cut_without_a_word(self, tmp_path, saved, caplog):
        go_back(tmp_path, 5, saved)
        assert (tmp_path / "log.jsonl").read_bytes() == lines(*range(5))
        assert (tmp_path / "watch.jsonl").read_bytes() == lines(1, 3)
        assert not caplog.records
        assert not (tmp_path / NOTES).exists()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_rows_that_are_lost_are_told_where_one_looks(self, tmp_path, saved, caplog, loss):
        content, words = LOSSES[loss]
        (tmp_path / "log.jsonl").unlink()
        if content is not None:
            (tmp_path / "log.jsonl").write_bytes(content)
        for _ in range(2):  # resumed twice, it is noted once
            go_back(tmp_path, 5, saved)
        assert words in caplog.text
        assert "log.jsonl" in caplog.text
        (note,) = (tmp_path / NOTES).read_text().splitlines()
        assert words in note
        rows = read_rows(tmp_path / "log.jsonl")
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
        assert all(row["step"] < 5 for row in rows)

    def test_a_watch_that_lacks_rows_is_told(self, tmp_path, saved, caplog):
        (tmp_path / "watch.jsonl").unlink()
        go_back(tmp_path, 5, saved)
        assert "watch.jsonl is not what was saved" in caplog.text

    @pytest.mark.parametrize("saved_by", [None, {}, {"log.jsonl": None}, {"log.jsonl": [-1, "x"]}])
    def test_of_an_older_checkpoint_holes_are_told_too(self, tmp_path, caplog, saved_by):
        (tmp_path / "log.jsonl").write_bytes(lines(0, 1, 4, 5))
        go_back(tmp_path, 5, saved_by)
        assert "steps 2 to 3" in caplog.text
        assert (tmp_path / "log.jsonl").read_bytes() == lines(0, 1, 4)

    @pytest.mark.parametrize("name", ["log.jsonl", "timing.jsonl", "watch.jsonl"])
    def test_what_a_link_leads_to_is_not_cut(self, tmp_path, name):
        target = tmp_path / "letters.txt"
        target.write_text("mine\n" * 9)
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is a link"):
            go_back(tmp_path, 5, None)
        assert target.read_text() == "mine\n" * 9


def test_later_rows_replace_earlier_ones_of_the_same_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(0, 1, 2, 3) + b'{"step": 2, "total": 5.0}\n')
    assert [(row["step"], row["total"]) for row in read_rows(path)] == [(0, 1), (1, 1), (2, 5)]


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_the_term_is_named_and_nothing_of_the_step_is_written(self, tmp_path, clock, value):
        with open_log(tmp_path, start=7) as log:
            clock.now += 3
            add(log, 1.0, 1.0, 1.0)
            with pytest.raises(
                NonFiniteLossError, match=r"the token loss .* at step 8\. Got token"
            ):
                add(log, value, value, 1.0)
        assert [row["step"] for row in read_rows(tmp_path / "log.jsonl")] == [7]

    def test_rows_before_it_in_the_same_flush_are_written(self, tmp_path, clock):
        with open_log(tmp_path) as log:
            for _ in range(5):
                clock.now += 1e-5
                add(log, 1.0, 1.0, 1.0)
            add(log, math.nan, 1.0, 1.0)
            with pytest.raises(NonFiniteLossError, match=r"the total loss .* at step 5\."):
                log.flush(durable=True)
        assert [row["step"] for row in read_rows(tmp_path / "log.jsonl")] == list(range(5))

    def test_a_gradient_alone_stops_where_there_is_no_scaler(self, tmp_path):
        with (
            open_log(tmp_path) as log,
            pytest.raises(NonFiniteLossError, match=r"gradient .* step 0"),
        ):
            add(log, 1.0, 1.0, math.inf)

    def test_with_a_scaler_forty_in_a_row_pass_and_no_more(self, tmp_path):
        with open_log(tmp_path, overflows=True) as log:
            for _ in range(3):
                for _ in range(40):
                    add(log, 1.0, 1.0, math.inf)
                add(log, 1.0, 1.0, 1.0)
            log.flush()
            with pytest.raises(NonFiniteLossError, match="gradient"):
                for _ in range(41):
                    add(log, 1.0, 1.0, math.inf)
                log.flush()


class Recorder:
    def __init__(self):
        self.seen, self.closed = [], False

    def log(self, values, step):
        self.seen.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_trackers_get_finite_numbers_of_the_newest_step_and_are_closed(tmp_path, clock):
    tracker = Recorder()
    with open_log(tmp_path, overflows=True, trackers=[tracker]) as log:
        clock.now += 1
        add(log, 1.0, 0.5, math.inf)
        log.watch({"knn": 0.7})
        assert not tracker.closed
    (step, values), watched = tracker.seen
    assert step == 0
    assert values["total"] == 1.0
    assert values["images_per_second"] == 4.0
    assert "grad_norm" not in values
    assert watched == (0, {"knn": 0.7})
    assert tracker.closed
    assert json.loads((tmp_path / "watch.jsonl").read_text()) == {"step": 0, "knn": 0.7}


def test_trackers_are_closed_when_the_run_fails(tmp_path):
    tracker = Recorder()
    with pytest.raises(KeyError), open_log(tmp_path, trackers=[tracker]):
        raise KeyError
    assert tracker.closed


def test_a_tracker_that_fails_is_named_once_and_does_not_stop_the_run(tmp_path, caplog):
    class Away(Recorder):
        def log(self, values, step):
            raise ConnectionError("the server is away")

    with open_log(tmp_path, trackers=[Away()]) as log:
        log._track({"total": 1.0})
        log._track({"total": 2.0})
    assert caplog.text.count("the server is away") == 1


def test_the_bar_shows_how_sure_a_share_is(capsys):
    with RunLog(None, 0, 9, CPU, progress=True) as log:
        add(log, 1.0, 1.0, 1.0)
        log.watch({"knn_top1": 0.516, "cls_mse": 2.0, "knn_top1_margin": 0.085, "knn_images": 128})
        add(log, 1.0, 1.0, 1.0)
        log.flush()
    shown = capsys.readouterr().err
    assert "knn_top1=0.516±0.085" in shown
    assert "cls_mse" not in shown


class TestImages:
    """What the models were given is read with the losses."""

    @pytest.fixture
    def inputs(self):
        inputs = ImageInput(IMAGENET, "Teacher")
        inputs(torch.rand(1, 3, 4, 4))
        return inputs

    def test_a_batch_outside_the_range_stops_the_run_at_the_next_flush(self, tmp_path, inputs):
        with open_log(tmp_path, inputs=[inputs]) as log:
            add(log, 1.0, 1.0, 1.0)
            inputs(torch.rand(1, 3, 4, 4) * 255)
            add(log, 1.0, 1.0, 1.0)
            with pytest.raises(ValueError, match=r"Teacher: images are not in \[0, 1\]"):
                log.flush()

    def test_it_is_told_before_the_loss_that_it_spoils(self, tmp_path, inputs):
        with open_log(tmp_path, inputs=[inputs]) as log:
            inputs(torch.full((1, 3, 4, 4), math.inf))
            with pytest.raises(ValueError, match="Got values from 0 to inf"):
                add(log, math.nan, math.nan, 1.0)

    def test_all_processes_stop_for_one(self, tmp_path, inputs):
        class Two(World):
            def sum(self, values):
                other = torch.zeros_like(values)
                other[-4] = 1  # the other process's images
                return values + other

        world = Two(torch.device("cpu"), 0, 2)
        log = RunLog(tmp_path, 0, 9, world, progress=False, inputs=[inputs])
        with log, pytest.raises(ValueError, match="those of another process are not in"):
            add(log, 1.0, 1.0, 1.0)
