"""How to use a bundle, the first part of its README.md, for readers new to this project."""

from __future__ import annotations

from pipeline.backends.base.registry import backend
from pipeline.bundle.records import Bundle
from pipeline.data.recall import interval

_BROWSER = """
## In a browser

```sh
python web/serve.py            # then open the address that it prints
python web/serve.py --fetch    # once, for use without a network
```

The page classifies photos and the camera's picture, verifies as verify.py does, and measures; its
JSON is imported like the scripts'. The runtime comes from a CDN or, after --fetch, from
web/runtime/; web/runtime.json pins its packages by digest.
"""


def readme(bundle: Bundle) -> str:
    """The part on its use, for readers who do not know this project."""
    shape = f"[N, {bundle.image_size}, {bundle.image_size}, {bundle.channels}]"
    colour = "grey" if bundle.channels == 1 else "RGB"
    limits, golden = bundle.tolerances, bundle.golden
    its = backend(bundle.backend)
    square = f"{bundle.image_size}x{bundle.image_size}x{bundle.channels}"
    graph = bundle.install.get("graph", ("",))[0]
    return f"""# {bundle.student}, {bundle.precision}, for {its.title}

An image classifier of {len(bundle.classes)} classes (labels.txt).

- top-1 {bundle.top1:.4f} on {bundle.test_images:,} test images, taken with {bundle.evaluated_with};
  95% interval {interval(bundle.top1, bundle.test_images)}
- the float network has {bundle.top1 + bundle.top1_drop:.4f}
- everything else about it: bundle.json

It needs Python, NumPy, and the runtime:

```sh
{_install(bundle)}
```
{_proven(bundle)}{its.before_use.format(shape=square, graph=graph)}
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
{_BROWSER if "web/runtime.js" in its.bundle_files() else ""}{its.after_use}
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


def _proven(bundle: Bundle) -> str:
    """The table of versions; empty for a backend that has none."""
    if not bundle.proven:
        return ""
    pythons: dict[str, list[str]] = {}
    for python, pin in bundle.proven.items():
        pythons.setdefault(pin.replace("==", " "), []).append(python)
    script = "verify.py --graph" if "graph" in bundle.install else "verify.py"
    said = f"Bundles of this kind passed `{script}` in clean environments of these, on x86-64:"
    table = ["| Python | verified with |", "| --- | --- |"]
    table += [f"| {', '.join(found)} | {pin} |" for pin, found in pythons.items()]
    return "\n".join(["", said, "", *table, ""])
