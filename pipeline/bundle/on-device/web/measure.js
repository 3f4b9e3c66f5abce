// What verify.py and bench.py measure, in a browser: the same figures under the same names.

export const ROUNDS = 20, MIN_RUNS = 10, MIN_MS = 50; // as bench.py does by default
const WAKE_RUNS = 5, WINDOWS = 4, WINDOW_RUNS = 5, WINDOW_MS = 50, STEADY = 0.05, WARM_UP_MS = 3000;
const OVERHEAD_RUNS = 20000;
const FEWEST_STEPS = 4; // of the clock in a median, below which it says too little

// Lets the browser draw, and its clock's timers run.
export const pause = () => new Promise((resolve) => setTimeout(resolve));

export const argmax = (values) => values.indexOf(values.reduce((a, b) => (b > a ? b : a), -Infinity));

export function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, (one) => Math.exp(one - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((one) => one / sum);
}

// The golden images, one by one, beside the logits that belong to them; see verify.py.
export async function compare(run, { images, labels, logits }) {
  const count = images.length;
  let same = 0, right = 0, lab = 0, largest = 0, sum = 0, values = 0;
  for (let i = 0; i < count; i++) {
    const answer = await run(images[i]);
    if (answer.length !== logits[i].length) throw new Error(`the model gives ${answer.length} logits`);
    same += argmax(answer) === argmax(logits[i]);
    right += argmax(answer) === labels[i];
    lab += argmax(logits[i]) === labels[i];
    for (let k = 0; k < answer.length; k++, values++) {
      const error = Math.abs(answer[k] - logits[i][k]);
      sum += error;
      if (!(error <= largest)) largest = error; // a NaN stays
    }
  }
  return {
    images: count,
    same_argmax: same / count,
    max_logit_error: Number.isNaN(sum) ? NaN : largest,
    mean_logit_error: sum / values,
    top1: right / count,
    golden_top1: lab / count,
  };
}

// What exceeds the tolerances, a sentence each; a logit that is not a number does.
export function beyond(result) {
  const limits = result.tolerances, found = [];
  if (!(result.same_argmax >= limits.min_same_argmax))
    found.push(`the class is the lab's on ${(100 * result.same_argmax).toFixed(1)}% of the images only`);
  for (const key of ["max_logit_error", "mean_logit_error"])
    if (!(result[key] <= limits[key]))
      found.push(`${key.replaceAll("_", " ")} is ${Number(result[key].toPrecision(3))}, beyond ${limits[key]}`);
  return found;
}

// The smallest step of performance.now() that shows in a tenth of a second, in milliseconds.
export function clockStep() {
  let smallest = Infinity, last = performance.now();
  const end = last + 100;
  while (last < end) {
    const now = performance.now();
    if (now > last) smallest = Math.min(smallest, now - last);
    last = now;
  }
  return round6(smallest);
}

const round6 = (value) => Number(value.toFixed(6));

function quantile(sorted, share) {
  const place = share * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function percentiles(times) {
  const sorted = Float64Array.from(times).sort();
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((share) => round6(quantile(sorted, share)));
  return { p50, p90, p99 };
}

// Times one inference after the other in milliseconds, as harness.py does.
class Harness {
  constructor(run, images) {
    this.run = run;
    this.images = images;
    this.next = 0;
  }

  async once() {
    const image = this.images[this.next];
    this.next = (this.next + 1) % this.images.length;
    const start = performance.now();
    await this.run(image);
    return performance.now() - start;
  }

  async round(minRuns, minMs) {
    for (let i = 0; i < WAKE_RUNS; i++) await this.once();
    const times = [], start = performance.now();
    // by the clock and not by the sum of the times, which may be 0 on a coarse clock
    while (times.length < minRuns || performance.now() - start < minMs) times.push(await this.once());
    return times;
  }

  // Runs until the medians of the last windows agree.
  async warmUp() {
    const medians = [], start = performance.now();
    let inferences = 0;
    for (;;) {
      const window = [], began = performance.now();
      while (window.length < WINDOW_RUNS || performance.now() - began < WINDOW_MS) window.push(await this.once());
      inferences += window.length;
      medians.push(percentiles(window).p50);
      await pause();
      const last = medians.slice(-WINDOWS);
      if (last.length < WINDOWS) continue;
      const steady = Math.max(...last) <= (1 + STEADY) * Math.min(...last);
      if (steady || performance.now() - start >= WARM_UP_MS) return { inferences, steady };
    }
  }
}

// Percentiles over all rounds after a warm-up; `load` opens the model. See bench.py.
export async function bench(load, images, { rounds = ROUNDS, tell = () => {} } = {}) {
  const step = clockStep(), start = performance.now();
  const run = await load();
  const load_ms = round6(performance.now() - start);
  try {
    const harness = new Harness(run, images);
    const first_ms = round6(await harness.once());
    tell("warming up");
    const warm_up = await harness.warmUp();
    const times = [];
    for (let i = 0; i < rounds; i++) {
      tell(`round ${i + 1} of ${rounds}`);
      await pause();
      times.push(await harness.round(MIN_RUNS, MIN_MS));
    }
    const latency_ms = percentiles(times.flat());
    if (!(latency_ms.p50 >= FEWEST_STEPS * step))
      throw new Error(
        `this browser's clock goes in steps of ${step} ms, which is too coarse for an inference of about ` +
          `${latency_ms.p50} ms; ${self.crossOriginIsolated ? "another browser may have a finer one" : "serve the page with serve.py, which isolates it: the clock is finer then"}`,
      );
    const idle = new Harness(async () => null, images), began = performance.now();
    for (let i = 0; i < OVERHEAD_RUNS; i++) await idle.once();
    return {
      rounds,
      n: times.flat().length,
      latency_ms,
      p90_interval_ms: null,
      p50_by_round_ms: times.map((one) => percentiles(one).p50),
      load_ms,
      first_ms: Math.max(first_ms, step),
      warm_up,
      overhead_ns: Math.round(((performance.now() - began) / OVERHEAD_RUNS) * 1e6),
      clock_step_ms: step,
      cross_origin_isolated: self.crossOriginIsolated,
    };
  } finally {
    run.close();
  }
}
