// Opens an ONNX model by onnxruntime-web in a browser, on the CPU.

export const TITLE = "ONNX Runtime Web";

const DIST = "onnxruntime-web/dist";

// Loads the runtime. Returns a function that opens a model for images of one shape [1, H, W, C]:
// it gives a function of raw pixels Uint8Array to logits Float32Array, which has `close`.
export async function start(files, threads) {
  const ort = await import(await files.url(`${DIST}/ort.wasm.min.mjs`));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: await files.url(`${DIST}/ort-wasm-simd-threaded.mjs`) };
  ort.env.wasm.wasmBinary = await files.bytes(`${DIST}/ort-wasm-simd-threaded.wasm`);
  const options = {
    executionProviders: ["wasm"],
    logSeverityLevel: 3,
    // as session.py: float layers of an int8 model stay in float
    extra: { optimization: { disable_specified_optimizers: "WeightBiasQuantization" } },
  };
  return async function load(content, shape) {
    const session = await ort.InferenceSession.create(content, options);
    const run = async (pixels) => {
      const { logits } = await session.run({ image: new ort.Tensor("uint8", pixels, shape) });
      return logits.data;
    };
    run.close = () => session.release();
    return run;
  };
}
