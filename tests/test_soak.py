"The soak at a hundredth of its length, and that it notices what it looks for."
import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]/'tools'))
import soak  # noqa: E402


def test_a_short_soak_finds_nothing_and_notices_what_is_amiss(tmp_path):
    n = 200
    with soak.server() as url:
        soak.lists(tmp_path, n)
        got = soak.once(url, tmp_path, 300)
        asked, trapped = soak.told(url)
        was = soak.state(tmp_path)
        again = soak.once(url, tmp_path, 300)
        assert soak.problems(tmp_path, n, got['counts']) == soak.problems(tmp_path, n, again['counts']) == []
    assert set(asked) == set(range(n)) and trapped == [] and got['links'] == n
    assert {k: v for k, v in soak.state(tmp_path).items() if k.endswith('.tar')} == {
        k: v for k, v in was.items() if k.endswith('.tar')}
    struck = [soak.fault_of(soak.address(i), 1) for i in range(n)]
    assert len({f.kind for f in struck if f}) > 15 and .1*n < sum(map(bool, struck)) < .3*n
    ledger = max((tmp_path/'photos').glob('ledger_*.jsonl'), key=lambda p: p.stat().st_size)
    rows = ledger.read_text().splitlines()
    ledger.write_text('\n'.join(rows[1:]) + '\n')
    assert '1 links have no row' in soak.problems(tmp_path, n, got['counts'])
    ledger.write_text('\n'.join([*rows, json.dumps(json.loads(rows[0]) | dict(url=soak.address(n)))]) + '\n')
    assert 'a key is given twice' in soak.problems(tmp_path, n, got['counts'])
    next((tmp_path/'photos').glob('*.tar')).unlink()
    assert any('photos are in tars' in o for o in soak.problems(tmp_path, n, got['counts']))
    assert any('sums differ' in o for o in soak.problems(tmp_path, n, got['counts'] | dict(links=n + 1)))


def test_growth_is_what_comes_after_a_fifth():
    held = [(0, 50.), (100, 80.), (200, 100.), (600, 102.), (1000, 104.)]
    assert soak.growth(held) == (100., 104., 4*2**20/800)


def test_the_server_ends_with_the_soak():
    with soak.server() as url:
        assert url.startswith('http://127.0.0.1:')
    time.sleep(.1)
    try:
        soak.told(url)
    except OSError:
        return
    raise AssertionError('the server still answers')
