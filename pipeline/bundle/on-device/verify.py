try:
    from common import (
        FOLDER,
        BundleError,
        bundle_digest,
        damaged,
        finish,
        golden,
        identity,
        machine,
        one_line,
        open_model,
        record,
        write_json,
    )
except Exception as error:  # whatever a damaged file raises
    raise SystemExit(f"FAILED: common.py is damaged: {error}; copy the bundle here again") from None
# Now that common.py is imported, this script has exit code 1 unless its last line is reached. No
# docstring stands above: a copy that is cut off behind it would be a script that passes.

# Compares this machine's logits with the recorded ones. One verdict, exit code 0 or 1.
#
#     python verify.py [--json FILE]
#
# First every file is compared with SHA256SUMS, then the logits of the golden images, one by one,
# with those that the same model gave in the lab, within the tolerances of bundle.json.

import argparse
from pathlib import Path
from typing import Any, Dict, List

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare this machine's answers with the lab's.")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU; 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    if (FOLDER / "graph.py").exists():
        parser.add_argument(
            "--graph", action="store_const", const="graph", default="runtime", dest="module",
            help="run the same graph on the CPU, by the packages that README.md names",
        )  # fmt: skip
    parser.set_defaults(module="runtime")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error("--threads is at least 1")
    result = verify(arguments.threads, arguments.module)
    for line in _lines(result):
        print(line)
    print(f"{result['verdict']}: {result['why']}")
    if arguments.json:
        write_json(arguments.json, result)
    return 0 if result["verdict"] == "PASSED" else 1


def verify(threads: int, module: str) -> Dict[str, Any]:
    """The verdict, the reason, and the figures that it follows from."""
    result: Dict[str, Any] = {"verdict": "FAILED", "why": ""}
    wrong: List[str] = []
    try:
        found = damaged()
        wrong = list(found.values())
        result["bundle"] = {"digest": bundle_digest()}
        if "harness.py" not in found:
            result["machine"] = machine()
        if not found:
            result["bundle"] = identity()
            result.update(compare(threads, module))
            wrong = _beyond(result)
    except BundleError as error:
        wrong.append(str(error))
    what = ", ".join(f"{k} {v}" for k, v in result.get("runtime", {}).items())
    result["verdict"] = "FAILED" if wrong else "PASSED"
    result["why"] = "; ".join(wrong) or f"{what} gives the lab's answers on this machine"
    return result


def compare(threads: int, module: str) -> Dict[str, Any]:
    """The golden images, one by one, beside the logits that belong to them."""
    images, labels, expected = golden()
    run, versions = open_model(threads, module)
    try:
        logits = np.concatenate([run(images[i : i + 1]) for i in range(len(images))])
    except Exception as error:  # each runtime has its own
        raise BundleError(f"the runtime fails on a golden image: {one_line(error)}") from error
    errors = np.abs(logits.astype(np.float64) - expected)
    return {
        "runtime": versions,
        "threads": threads,
        "images": len(images),
        "same_argmax": float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "max_logit_error": float(errors.max()),
        "mean_logit_error": float(errors.mean()),
        "top1": float((logits.argmax(axis=1) == labels).mean()),
        "golden_top1": float((expected.argmax(axis=1) == labels).mean()),
        "tolerances": record()["tolerances"],
    }


def _beyond(result: Dict[str, Any]) -> List[str]:
    """What exceeds the tolerances; a logit that is not a number does."""
    limits, found = result["tolerances"], []
    if not result["same_argmax"] >= limits["min_same_argmax"]:
        found.append(f"the class is the lab's on {result['same_argmax']:.1%} of the images only")
    for key in ("max_logit_error", "mean_logit_error"):
        if not result[key] <= limits[key]:
            found.append(f"{key.replace('_', ' ')} is {result[key]:.3g}, beyond {limits[key]:.3g}")
    return found


def _lines(result: Dict[str, Any]) -> List[str]:
    if "runtime" not in result:
        return []
    bundle, limits = result["bundle"], result["tolerances"]
    runtime = ", ".join(f"{name} {version}" for name, version in result["runtime"].items())
    rows = (
        ("same class", f"{result['same_argmax']:.1%}", f"at least {limits['min_same_argmax']:.1%}"),
        ("right class", f"{result['top1']:.1%}", f"{result['golden_top1']:.1%} in the lab"),
        *(
            (key.replace("_", " "), f"{result[key]:.3g}", f"at most {limits[key]:.3g}")
            for key in ("max_logit_error", "mean_logit_error")
        ),
    )
    return [
        "{student} for {backend}, {precision}; bundle {digest}".format(**bundle),
        "{cpu}, kernel {kernel}, python {python}, numpy {numpy}".format(**result["machine"]),
        f"{result['images']} images by {runtime}",
        *(f"  {name:16}  {value:>8}, {limit}" for name, value, limit in rows),
    ]


if __name__ == "__main__":
    finish(main)
