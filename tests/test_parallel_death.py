"""A process of several that dies: none of the others waits for it."""

import signal
import time

from parallel_cases import GIVEN, TASKS, alone, error, finish, learned, start, write_data

LONG = {**GIVEN, "max_iter": 30, "n_iter_no_change": 30}


def test_a_process_that_dies_ends_the_others_and_the_checkpoint_is_gone_on_from(tmp_path):
    write_data(tmp_path)
    task = {**TASKS["classes"], "given": LONG, "kept": True}
    processes = start(tmp_path, 2, {"long": task})
    for _ in range(3000):
        if len(list((tmp_path / "kept").glob("epoch-*[1-9].*"))) > 0:
            break
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, codes = finish(processes)
    assert time.monotonic() - killed < 60
    assert codes[0] != 0
    assert "another task died" in said[0] or "one of them has ended" in said[0]
    assert not (tmp_path / "long-2-0.npz").exists()
    said, codes = finish(start(tmp_path, 2, {"long": task}))
    assert codes == [0, 0], said
    assert error(learned(tmp_path, "long", 2, 0), alone(tmp_path, task)) < 1e-11
