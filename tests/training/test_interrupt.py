import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from proteus.training.interrupt import Interrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)  # another thread, which does not block it, may be the one that gets it


def test_leaving_never_waits_for_a_signal_that_another_thread_took():
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # of one that comes too late
    try:
        for _ in range(300):
            with Interrupt():
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
        over.set()
        for thread in threads:
            thread.join()


def test_it_notes_the_signal_and_goes_on():
    with Interrupt() as interrupt:
        assert not interrupt.requested
        terminate()
        assert interrupt.requested
        terminate()
        assert interrupt.requested


def test_a_signal_that_another_thread_gets_is_noted_too():
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()  # before: it does not block the signal
    with Interrupt() as interrupt:
        terminate()
        assert interrupt.requested
    over.set()
    thread.join()


def test_afterwards_everything_is_as_before():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    try:
        with Interrupt():
            terminate()
        assert not came
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == mask
        terminate()
        assert came
    finally:
        signal.signal(signal.SIGTERM, before)


def test_processes_started_meanwhile_outlive_the_signal():
    with Interrupt():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        child.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.3)
        child.communicate(b"\n")
        assert child.returncode == 0


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    assert signal.getsignal(signal.SIGTERM) is before


def interrupt(times, pause=0.0):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause)


def test_ctrl_c_is_noted_and_outranks_sigterm(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(say=True) as asked:
        terminate()
        interrupt(2)  # at once: what a launcher hands on to us is not a second one
        assert asked.requested is signal.SIGINT
    assert capfd.readouterr().err.count("Ctrl-C once more leaves at once") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupt():
        interrupt(2, pause=1.1)


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for `nohup … &`
    try:
        with Interrupt() as asked:
            interrupt(1)
            assert asked.requested is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_process_takes_no_notice_of_ctrl_c():
    with Interrupt():
        pid = os.fork()
        if pid == 0:
            interrupt(3, pause=0.6)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
