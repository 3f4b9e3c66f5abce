// What the page does: see index.html. The parts know nothing of it.

import { BundleError, checkBrowser, checked, damaged, golden, machine, open, sums } from "./bundle.js";
import { bench, beyond, clockStep, compare, pause, softmax } from "./measure.js";
import { decode, fit } from "./pixels.js";
import { RuntimeFiles } from "./runtime_files.js";

const FRAME_PAUSE_MS = 60;
const SHOWN_CLASSES = 5;
const BUTTONS = ["verify", "bench", "camera"];

const one = (id) => document.getElementById(id);
const isolated = self.crossOriginIsolated === true;
const threads = Math.max(1, Number(new URLSearchParams(location.search).get("threads")) || 1);

let bundle; // see bundle.js, open()
let load; // opens the model by the runtime
let run; // raw pixels to logits
let files; // of the runtime
let stream; // of the camera, while it runs

function complain(error) {
  one("problem").hidden = false;
  one("problem").classList.remove("waiting");
  one("what").textContent = `${error.message || error}`;
  one("fix").textContent = error instanceof BundleError ? error.fix : "";
  if (!(error instanceof BundleError)) console.error(error);
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

// Runs one thing at a time, with buttons that say so; what goes wrong is shown, not thrown.
let working = false;
async function busy(work) {
  if (working) return;
  working = true;
  const ready = BUTTONS.filter((id) => !one(id).disabled);
  ready.forEach((id) => (one(id).disabled = true));
  one("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    ready.forEach((id) => (one(id).disabled = false));
    working = false;
  }
}

async function begin() {
  one("problem").className = "waiting";
  checkBrowser();
  // a browser that can do that much may verify: the verdict names what else is wrong
  one("verify").disabled = false;
  if (threads > 1 && !isolated)
    throw new BundleError("threads need a page that is isolated", "serve it with web/serve.py");
  bundle = await open();
  const { student, backend, precision } = bundle.identity;
  document.title = `${student}-${backend}-${precision}`;
  one("title").textContent = document.title;
  showDigests(bundle.identity.digest, bundle.artifact);
  one("what").textContent = "Loading the runtime …";
  await startRuntime();
  one("problem").hidden = true;
  BUTTONS.forEach((id) => (one(id).disabled = false));
}

async function startRuntime() {
  const known = await sums();
  files = new RuntimeFiles(JSON.parse(new TextDecoder().decode(await checked("web/runtime.json", known))));
  const { TITLE, start } = await import("./runtime.js");
  const { image_size: size, channels } = bundle.record;
  const opened = await start(files, threads).catch(unusable("the runtime does not start"));
  load = () => opened(bundle.model, [1, size, size, channels]).catch(unusable("the runtime cannot open the model"));
  run = await load();
  const [[name, version]] = Object.entries(files.versions);
  one("runtime").textContent = `${TITLE} (${name} ${version}), from ${files.from}`;
}

const unusable = (what) => (error) => {
  if (error instanceof BundleError) throw error;
  throw new BundleError(`${what}: ${error.message || error}`, "try a current Chrome, Edge, Firefox or Safari");
};

// --- classify

async function classify(source, name) {
  const image = await decode(source).catch(() => {
    throw new BundleError(`${name} is no image that this browser can read`);
  });
  show(image);
  const pixels = fit(image, bundle.how);
  showSeen(pixels);
  const shares = softmax(await run(pixels));
  const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
  one("classes").replaceChildren(...order.slice(0, SHOWN_CLASSES).map((i) => row(bundle.labels[i], shares[i])));
}

function row(label, share) {
  const item = element("li", "");
  const bar = element("progress", "", { value: share, max: 1, ariaHidden: "true" });
  item.append(bar, element("span", label), element("span", `${(100 * share).toFixed(1)}%`));
  return item;
}

function show(image) {
  const canvas = one("shown");
  one("hint").hidden = true;
  if (stream) return; // the video shows it
  canvas.hidden = false;
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The model's input, enlarged by the browser.
function showSeen(pixels) {
  const { size, channels } = bundle.how, shown = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) shown.data[4 * i + c] = pixels[channels * i + (channels === 1 ? 0 : c)];
    shown.data[4 * i + 3] = 255;
  }
  const canvas = one("seen");
  canvas.width = canvas.height = size;
  canvas.hidden = false;
  canvas.getContext("2d").putImageData(shown, 0, 0);
  one("seen-text").textContent = `what the model sees, ${size} x ${size}`;
}

function take(file) {
  if (!file) return;
  stopCamera();
  busy(async () => {
    if (!run) throw new BundleError("the model is not loaded", "load the page again");
    await classify(file, file.name || "the pasted image");
  });
}

async function startCamera() {
  if (!navigator.mediaDevices) throw new BundleError("this browser lends no camera to this page");
  stream = await navigator.mediaDevices
    .getUserMedia({ video: { facingMode: "environment" }, audio: false })
    .catch((error) => {
      throw new BundleError(`the camera cannot be used: ${error.message}`, "is there one, and is it allowed?");
    });
  const video = one("video");
  video.srcObject = stream;
  await video.play();
  video.hidden = false;
  one("shown").hidden = one("hint").hidden = true;
  one("camera").textContent = "Stop the camera";
  watch(video);
}

async function watch(video) {
  while (stream) {
    if (!working) {
      try {
        await classify(video, "the camera's picture");
      } catch (error) {
        stopCamera();
        complain(error);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, FRAME_PAUSE_MS));
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = undefined;
  one("video").hidden = true;
  one("camera").textContent = "Use the camera";
  one("hint").hidden = !one("shown").hidden;
}

// --- verify

function showDigests(digest, artifact) {
  const rows = [["SHA-256 of the model", artifact], ["SHA-256 of the bundle (of SHA256SUMS)", digest]];
  one("digests").replaceChildren(
    ...rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

// SHA256SUMS, which has to be what it was when the model was opened, if it was.
async function unchanged() {
  const known = await sums();
  if (bundle && bundle.identity.digest !== known.digest)
    throw new BundleError("the bundle has changed since", "load the page again");
  return known;
}

// The record that verify.py writes.
async function verify() {
  const result = { verdict: "FAILED", why: "" };
  let wrong = [];
  try {
    const known = await unchanged();
    wrong = await damaged(known);
    result.bundle = { digest: known.digest };
    result.machine = await machine(one("name").value.trim());
    if (!wrong.length) {
      if (!run) throw new BundleError(one("what").textContent);
      result.bundle = bundle.identity;
      const compared = await compare(run, await golden(known));
      const { tolerances } = bundle.record;
      Object.assign(result, { runtime: files.versions, threads, ...compared, tolerances });
      wrong = beyond(result);
    }
  } catch (error) {
    wrong.push(error.message || `${error}`);
  }
  const by = Object.entries(result.runtime ?? {}).map((one) => one.join(" ")).join(", ");
  result.verdict = wrong.length ? "FAILED" : "PASSED";
  result.why = wrong.join("; ") || `${by} gives the lab's answers in this browser`;
  return result;
}

function showVerdict(result) {
  const passed = result.verdict === "PASSED", limits = result.tolerances;
  one("verdict").hidden = false;
  one("verdict").className = passed ? "passed" : "failed";
  one("verdict").replaceChildren(element("strong", `${result.verdict}:`), ` ${result.why}`);
  one("errors").hidden = !limits;
  if (!limits) return;
  const percent = (share) => `${(100 * share).toFixed(1)}%`, digits = (value) => `${Number(value.toPrecision(3))}`;
  const rows = [
    ["same class as the lab", percent(result.same_argmax), `at least ${percent(limits.min_same_argmax)}`],
    ["right class", percent(result.top1), `${percent(result.golden_top1)} in the lab`],
    ["largest difference of a logit", result.max_logit_error === 0 ? "0, bit for bit" : digits(result.max_logit_error), `at most ${digits(limits.max_logit_error)}`],
    ["mean difference", digits(result.mean_logit_error), `at most ${digits(limits.mean_logit_error)}`],
  ];
  one("errors").tBodies[0].replaceChildren(
    ...rows.map(([name, ...cells]) => {
      const line = element("tr", "");
      line.append(element("th", name, { scope: "row" }), ...cells.map((cell) => element("td", cell)));
      return line;
    }),
  );
}

// --- bench

async function measure() {
  stopCamera();
  const { images } = await golden(await unchanged());
  const tell = (words) => (one("bench-state").textContent = words);
  tell("starting");
  try {
    const times = await bench(load, images, { tell });
    const here = await machine(one("name").value.trim());
    return { bundle: bundle.identity, machine: here, runtime: files.versions, threads, cpus: null, ...times };
  } finally {
    tell("");
  }
}

function showTimes({ latency_ms: times, n }) {
  one("times").hidden = false;
  one("times").replaceChildren(
    ...["p50", "p90", "p99"].map((name) => {
      const cell = element("div", "");
      cell.append(element("strong", `${times[name].toFixed(3)} ms`), element("span", name, { className: "faint" }));
      return cell;
    }),
  );
  one("bench-state").textContent = `${n.toLocaleString("en")} inferences`;
}

function showClock() {
  const all = navigator.hardwareConcurrency || 1, step = clockStep();
  const here = isolated ? "isolated (crossOriginIsolated)" : "not isolated (crossOriginIsolated is false), so without threads";
  one("clock").textContent = `The clock goes in steps of ${step} ms; the page is ${here}. The browser sees ${all} core(s).`;
  for (let count = 1; count <= (isolated ? all : 1); count++)
    one("threads").append(new Option(count, count, count === threads, count === threads));
}

function save(result, kind) {
  const { student, backend, precision } = bundle?.identity ?? { student: "bundle", backend: "web", precision: "" };
  const link = element("a", "", {
    href: URL.createObjectURL(new Blob([`${JSON.stringify(result, null, 2)}\n`], { type: "application/json" })),
    download: `${student}-${backend}-${precision}-${kind}.json`,
  });
  link.click();
}

function offer(kind, result) {
  one(`${kind}-save`).hidden = false;
  one(`${kind}-save`).onclick = () => save(result, kind);
}

one("verify").onclick = () =>
  busy(async () => {
    one("verify-state").textContent = "comparing …";
    await pause();
    const result = await verify();
    one("verify-state").textContent = "";
    showVerdict(result);
    offer("verify", result);
  });
one("bench").onclick = () =>
  busy(async () => {
    const result = await measure();
    showTimes(result);
    offer("bench", result);
  });
one("camera").onclick = () => (stream ? stopCamera() : busy(startCamera));
one("threads").onchange = (event) => (location.search = `?threads=${event.target.value}`);
one("file").onchange = (event) => take(event.target.files[0]);
document.onpaste = (event) => take([...event.clipboardData.files][0]);
document.ondragover = (event) => {
  event.preventDefault();
  one("drop").classList.add("over");
};
document.ondragleave = () => one("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  one("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
};

BUTTONS.forEach((id) => (one(id).disabled = true));
showClock();
begin().catch(complain);
