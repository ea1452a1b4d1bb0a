"What every test may count on."
import os
import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, and all they start; some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ages of drawn heads mean nothing, and a test must not fetch networks: `auto` asks nobody, here and in what is started.
os.environ['PTTFACE_ATTRIBUTES'] = 'off'

FIRST = ('test_driver', 'test_diffusion', 'test_site', 'test_runs', 'test_export')  # The longest, in this order


def pytest_collection_modifyitems(items):
    "Long files first: where two processes share the tests, the second ends with short ones of the first."
    items.sort(key=lambda o: FIRST.index(o.path.stem) if o.path.stem in FIRST else len(FIRST))
