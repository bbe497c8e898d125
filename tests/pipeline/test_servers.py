"""The servers that the other tests stand on leave nothing behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pipeline import wait_until

from servers.process import is_running

pytestmark = pytest.mark.long

# From a thread that ends: to Linux a thread is a parent too.
HOLDER = """
import json, sys, threading
from servers import servers
with servers() as running:
    running.kafka.kill()
    running.postgres.kill()
    for each in running.processes:
        thread = threading.Thread(target=each.start)
        thread.start()
        thread.join()
    print(json.dumps([str(running.directory), *(each.pid for each in running.processes)]), flush=True)
    sys.stdin.read()
"""


def test_no_server_outlives_a_process_that_was_killed() -> None:
    """Starts both servers twice."""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=root, stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        directory, *pids = json.loads(holder.stdout.readline())
        processes = [psutil.Process(pid) for pid in pids]
        processes += [child for each in processes for child in each.children()]
        assert len(processes) > 5
        assert all(map(is_running, processes))
        holder.kill()
    wait_until(lambda: not any(map(is_running, processes)), "ended")
    shutil.rmtree(directory)
