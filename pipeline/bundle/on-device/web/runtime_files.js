// The npm packages that runtime.json pins: from web/runtime/ where serve.py --fetch has put them, or
// else from a CDN. Either way the browser compares each file with its digest before it is used.

import { BundleError } from "./bundle.js";

const CDN = "https://cdn.jsdelivr.net/npm";
const TYPES = { js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm" };

export class RuntimeFiles {
  constructor(pins) {
    this.pins = pins;
    this.from = "";
  }

  // Version of the package that runs the model, by its name; the others only serve it.
  get versions() {
    const [[name, { version }]] = Object.entries(this.pins.packages);
    return { [name]: version };
  }

  async bytes(file) {
    const integrity = this.pins.files[file];
    const name = /^(@[^/]+\/)?[^/]+/.exec(file)[0];
    const online = `${CDN}/${name}@${this.pins.packages[name].version}${file.slice(name.length)}`;
    for (const [from, url] of [["web/runtime/", new URL(`runtime/${file}`, import.meta.url)], [CDN, online]]) {
      const answer = await this.get(url, integrity, file, from);
      if (answer) return answer;
    }
  }

  async get(url, integrity, file, from) {
    const local = from !== CDN;
    let answer;
    try {
      answer = await fetch(url, local ? {} : { mode: "cors", credentials: "omit" });
      if (answer.ok) {
        const found = await answer.arrayBuffer();
        const digest = new Uint8Array(await crypto.subtle.digest("SHA-384", found));
        if (`sha384-${btoa(String.fromCharCode(...digest))}` !== integrity)
          throw new BundleError(`${file} from ${from} is not the file that runtime.json names`, FETCH);
        this.from = from;
        return found;
      }
    } catch (error) {
      if (error instanceof BundleError) throw error;
      answer = { status: error.message };
    }
    if (local && answer.status === 404) return null;
    throw new BundleError(`${file} does not come from ${from}: ${answer.status}`, FETCH);
  }

  async text(file) {
    return new TextDecoder().decode(await this.bytes(file));
  }

  // A URL under which the browser runs the very bytes that were checked.
  async url(file) {
    return asUrl(await this.bytes(file), file.split(".").pop());
  }
}

const FETCH = "fetch the runtime once with `python web/serve.py --fetch`, for use without a network";

export const asUrl = (content, ending = "js") =>
  URL.createObjectURL(new Blob([content], { type: TYPES[ending] }));
