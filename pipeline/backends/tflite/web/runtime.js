// Opens a .tflite model by LiteRT.js in a browser, on the CPU.

import { asUrl } from "./runtime_files.js";

export const TITLE = "LiteRT.js";

// Loads the runtime. Returns a function that opens a model for images of one shape [1, H, W, C]:
// it gives a function of raw pixels Uint8Array to logits Float32Array, which has `close`.
export async function start(files, threads) {
  const utilities = JSON.stringify(await files.url("@litertjs/wasm-utils/dist/bundle.js"));
  const source = await files.text("@litertjs/core/dist/index.js");
  const litert = await import(asUrl(source.replace('"@litertjs/wasm-utils"', utilities)));
  const relaxed = await litert.supportsFeature("relaxedSimd");
  if (threads > 1 && !relaxed) throw new Error("this browser lacks relaxed SIMD, which threads need");
  const kind = threads > 1 ? "threaded_" : relaxed ? "" : "compat_";
  const name = `@litertjs/core/wasm/litert_wasm_${kind}internal`;
  const script = await files.url(`${name}.js`);
  self.Module = {
    wasmBinary: await files.bytes(`${name}.wasm`),
    mainScriptUrlOrBlob: script, // which threads run
    print: () => {},
    printErr: () => {},
  };
  await litert.loadLiteRt(`${script}#.js`); // takes what ends otherwise for a folder
  const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
  return async function load(content, shape) {
    const model = await litert.loadAndCompile(content, options);
    const run = async (pixels) => {
      const image = new litert.Tensor(pixels, shape);
      const [logits] = await model.run([image]);
      const found = logits.toTypedArray();
      image.delete();
      logits.delete();
      return found;
    };
    run.close = () => model.delete();
    return run;
  };
}
