"A real browser for tests: Debian's headless Chromium through Playwright, with nothing of the outside world in reach."
import shutil
import subprocess
from importlib.util import find_spec

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome')
CHROMIUM = next((p for p in map(shutil.which, NAMES) if p), None)


def opens(path):
    "Does this Chromium open a page here at all?"
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
             '--disable-background-networking', '--dump-dom']
    try:
        r = subprocess.run([path, *flags, 'data:text/html,a page'], capture_output=True, text=True, timeout=90)
        return 'a page' in r.stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def lacking():
    "What a browser test lacks on this machine; empty when it can run."
    if CHROMIUM is None:
        return 'no Chromium on this machine: `apt-get install chromium`'
    if find_spec('playwright') is None:
        return 'no Playwright: `pip install playwright`'
    return '' if opens(CHROMIUM) else f'{CHROMIUM} cannot open a page here'


lacks = lacking()
needs_browser = pytest.mark.skipif(bool(lacks), reason=lacks)
FLAGS = ['--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--hide-scrollbars',
         '--force-color-profile=srgb', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost']


class Browser:
    "One page of one Chromium; `page` is Playwright's, `errors` what went wrong in it since the last `goto`."
    def __init__(self, width=1280, height=900, patience=60):
        from playwright.sync_api import sync_playwright
        self.patience = patience
        self.errors = []
        self._playwright = sync_playwright().start()
        try:
            self._chromium = self._playwright.chromium.launch(
                executable_path=CHROMIUM, chromium_sandbox=False, args=FLAGS, timeout=patience*1000)
        except BaseException:
            self._playwright.stop()
            raise
        self.page = self._chromium.new_page(viewport=dict(width=width, height=height))
        self.page.set_default_timeout(patience*1000)
        self.page.on('console', self._console)
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.on('requestfailed', self._failed)

    def _console(self, message):
        if message.type == 'error':
            self.errors.append(f'{message.text} {message.location.get("url", "")}')

    def _failed(self, request):
        if 'ERR_ABORTED' not in str(request.failure):  # what the next `goto` cuts off is no fault of the page
            self.errors.append(f'not loaded: {request.url} {request.failure}')

    def goto(self, url):
        "Open `url` and wait until it has loaded."
        self.errors.clear()
        self.page.goto(str(url), wait_until='load')

    def eval(self, js):
        "The value of an expression (a promise is awaited), as JSON can hold it."
        return self.page.evaluate(js)

    def wait(self, js, seconds=None):
        "Wait until the expression is true, and return its value."
        return self.page.wait_for_function(js, timeout=(seconds or self.patience)*1000, polling=50).json_value()

    def click(self, x, y=None):
        "Click at a point in CSS pixels, or in the middle of what a selector finds."
        self.page.click(x) if y is None else self.page.mouse.click(x, y)

    def key(self, key):
        "Press and release one key by its DOM name: 'ArrowRight', 'Enter', 'x', 'Shift+Enter'."
        self.page.keyboard.press(key)

    def type(self, text):
        "Type `text` into what has the focus."
        self.page.keyboard.type(text)

    def size(self, width, height):
        "Set the size of the window in CSS pixels."
        self.page.set_viewport_size(dict(width=width, height=height))

    def dark(self, on=True):
        "Prefer a dark scheme, or a light one."
        self.page.emulate_media(color_scheme='dark' if on else 'light')

    def screenshot(self, path, full=False):
        "Save a PNG of the window, or of the whole page."
        self.page.screenshot(path=path, full_page=full)
        return path

    def close(self):
        self._chromium.close()
        self._playwright.stop()

    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.close()
