"A real browser for tests: headless Chromium, driven over its DevTools pipe with nothing but the standard library."
import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome')) if p), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine: `apt-get install chromium`')
FLAGS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars', '--force-color-profile=srgb',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-extensions', '--disable-default-apps',
         '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost']  # nothing outside this machine is asked
CODES = {'Enter': 13, 'Escape': 27, 'Tab': 9, 'Backspace': 8, 'Delete': 46, 'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40, ' ': 32}


class Browser:
    "One page of one Chromium; `errors` holds what its console, its scripts and its network complained of since the last `goto`."
    def __init__(self, width=1280, height=900, patience=60):
        self.patience, self.errors, self._n = patience, [], 0
        self._answers, self._events, self._lock = {}, queue.Queue(), threading.Lock()
        self._home = tempfile.mkdtemp(prefix='browser-')
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        run = 'exec "$0" "$@" 3<&%d 4>&%d' % (theirs_in, theirs_out)
        self._process = subprocess.Popen(['bash', '-c', run, CHROMIUM, *FLAGS, f'--user-data-dir={self._home}', '--remote-debugging-pipe', 'about:blank'],
                                         pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out): os.close(fd)
        self._out = os.fdopen(ours_out, 'wb', buffering=0)
        self._in = os.fdopen(ours_in, 'rb', buffering=0)
        self._session = None
        threading.Thread(target=self._listen, daemon=True).start()
        page = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self._session = self.call('Target.attachToTarget', targetId=page['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')
        self.size(width, height)

    def _listen(self):
        rest = b''
        while True:
            try: data = self._in.read(1 << 16)
            except (OSError, ValueError): return
            if not data: return
            *whole, rest = (rest + data).split(b'\0')
            for o in map(json.loads, whole):
                if 'id' in o: self._answers[o['id']].put(o)
                else: self._notice(o['method'], o.get('params', {}))

    def _notice(self, method, p):
        if method == 'Runtime.exceptionThrown': self.errors.append(p['exceptionDetails'].get('exception', {}).get('description') or p['exceptionDetails']['text'])
        elif method == 'Runtime.consoleAPICalled' and p['type'] == 'error': self.errors.append(' '.join(str(a.get('value', a.get('description'))) for a in p['args']))
        elif method == 'Log.entryAdded' and p['entry']['level'] == 'error': self.errors.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        elif method == 'Network.loadingFailed' and not p.get('canceled'): self.errors.append(f"not loaded: {p.get('errorText')}")
        self._events.put((method, p))

    def call(self, method, **params):
        "Send one DevTools command and return its result."
        with self._lock:
            self._n += 1
            n, self._answers[self._n] = self._n, queue.Queue()
            self._out.write(json.dumps({'id': n, 'method': method, 'params': params, **({'sessionId': self._session} if self._session else {})}).encode() + b'\0')
        try: o = self._answers[n].get(timeout=self.patience)
        except queue.Empty: raise TimeoutError(f'{method}: no answer in {self.patience} s (Chromium {"runs" if self._process.poll() is None else "has ended"})') from None
        finally: del self._answers[n]
        if 'error' in o: raise RuntimeError(f"{method}: {o['error'].get('message')}")
        return o['result']

    def size(self, width, height, mobile=False):
        "Set the size of the window in CSS pixels."
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, on=True):
        "Prefer a dark scheme, or a light one."
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if on else 'light')])

    def goto(self, url):
        "Open `url` and wait until it has loaded."
        while not self._events.empty(): self._events.get()
        self.errors.clear()
        if error := self.call('Page.navigate', url=str(url)).get('errorText'): raise RuntimeError(f'{url}: {error}')
        end = time.monotonic() + self.patience
        while self._events.get(timeout=max(.01, end - time.monotonic()))[0] != 'Page.loadEventFired': pass
        self.wait('document.readyState == "complete"')

    def eval(self, js):
        "The value of an expression (a promise is awaited), as JSON can hold it."
        o = self.call('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in o: raise RuntimeError(o['exceptionDetails'].get('exception', {}).get('description') or o['exceptionDetails']['text'])
        return o['result'].get('value')

    def wait(self, js, seconds=None):
        "Wait until the expression is true, and return its value."
        end = time.monotonic() + (seconds or self.patience)
        while not (v := self.eval(js)):
            if time.monotonic() > end: raise TimeoutError(f'{js} was still {v!r} after {seconds or self.patience} s')
            time.sleep(.05)
        return v

    def click(self, x, y=None):
        "Click at a point in CSS pixels, or in the middle of what a selector finds."
        if y is None:
            x, y = self.eval(f'(() => {{const e = document.querySelector({json.dumps(x)}); e.scrollIntoView({{block: "center"}}); const r = e.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2]}})()')
        for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='none' if kind == 'mouseMoved' else 'left', clickCount=0 if kind == 'mouseMoved' else 1)

    def key(self, key, modifiers=0):
        "Press and release one key by its DOM name: 'ArrowRight', 'Enter', 'x'; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."
        code = CODES.get(key) or ord(key.upper())
        o = dict(key=key, code=f'Key{key.upper()}' if len(key) == 1 and key.isalpha() else key, windowsVirtualKeyCode=code, modifiers=modifiers)
        if len(key) == 1 and not modifiers & 7: o['text'] = key
        elif key == 'Enter': o['text'] = '\r'
        self.call('Input.dispatchKeyEvent', type='keyDown', **o)
        self.call('Input.dispatchKeyEvent', type='keyUp', **{k: v for k, v in o.items() if k != 'text'})

    def type(self, text):
        "Type `text` into what has the focus."
        for c in text: self.key(c) if c.isascii() else self.call('Input.insertText', text=c)

    def screenshot(self, path, full=False):
        "Save a PNG of the window, or of the whole page."
        kw = dict(captureBeyondViewport=True) if full else {}
        if full:
            w, h = self.eval('[document.documentElement.clientWidth, Math.min(document.documentElement.scrollHeight, 12000)]')
            kw['clip'] = dict(x=0, y=0, width=w, height=h, scale=1)
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png', **kw)['data']))
        return path

    def close(self):
        try: self.call('Browser.close')
        except (OSError, TimeoutError, RuntimeError): pass
        try: self._process.wait(10)
        except subprocess.TimeoutExpired: self._process.kill(); self._process.wait()
        for f in (self._out, self._in): f.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self): return self
    def __exit__(self, *_): self.close()
