"""README.md of a bundle: for whoever ships it, who has never seen this project."""

from __future__ import annotations

from pipeline.deliver.bundle_record import Bundle
from pipeline.deliver.results import RUNTIME_NAMES


def readme(bundle: Bundle) -> str:
    """Markdown: what it is, how to run, verify and time it, and what goes in and out."""
    shape = f"[N, {bundle.image_size}, {bundle.image_size}, {bundle.channels}]"
    colour = "grey" if bundle.channels == 1 else "RGB"
    limits, golden = bundle.tolerances, bundle.golden
    return f"""# {bundle.student}, {bundle.precision}, for {RUNTIME_NAMES[bundle.backend]}

An image classifier of {len(bundle.classes)} classes (labels.txt).

- top-1 {bundle.top1:.4f} on {bundle.test_images:,} test images, taken with {bundle.evaluated_with}
- the float network has {bundle.top1 + bundle.top1_drop:.4f}
- everything else about it: bundle.json

It needs Python 3.8 or newer, NumPy, and the runtime:

```sh
{_install(bundle)}
```
{_before(bundle)}
## Use

```sh
python verify.py               # are these the answers that the lab saw? exit code 0 or 1
python run.py photo.jpg        # classes with probabilities; image files need Pillow
python run.py pixels.npy       # an array, uint8 {shape}
python bench.py --threads 1    # latency of one inference, raw pixels to logits, and throughput
sha256sum --check SHA256SUMS   # the files alone
```

With `--json` run.py prints, and with `--json FILE` verify.py and bench.py write, results that
name the bundle's digest, the SHA-256 of SHA256SUMS; the latter two name this machine as well.
{_phone(bundle)}
## Input and output

- `image`: uint8 {shape}, raw {colour} pixels in [0, 255]. Normalisation is inside the
  model: do not normalise. From image files to pixels: preprocess.json.
- `logits`: float32 [N, {len(bundle.classes)}]; the largest is the class of that line in labels.txt,
  softmax gives probabilities.

## What verify.py compares

First every file with SHA256SUMS. Then the {golden.images} test images of golden.npz, one by one,
with the logits that this model gave through {golden.answered_by} (CPU: {golden.cpu}).
PASSED means:

- the same class on at least {limits.min_same_argmax:.0%} of them,
- no logit further off than {limits.max_logit_error:g}, and {limits.mean_logit_error:g} in the mean.

Why not less: {limits.reason}.
"""


def _install(bundle: Bundle) -> str:
    """One command a line, alternatives as comments."""
    first, *others = bundle.install["runtime"]
    return "\n".join([first, *(f"# or {other}" for other in others)])


def _before(bundle: Bundle) -> str:
    """What has to be done before the first run: TensorRT builds its engine on the device."""
    if bundle.backend != "tensorrt":
        return ""
    shape = f"{bundle.image_size}x{bundle.image_size}x{bundle.channels}"
    return f"""
A Jetson has TensorRT from JetPack (6.1 or newer). Beside it CUDA's driver is all that is needed.
Then, on the GPU that will run it:

```sh
python build_engine.py         # model.engine from model.onnx; timing.cache makes the next faster
```

trtexec builds the same engine and times it (TensorRT 11 ignores `--stronglyTyped`):

```sh
trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped \\
  --timingCacheFile=timing.cache \\
  --minShapes=image:1x{shape} --optShapes=image:1x{shape} --maxShapes=image:8x{shape}
trtexec --loadEngine=model.engine --shapes=image:1x{shape} --useCudaGraph --noDataTransfers \\
  --useSpinWait
```

Without a GPU, `python verify.py --graph` replays the graph that the engine is built from, on the
CPU (`{bundle.install["graph"][0]}`).
"""


def _phone(bundle: Bundle) -> str:
    """How a LiteRT bundle gets onto a phone, which has no Python."""
    if bundle.backend != "tflite":
        return ""
    return """
## On a phone

```sh
python phone.py --benchmark-model benchmark_model --units cpu,gpu,npu --json result.json
```

pushes the model to an Android phone by `adb`, where the phone's own SHA-256 of it differs, and
times it there with LiteRT's `benchmark_model`
(<https://developers.google.com/edge/litert/next/benchmark>). What the GPU or NPU did not take is
not reported as theirs.

examples/ classifies an image with LiteRT in Kotlin (Classifier.kt), Swift (Classifier.swift) and
C++ (classifier.cc); your app needs model.tflite, labels.txt and preprocess.json. Each resizes with
Pillow 13's arithmetic and says what its platform's decoder may change. C++ and Kotlin gave Pillow's
pixels bit for bit; Swift has not been compiled yet. model.tflite has labels.txt and TFLite metadata
inside, too.
"""
