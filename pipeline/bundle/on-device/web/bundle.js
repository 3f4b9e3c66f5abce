// The bundle around this page: its files and their digests, the golden images, this machine.

const AGAIN = "copy the bundle here again";
const SUMS = "SHA256SUMS";

// What the user can mend: what is wrong, and what to do about it.
export class BundleError extends Error {
  constructor(what, fix = "") {
    super(what);
    this.fix = fix;
  }
}

// Throws for a browser that can run nothing of this.
export function checkBrowser() {
  if (typeof WebAssembly !== "object")
    throw new BundleError(
      "this browser has no WebAssembly",
      "use a newer one, or allow it: some protective modes turn it off",
    );
  if (!self.crypto?.subtle)
    throw new BundleError(
      "the browser computes no digests here and lends no camera, because this address is not secure",
      "open http://localhost:PORT/web/ on the machine that serves it, or serve it by HTTPS: " +
        "serve.py --certificate; an Android phone reaches localhost after `adb reverse`",
    );
}

// Bytes of a file of the bundle; null where there is none.
export async function file(name) {
  let answer;
  try {
    answer = await fetch(new URL(`../${name}`, import.meta.url), { cache: "no-store" });
  } catch {
    throw new BundleError(`${name} does not come`, "is serve.py still running? load the page again");
  }
  if (answer.status === 404) return null;
  if (!answer.ok) throw new BundleError(`${name}: the server says ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const text = (bytes) => new TextDecoder().decode(bytes);

// SHA256SUMS: digests by file, and its own, which stands for the whole bundle.
export async function sums() {
  const bytes = await file(SUMS);
  if (!bytes) throw new BundleError(`${SUMS} is missing`, AGAIN);
  const lines = text(bytes).split("\n").filter(Boolean);
  return {
    digests: new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)])),
    digest: await sha256(bytes),
  };
}

async function wrong(name, digest) {
  const bytes = await file(name);
  if (!bytes) return `${name} is missing`;
  return (await sha256(bytes)) === digest ? "" : `${name} is not the file that was bundled`;
}

// Differences from SHA256SUMS, a sentence each, as verify.py finds them.
export async function damaged({ digests }) {
  const found = digests.has("verify.py") ? [] : [`${SUMS} is cut short`]; // the last line of all
  for (const [name, digest] of digests) found.push(await wrong(name, digest));
  return found.filter(Boolean);
}

// Bytes of a file that has the digest of SHA256SUMS.
export async function checked(name, { digests }) {
  const bytes = await file(name);
  if (!bytes) throw new BundleError(`${name} is missing`, AGAIN);
  if ((await sha256(bytes)) !== digests.get(name))
    throw new BundleError(`${name} is not the file that was bundled`, AGAIN);
  return bytes;
}

// bundle.json, preprocess.json, the classes, the model, and how results name this bundle.
export async function open() {
  const known = await sums();
  const [record, how] = await Promise.all(
    ["bundle.json", "preprocess.json"].map(async (name) => JSON.parse(text(await checked(name, known)))),
  );
  const labels = text(await checked("labels.txt", known)).replace(/\n$/, "").split("\n");
  const model = await checked(record.model_file, known);
  const { student, backend, precision } = record;
  const identity = { student, backend, precision, digest: known.digest };
  return { record, how, labels, model, identity, artifact: known.digests.get(record.model_file) };
}

// golden.npz: images Uint8Array [N, H, W, C], labels [N], logits Float32Array [N, classes].
export async function golden(known) {
  const bytes = await checked("golden.npz", known);
  try {
    const arrays = await unzip(bytes);
    const [images, labels, logits] = ["images", "labels", "logits"].map((name) => npy(arrays.get(`${name}.npy`)));
    const count = images.shape[0];
    const split = ({ data }) => {
      const each = data.length / count;
      return Array.from({ length: count }, (_, i) => data.slice(i * each, (i + 1) * each));
    };
    return { images: split(images), labels: Array.from(labels.data, Number), logits: split(logits) };
  } catch (error) {
    throw new BundleError(`golden.npz holds no golden images: ${error.message}`, AGAIN);
  }
}

// Files of a zip archive, stored or deflated (PKWARE APPNOTE 4.3), by name. Sizes come from the
// central directory: NumPy leaves them out of the headers in front of the files.
async function unzip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let end = bytes.length - 22;
  while (end > 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const method = view.getUint16(at + 10, true), size = view.getUint32(at + 20, true);
    const name = text(bytes.subarray(at + 46, at + 46 + view.getUint16(at + 28, true)));
    const head = view.getUint32(at + 42, true);
    const start = head + 30 + view.getUint16(head + 26, true) + view.getUint16(head + 28, true);
    const content = bytes.slice(start, start + size);
    if (method !== 0 && method !== 8) throw new Error(`${name} is compressed by method ${method}`);
    files.set(name, method === 0 ? content : await inflate(content));
    at += 46 + [28, 30, 32].reduce((sum, field) => sum + view.getUint16(at + field, true), 0);
  }
  return files;
}

async function inflate(bytes) {
  if (typeof DecompressionStream === "undefined")
    throw new Error("it is compressed, and this browser is too old for that");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const TYPES = { "|u1": Uint8Array, "<i8": BigInt64Array, "<f4": Float32Array };

// Data and shape of an .npy file of version 1 to 3, in C order.
function npy(bytes) {
  if (!bytes || text(bytes.subarray(1, 6)) !== "NUMPY") throw new Error("an array is missing");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const start = bytes[6] === 1 ? 10 : 12;
  const end = start + (bytes[6] === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  const header = text(bytes.subarray(start, end));
  const type = TYPES[/'descr': '([^']+)'/.exec(header)?.[1]];
  if (!type || !header.includes("'fortran_order': False")) throw new Error(`an array is ${header}`);
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)[1].split(",").filter((one) => one.trim()).map(Number);
  return { data: new type(bytes.buffer.slice(bytes.byteOffset + end)), shape };
}

// This machine as far as a browser tells: never its CPU. `name`: what the user calls it, or nothing.
export async function machine(name = "") {
  const agent = navigator.userAgent, data = navigator.userAgentData;
  const its = await data?.getHighEntropyValues(["architecture", "bitness", "fullVersionList", "model"]);
  const found = {
    browser: "a browser",
    browser_version: "unknown",
    model: name || its?.model || undefined,
    architecture: [its?.architecture, its?.bitness].filter(Boolean).join("_") || undefined,
    cores: navigator.hardwareConcurrency || undefined,
    system: data?.platform || /\((?:X11; )?([^;)]+)/.exec(agent)?.[1],
  };
  const brands = (its?.fullVersionList ?? []).filter(({ brand }) => !/not.*brand/i.test(brand));
  const brand = brands.find(({ brand }) => brand !== "Chromium") ?? brands[0];
  const older = [
    [/(?:Firefox|FxiOS)\/([\d.]+)/, "Firefox"],
    [/(?:Edg|EdgA|EdgiOS)\/([\d.]+)/, "Microsoft Edge"],
    [/(?:Chrome|CriOS)\/([\d.]+)/, "Chrome"],
    [/Version\/([\d.]+).* Safari\//, "Safari"],
  ].find(([pattern]) => pattern.test(agent));
  if (brand) [found.browser, found.browser_version] = [brand.brand, brand.version];
  else if (older) [found.browser, found.browser_version] = [older[1], older[0].exec(agent)[1]];
  return found;
}
