"Tasks on a dask cluster of two processes give what they give in this one, a failing one included, and outlive a worker."
import operator
import os
import signal
import time

import pytest

from pttface.jobs import run_tasks

distributed = pytest.importorskip('distributed')


def later(x, wait):
    "x squared, after a while"
    time.sleep(wait)
    return x * x


@pytest.fixture
def cluster(tmp_path):
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1', local_directory=str(tmp_path), silence_logs=50) as c: yield c


def test_dask_gives_what_this_process_gives(cluster):
    tasks = [(i, 7) for i in range(5)] + [(1, 0)]
    told = lambda rows: sorted((t, repr(o)) for t, o in rows)
    here, there = told(run_tasks(operator.floordiv, tasks)), told(run_tasks(operator.floordiv, tasks, scheduler=cluster.scheduler_address))
    assert here == there and sum('ZeroDivisionError' in o for _, o in here) == 1


def test_a_killed_worker_costs_time_only(cluster):
    pids = [w.pid for w in cluster.workers.values()]
    rows, killed = {}, False
    for t, o in run_tasks(pow, [(i, 2) for i in range(4)], scheduler=cluster.scheduler_address): rows[t] = o
    for t, o in run_tasks(later, [(i, .3) for i in range(8)], scheduler=cluster.scheduler_address):
        rows[t] = o
        if not killed: os.kill(pids[0], signal.SIGKILL)
        killed = True
    assert {t[0]: o for t, o in rows.items() if t[1] == .3} == {i: i * i for i in range(8)}
