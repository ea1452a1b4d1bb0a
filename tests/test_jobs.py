"Work side by side, in processes and on a dask cluster: what fails, what dies, Ctrl-C, and how much is under way."
import operator
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pttface.parallel import map_processes,run_tasks
from pttface.storage.files import BadInput

distributed = pytest.importorskip('distributed')


def later(x, wait):
    "x squared, after a while"
    time.sleep(wait)
    return x * x


@pytest.fixture
def cluster(tmp_path):
    how = dict(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1', silence_logs=50)
    with distributed.LocalCluster(local_directory=str(tmp_path), **how) as c:
        yield c


def test_dask_gives_what_this_process_gives(cluster):
    tasks = [(i, 7) for i in range(5)] + [(1, 0)]
    in_order = lambda rows: sorted((t, repr(o)) for t, o in rows)
    here = in_order(run_tasks(operator.floordiv, tasks))
    there = in_order(run_tasks(operator.floordiv, tasks, scheduler=cluster.scheduler_address))
    assert here == there and sum('ZeroDivisionError' in o for _, o in here) == 1


def test_a_killed_worker_costs_time_only(cluster):
    pids = [w.pid for w in cluster.workers.values()]
    rows, killed = {}, False
    for t, o in run_tasks(pow, [(i, 2) for i in range(4)], scheduler=cluster.scheduler_address):
        rows[t] = o
    for t, o in run_tasks(later, [(i, .3) for i in range(8)], scheduler=cluster.scheduler_address):
        rows[t] = o
        if not killed:
            os.kill(pids[0], signal.SIGKILL)
        killed = True
    assert {t[0]: o for t, o in rows.items() if t[1] == .3} == {i: i * i for i in range(8)}


def handed_out(n, ahead, **kw):
    "Most tasks under way at a time, and the results"
    given, most = 0, 0
    results = []

    def tasks():
        nonlocal given, most
        while given < n:
            if given - len(results) < 3:
                given += 1
                most = max(most, given - len(results))
                yield given, 2
            else:
                yield None
    for _, o in run_tasks(pow, tasks(), ahead=ahead, **kw):
        results.append(o)
    return most, sorted(results)


def test_tasks_are_taken_when_there_is_room(cluster):
    "No more than `ahead` are under way, and a source that has nothing for now is asked again."
    squares = [i * i for i in range(1, 13)]
    assert handed_out(12, 2, workers=2) == (2, squares)
    assert handed_out(12, 9, workers=2) == (3, squares)
    assert handed_out(12, 2, scheduler=cluster.scheduler_address) == (2, squares)
    assert handed_out(12, 9) == (1, squares)


def fatal(flag, always):
    "Kill this process, the first time or always."
    first = not os.path.exists(flag)
    open(flag, 'w').close()
    if first or always:
        os.kill(os.getpid(), signal.SIGKILL)
    return 'well'


def test_a_process_that_dies(tmp_path):
    rows = dict(run_tasks(fatal, [(str(tmp_path / 'once'), False), (str(tmp_path / 'ever'), True)], workers=2, tries=1))
    assert {type(o) for o in rows.values()} == {str, RuntimeError} and 'well' in rows.values()


def late(path, n):
    "Well at the n-th try."
    with open(path, 'a') as f:
        f.write('.')
    if os.path.getsize(path) < n:
        raise OSError(f'try {os.path.getsize(path)}')
    return 'well'


def refused(path):
    with open(path, 'a') as f:
        f.write('.')
    raise BadInput('never')


def test_what_raises_is_tried_again(tmp_path, cluster):
    for name, kw in dict(here={}, there=dict(workers=2), far=dict(scheduler=cluster.scheduler_address)).items():
        path = [str(tmp_path / f'{name}{i}') for i in range(3)]
        results = {t[0]: o for t, o in run_tasks(late, [(path[0], 3), (path[1], 9)], **kw)}
        assert results[path[0]] == 'well' and str(results[path[1]]) == 'try 3' and os.path.getsize(path[1]) == 3
        (_, error), = run_tasks(refused, [(path[2],)], **kw)
        assert isinstance(error, BadInput) and os.path.getsize(path[2]) == 1


def test_no_scheduler(monkeypatch):
    monkeypatch.setattr(distributed, 'Client', lambda address, timeout: (_ for _ in ()).throw(OSError('nobody')))
    with pytest.raises(BadInput, match='No scheduler answers at tcp://127.0.0.1:9'):
        list(run_tasks(pow, [(1, 2)], scheduler='tcp://127.0.0.1:9'))


def test_results_of_map_processes_come_in_order():
    items = [(3, .3), (1, .0), (2, .1)]
    assert list(map_processes(wait_and_square, items, workers=3, chunksize=1)) == [9, 1, 4]
    assert list(map_processes(wait_and_square, items, workers=1)) == [9, 1, 4]
    assert list(map_processes(wait_and_square, [], workers=3)) == []


def wait_and_square(item):
    time.sleep(item[1])
    return item[0]**2


def remember():
    global remembered
    remembered = 'by init'


def thread_counts(_):
    import cv2
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info
    return remembered, cv2.getNumThreads(), {o['num_threads'] for o in threadpool_info()}


def test_each_process_has_one_thread_and_is_set_up():
    assert list(map_processes(thread_counts, range(2), workers=2, init=remember)) == [('by init', 1, {1})]*2


def sleep_or_fail(seconds):
    if seconds < 0:
        raise ValueError('a negative pause')
    time.sleep(seconds)


def test_an_error_ends_the_others_at_once():
    start = time.monotonic()
    with pytest.raises(ValueError, match='a negative pause'):
        list(map_processes(sleep_or_fail, [0, -1, 60, 60], workers=3, chunksize=1))
    assert time.monotonic() - start < 30


SCRIPT = '''
from pttface import crawl, download, extract_faces, pack
from pttface.parallel import run_tasks
from pttface.synthetic.board import make_board, serve

print('begin')
with serve(make_board(40)) as server:
    crawl('Beauty', '2024-01-01', '2024-12-31', 'data', base_url=server.url, rate=0)
    download('data', gateway=server.url)
faces = extract_faces('data', workers=2)
data = pack('data')
print(len(faces), len(data), len(faces.failed), dict(sorted(run_tasks(divmod, [(7, 2), (9, 3)], workers=2))))
'''


def run_script(folder, text):
    (folder/'script.py').write_text(text)
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    return subprocess.run([sys.executable, 'script.py'], cwd=folder, capture_output=True, text=True, env=env)


def test_a_script_without_a_guard(tmp_path):
    "The README's lines, saved as a file and run: no process runs the script again."
    run = run_script(tmp_path, SCRIPT)
    assert run.returncode == 0, run.stderr
    first, last = run.stdout.splitlines()
    faces, images, failed, results = last.split(' ', 3)
    assert first == 'begin' and int(faces) >= 20 and int(images) > 10 and failed == '0'
    assert results == '{(7, 2): (3, 1), (9, 3): (3, 0)}'


OWN = '''
import __main__
from pttface.parallel import map_processes, run_tasks
def double(x): return 2*x
if __name__ == '__main__':
    before = __main__.__file__, __main__.__spec__
    print(list(map_processes(double, range(3), workers=2)), dict(run_tasks(double, [(4,), (5,)], workers=2)))
    print(before == (__main__.__file__, __main__.__spec__))
'''


def test_a_function_of_the_script_itself(tmp_path):
    run = run_script(tmp_path, OWN)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith('[0, 2, 4] {') and run.stdout.endswith('True\n')


HIDDEN = '''
import math, os
from threading import Thread
import __main__
from pttface.parallel import map_processes, run_tasks
roots = lambda: list(map_processes(math.sqrt, [1, 4, 9], workers=2))
threads = [Thread(target=roots) for _ in range(3)]
for t in threads: t.start()
for t in threads: t.join()
print(roots(), os.path.basename(__main__.__file__), __main__.__spec__)
'''


def test_the_script_is_shown_again(tmp_path):
    "Several threads may start processes at a time; afterwards the main module is as it was."
    run = run_script(tmp_path, HIDDEN)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ['[1.0, 2.0, 3.0] script.py None']


def start(script, **kw):
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True, **kw)


MAP = '''
import time
from pttface.parallel import map_processes
if __name__ == '__main__':
    for _ in map_processes(time.sleep, [0] + [60]*6, workers=2, chunksize=1):
        print('ready', flush=True)
'''


@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path, sig):
    script = tmp_path/'map.py'
    script.write_text(MAP)
    p = start(script, stderr=subprocess.DEVNULL)
    assert p.stdout.readline() == 'ready\n'
    p.send_signal(sig)
    assert p.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        for _ in range(250):
            os.killpg(p.pid, 0)
            time.sleep(.02)


POOL = '''
import sys, time
from pttface.parallel import run_tasks
if __name__ == '__main__':
    print('ready', flush=True)
    try:
        for _ in run_tasks(time.sleep, [(.05,)]*40, workers=3): pass
    except KeyboardInterrupt: sys.exit(130)
'''


def test_ctrl_c_while_processes_start(tmp_path):
    "At whatever moment it comes, and whether it is sent to one process or all: no traceback, and no process is left."
    script, r = tmp_path/'pool.py', random.Random(0)
    stopped = 0
    script.write_text(POOL)
    for group in [False, True]*4:
        p = start(script, stderr=subprocess.PIPE)
        assert p.stdout.readline() == 'ready\n'
        time.sleep(r.uniform(0, .6))
        if group:
            os.killpg(p.pid, signal.SIGINT)
        else:
            p.send_signal(signal.SIGINT)
        errors = p.communicate(timeout=60)[1]
        assert p.returncode in (0, 130) and not errors, errors
        with pytest.raises(ProcessLookupError):
            for _ in range(250):
                os.killpg(p.pid, 0)
                time.sleep(.02)
        stopped += p.returncode == 130
    assert stopped >= 4
