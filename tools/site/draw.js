// The generator of the page "Draw one": the noise of `pttface sample`, a sampler as a table of coefficients, and the
// network in ONNX Runtime. Nothing is fetched before the button is pressed, and all of it lies in this file's folder.

// Standard normal numbers, float32, as numpy.random.Generator(Philox(key=[seed, number])).standard_normal gives them.
// Philox-4x64 with ten rounds: Salmon et al. 2011. Two words of 32 bits from each of 64, the lower one first.
function* words(seed, number) {
  const low = (1n << 64n) - 1n;
  for (let n = 1n; ; n++) {
    let [a, b, c, d] = [n, 0n, 0n, 0n], [k, l] = [BigInt(seed), BigInt(number)];
    for (let round = 0; round < 10; round++) {
      const p = a * 0xd2e7470ee14c6c93n, q = c * 0xca5a826395121157n;
      [a, b, c, d] = [(q >> 64n) ^ b ^ k, q & low, (p >> 64n) ^ d ^ l, p & low];
      [k, l] = [(k + 0x9e3779b97f4a7c15n) & low, (l + 0xbb67ae8584caa73bn) & low];
    }
    for (const o of [a, b, c, d]) {
      yield Number(o & 0xffffffffn);
      yield Number(o >> 32n);
    }
  }
}

// The ziggurat's 256 layers of equal area: Marsaglia and Tsang 2000. `edge`: below it a number lies within its layer.
const R = 3.6541528853610088, AREA = 0.00492867323399, float = Math.fround;
const density = (x) => Math.exp(-x * x / 2);
const layers = (() => {
  const m = 2 ** 23, edge = new Array(256).fill(0), width = new Array(256), height = new Array(256);
  const base = AREA / density(R);
  edge[0] = Math.trunc(R / base * m);
  [width[0], width[255], height[0], height[255]] = [base / m, R / m, 1, density(R)];
  let x = R;
  for (let i = 254; i > 0; i--) {
    const last = x;
    x = Math.sqrt(-2 * Math.log(AREA / last + density(last)));
    edge[i + 1] = Math.trunc(x / last * m);
    [width[i], height[i]] = [x / m, density(x)];
  }
  return { edge, width: width.map(float), height: height.map(float) };
})();

export function* normals(seed, number) {
  const { edge, width, height } = layers, bits = words(seed, number), word = () => bits.next().value;
  const uniform = () => (word() >>> 8) * 2 ** -24;
  for (;;) {
    const r = word(), i = r & 255, a = r >>> 9, sign = r & 256 ? -1 : 1, x = sign * float(a * width[i]);
    if (a < edge[i]) {
      yield x;
    } else if (i === 0) {  // the tail
      let far, y;
      do {
        far = float(float(1 / R) * float(-Math.log1p(-uniform())));
        y = float(-Math.log1p(-uniform()));
      } while (!(float(y + y) > float(far * far)));
      yield a & 256 ? -float(R + far) : float(R + far);
    } else if (float(float(float(height[i - 1] - height[i]) * uniform()) + height[i]) < density(x)) {
      yield x;
    }
  }
}

export function normal(seed, number, n) {
  const source = normals(seed, number);
  return Float32Array.from({ length: n }, () => source.next().value);
}

// Noises of one picture, one after another; or, at `share` of the way to a second picture, between those of both
export function noiseSource(seed, second, share, n) {
  const a = normals(seed, 0), b = share ? normals(second, 0) : null;
  const [c, s] = [Math.cos(share * Math.PI / 2), Math.sin(share * Math.PI / 2)];
  return () => Float32Array.from({ length: n }, () => b ? c * a.next().value + s * b.next().value : a.next().value);
}

// Σ coefficient × array
function combine(row, noises, guesses, n) {
  const sum = new Float64Array(n);
  const add = (k, o) => { if (k) for (let i = 0; i < n; i++) sum[i] += k * o[i]; };
  row.noise.forEach((k, i) => add(k, noises[i]));
  row.x0.forEach((k, i) => add(k, guesses[i]));
  return Float32Array.from(sum);
}

// One picture: `network(x, sigma, name)` gives a guess of D, `shown(row, x, guess)` is told of each step; `asked`: has it
// labels? Then it is led away from pictures without them, too
export async function generate(table, network, noise, shown, asked = false) {
  const n = table.shape.reduce((a, b) => a * b), noises = [], guesses = [];
  const state = (row) => {
    while (noises.length < row.noise.length) noises.push(noise());
    return combine(row, noises, guesses, n);
  };
  for (const row of table.steps) {
    const x = state(row), guess = await network(x, row.sigma, 'denoiser');
    if (asked && (row.told ?? 1) !== 1) {
      const plain = await network(x, row.sigma, 'unlabelled');
      for (let i = 0; i < n; i++)
        guess[i] = Math.min(1, Math.max(-1, plain[i] + row.told * (guess[i] - plain[i])));
    }
    if (row.weight !== 1) {
      const worse = await network(x, row.sigma, 'guide');
      for (let i = 0; i < n; i++) guess[i] = worse[i] + row.weight * (guess[i] - worse[i]);
    }
    guesses.push(guess);
    await shown(row, x, guess);
  }
  return state(table.picture);
}

// [-1,1] in the order channel, row, column to a canvas
export function paint(canvas, x, [channels, height, width], scale = 1) {
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height), size = width * height;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(x[(c % channels) * size + i] * scale * 127.5 + 127.5);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

// What the browser fetches, once: the table, the runtime, the networks
const here = (name) => new URL(name, import.meta.url).href;

async function fetchBytes(name, got = () => {}, signal = null) {
  const answer = await fetch(here(name), { signal });
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status} ${answer.statusText})`);
  const parts = [], reader = answer.body.getReader();
  for (let o = await reader.read(); !o.done; o = await reader.read()) {
    parts.push(o.value);
    got(o.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export async function load(progress) {
  if (typeof WebAssembly !== 'object') throw new Error('this browser has no WebAssembly, which the network runs in');
  const table = JSON.parse(new TextDecoder().decode(await fetchBytes('generator.json')));
  const total = Object.values(table.files).reduce((a, b) => a + b);
  let bytes = 0;
  const stop = new AbortController();  // of all, when one cannot be fetched
  const got = (n) => stop.signal.aborted || progress((bytes += n) / total, total);
  const names = Object.keys(table.files), all = names.map((o) => fetchBytes(o, got, stop.signal));
  const contents = await Promise.all(all).catch((e) => { stop.abort(); throw e; });
  const file = Object.fromEntries(names.map((o, i) => [o, contents[i]]));
  const ort = await import(here(table.runtime));
  ort.env.wasm.numThreads = 1;  // more need headers that simple hosts of pages do not send
  ort.env.wasm.wasmBinary = file[names.find((o) => o.endsWith('.wasm'))];
  const sessions = {}, options = { executionProviders: ['wasm'], graphOptimizationLevel: 'disabled' };  // it is folded
  for (const name of names.filter((o) => o.endsWith('.onnx')))
    sessions[name.replace('.onnx', '')] = await ort.InferenceSession.create(file[name], options);
  const tensor = (data, dims) => new ort.Tensor('float32', data, dims);
  const zeros = () => new Float32Array(table.columns.length);
  const network = (label) => async (x, sigma, name) => {
    const inputs = { x: tensor(x, [1, ...table.shape]), sigma: tensor(Float32Array.of(sigma), [1]) };
    if (table.columns.length) inputs.label = tensor(name === 'denoiser' ? label : zeros(), [1, table.columns.length]);
    return (await sessions[name === 'unlabelled' ? 'denoiser' : name].run(inputs)).x0.data;
  };
  return { table, network };
}

// The page
class Page {
  constructor(root) {
    this.root = root;
    this.busy = this.wanted = null;
    const on = (name, event, f) => this.find(name)?.addEventListener(event, f);
    on('one', 'click', () => {
      this.find('seed').value = crypto.getRandomValues(new Uint32Array(1))[0];
      this.ask();
    });
    for (const name of ['seed', 'second', 'pose', 'gender']) on(name, 'change', () => this.ask());
    on('share', 'input', () => this.ask());
    root.addEventListener('submit', (e) => e.preventDefault());
    for (const o of root.querySelectorAll('fieldset')) o.disabled = false;
  }

  find(name) { return this.root.querySelector(`[name="${name}"], .draw-${name}`); }

  say(text, bad = false) {
    const line = this.find('status');
    if (line.textContent !== text) line.textContent = text;
    this.root.classList.toggle('draw-failed', bad);
  }

  // A picture of what the controls say now; while one is being drawn, only the last wish is kept
  async ask() {
    this.wanted = true;
    if (this.busy) return;
    this.busy = true;
    const bar = this.find('progress');
    while (this.wanted) {
      this.wanted = null;
      bar.hidden = false;
      try {
        await this.draw(bar);
      } catch (e) {
        this.model = null;
        this.say(`No picture: ${e.message || e}. A reload of the page tries again.`, true);
      }
      bar.hidden = true;
    }
    this.busy = null;
  }

  seed(name) {
    const text = this.find(name).value.trim();
    if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 1n << 64n)
      throw new RangeError(`${text || 'nothing'} is no seed; it takes a whole number from 0 to ${(1n << 64n) - 1n}`);
    return BigInt(text);
  }

  async draw(bar) {
    let seeds;
    try {
      seeds = [this.seed('seed'), this.seed('second')];
    } catch (e) {
      return this.say(`No picture: ${e.message}.`, true);
    }
    const share = this.find('share').value / 100, start = performance.now();
    if (!this.model) {
      this.say('Fetching the network …');
      this.model = await load((done, total) => {
        bar.value = done;
        this.say(`Fetching the network: ${(total / 1e6).toFixed(0)} MB …`);
      });
    }
    const { table, network } = this.model, choice = (k) => this.find(k)?.value;
    const label = Float32Array.from(table.columns, ([k, v]) => choice(k) === v ? 1 : 0), path = [];
    const n = table.shape.reduce((a, b) => a * b), noise = noiseSource(...seeds, share, n);
    this.say('Drawing …');
    const x = await generate(table, network(label), noise, async (row, held, guess) => {
      bar.value = (path.push({ row, held, guess: Float32Array.from(guess) })) / table.steps.length;
      await new Promise((done) => setTimeout(done));  // let the page answer
    }, label.some(Boolean));
    const between = share ? `, ${this.find('share').value} % of the way to seed ${seeds[1]}` : '';
    const asked = [...new Set(table.columns.map(([k]) => choice(k)))].filter(Boolean).join(', ');
    const what = `seed ${seeds[0]}${between}${asked && ` (${asked})`}`;
    this.show(x, path, `A drawn head from ${what}`);
    this.say(`Drawn from ${what} in ${((performance.now() - start) / 1000).toFixed(1)} s.`);
    this.root.dataset.drawn = what;
  }

  show(x, path, what) {
    const { shape, frames } = this.model.table, canvas = this.find('picture');
    paint(canvas, x, shape);
    canvas.setAttribute('aria-label', what);
    this.root.classList.add('draw-done');
    const strip = this.find('strip');
    strip.setAttribute('aria-label', `From noise to the picture in ${frames.length} moments, from left to right: above ` +
      'what the sampler holds, below what the network sees in it');
    const frame = (name, x, sigma, scale) => {
      const o = document.createElement('canvas');
      o.className = name;
      o.title = `σ = ${sigma.toPrecision(2)}`;
      paint(o, x, shape, scale);
      return o;
    };
    strip.replaceChildren(...frames.map((i) => path[i]).flatMap(({ row: { sigma }, held, guess }) => [
      frame('draw-held', held, sigma, (1 + sigma ** 2) ** -.5), frame('draw-guess', guess, sigma, 1)]));
  }
}

if (typeof document !== 'undefined') {
  const root = document.getElementById('draw-one');
  if (root) new Page(root);
}
