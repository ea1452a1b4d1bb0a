"Virtual environments for the peers that a benchmark runs beside ours."
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

top = Path(__file__).resolve().parent.parent


def peer_python(name, *requirements, share=False, make=True):
    """The Python of `.venv-peers-NAME` with `requirements` installed, made on first use.

    None where it is missing and `make` is false.
    `share` lets it see our own packages behind its own, so that both sides run the same torch.
    """
    home = top / f'.venv-peers-{name}'
    python, done = home/'bin/python', home/'.done'
    if done.exists() and done.read_text().split('\n') == [*requirements]:
        return python
    if not make:
        return None
    print(f'installing {", ".join(requirements)} into {home.name}', file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    if share:
        ask = 'import sysconfig; print(sysconfig.get_path("purelib"))'
        site = Path(subprocess.check_output([python, '-c', ask], text=True).strip())
        (site/'ours.pth').write_text(f'{sysconfig.get_path("purelib")}\n{top}\n')
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *requirements], check=True)
    done.write_text('\n'.join(requirements))
    return python
