"""Models as other people make them: a small network through each tool's default flow.

Nothing of this project has a part in them. The network's multiply-accumulates are counted by hand:
8 x 8 positions behind the stem of stride 2.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

STEM, DEPTHWISE, POINTWISE, HEAD = 64 * 16 * 3 * 9, 64 * 16 * 9, 64 * 32 * 16, 32 * 10
MACS = STEM + DEPTHWISE + POINTWISE + HEAD
SHAPE = (1, 3, 16, 16)
TOKENS = 12
ATTENTION = (TOKENS * 64 * 192, 2 * TOKENS * TOKENS * 64, TOKENS * 64 * 64)
"""Projections of queries, keys and values, both products of tokens, the projection behind them."""
FEED_FORWARD = 2 * TOKENS * 64 * 128
TEXT_MACS = sum(ATTENTION) + FEED_FORWARD + 64 * 5


class Images(nn.Module):
    """Full, depthwise and pointwise convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise, self.head = nn.Conv2d(16, 32, 1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(self.pointwise(x)).mean((2, 3)))


class Text(nn.Module):
    """A transformer's encoder layer behind an embedding of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(ids)).mean(1))


def images(count: int = 8) -> list[np.ndarray[Any, Any]]:
    """Noise that calibrates."""
    drawn = [np.random.default_rng(i).normal(size=SHAPE) for i in range(count)]
    return [one.astype(np.float32) for one in drawn]


class Foreign:
    """Makes each model once, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cache  # noqa: B019 - it lives as long as the tests
    def __call__(self, name: str) -> Path:
        """The file of this name, which says the format and the method that makes it."""
        stem, _, suffix = name.partition(".")
        kind = {"onnx": "onnx", "tflite": "tflite", "xml": "ir"}[suffix]
        file = self._folder / name
        with _quiet():
            getattr(self, f"_{kind}_{stem}")(file)
        return file

    def _onnx_images(self, file: Path) -> None:
        torch.manual_seed(0)
        model = Images().eval()
        torch.onnx.export(model, (torch.randn(SHAPE),), file, verbose=False, external_data=False)

    def _onnx_text(self, file: Path) -> None:
        torch.manual_seed(0)
        ids = torch.zeros(1, TOKENS, dtype=torch.int64)
        torch.onnx.export(
            Text().eval(), (ids,), file, verbose=False, external_data=False,
            dynamic_shapes=({0: "batch", 1: "sequence"},),
        )  # fmt: skip

    def _onnx_dynamic(self, file: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(self("images.onnx"), file)

    def _onnx_text_dynamic(self, file: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(self("text.onnx"), file)

    def _onnx_text_4bit(self, file: Path) -> None:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(onnx.load(self("text.onnx")), block_size=32)
        quantizer.process()
        quantizer.model.save_model_to_file(str(file))

    def _onnx_prepared(self, file: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(str(self("images.onnx")), str(file))

    def _onnx_float16(self, file: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(self("prepared.onnx"))), file)

    def _static(self, file: Path, **options: Any) -> None:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Images(CalibrationDataReader):
            def __init__(self) -> None:
                self._rest = iter(images())

            def get_next(self) -> Any:
                one = next(self._rest, None)
                return None if one is None else {"x": one}

        quantize_static(str(self("prepared.onnx")), str(file), Images(), **options)

    def _onnx_qdq(self, file: Path) -> None:
        self._static(file)

    def _onnx_qdq_channels(self, file: Path) -> None:
        self._static(file, per_channel=True)

    def _onnx_qoperator(self, file: Path) -> None:
        from onnxruntime.quantization import QuantFormat

        self._static(file, quant_format=QuantFormat.QOperator)

    def _onnx_int16(self, file: Path) -> None:
        from onnxruntime.quantization import QuantType

        self._static(file, activation_type=QuantType.QUInt16, weight_type=QuantType.QInt8)

    def _onnx_no_depthwise(self, file: Path) -> None:
        self._static(file, nodes_to_exclude=[self._convolution(1)])

    def _onnx_no_pointwise(self, file: Path) -> None:
        self._static(file, nodes_to_exclude=[self._convolution(2)])

    def _onnx_unfused(self, file: Path) -> None:
        """Only inputs of layers are rounded, as TensorRT's tools do: no Q follows a layer."""
        symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                     "AddQDQPairToWeight": True, "OpTypesToExcludeOutputQuantization":
                     ["Conv", "Gemm", "Relu"]}  # fmt: skip
        self._static(file, per_channel=True, op_types_to_quantize=["Conv"], extra_options=symmetric)

    def _convolution(self, place: int) -> str:
        nodes = onnx.load(self("prepared.onnx")).graph.node
        return str([node.name for node in nodes if node.op_type == "Conv"][place])

    def _tflite_images(self, file: Path) -> None:
        import litert_torch

        torch.manual_seed(0)
        litert_torch.convert(Images().eval(), (torch.randn(SHAPE),)).export(str(file))

    def _quantized(self, file: Path, recipe: Any) -> None:
        from ai_edge_quantizer.quantizer import Quantizer

        quantizer = Quantizer(str(self("images.tflite")))
        quantizer.load_quantization_recipe(recipe)
        ranges = None
        if quantizer.need_calibration:
            samples = [{"args_0": one} for one in images()]
            ranges = quantizer.calibrate({"serving_default": samples})
        quantizer.quantize(ranges).export_model(str(file), overwrite=True)

    def _tflite_dynamic(self, file: Path) -> None:
        from ai_edge_quantizer import recipe

        self._quantized(file, recipe.dynamic_wi8_afp32())

    def _tflite_weights(self, file: Path) -> None:
        from ai_edge_quantizer import recipe

        self._quantized(file, recipe.weight_only_wi8_afp32())

    def _tflite_static(self, file: Path) -> None:
        from ai_edge_quantizer import recipe

        self._quantized(file, recipe.static_wi8_ai8())

    def _tflite_int16(self, file: Path) -> None:
        from ai_edge_quantizer import recipe

        self._quantized(file, recipe.static_wi8_ai16())

    def _tflite_float16(self, file: Path) -> None:
        from ai_edge_quantizer.recipe_manager import RecipeManager

        manager = RecipeManager()
        manager.add_weight_only_config(".*", "*", num_bits=16, algorithm_key="float_casting")
        self._quantized(file, manager.get_quantization_recipe())

    def _tflite_no_depthwise(self, file: Path) -> None:
        from ai_edge_quantizer.recipe_manager import RecipeManager

        manager = RecipeManager()
        manager.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
        manager.add_quantization_config(".*", "DEPTHWISE_CONV_2D", algorithm_key="no_quantize")
        self._quantized(file, manager.get_quantization_recipe())

    def _ir_images(self, file: Path) -> None:
        self._save(self._converted("images.onnx"), file, compress_to_fp16=False)

    def _ir_half(self, file: Path) -> None:
        self._save(self._converted("images.onnx"), file)

    def _ir_ptq(self, file: Path) -> None:
        import nncf

        model = self._converted("images.onnx")
        self._save(nncf.quantize(model, nncf.Dataset(images())), file)

    def _ir_no_pointwise(self, file: Path) -> None:
        import nncf

        model = self._converted("images.onnx")
        nodes = [n for n in model.get_ordered_ops() if n.get_type_name() == "Convolution"]
        ignored = nncf.IgnoredScope(names=[nodes[-1].get_friendly_name()])
        self._save(nncf.quantize(model, nncf.Dataset(images()), ignored_scope=ignored), file)

    def _ir_text_weights(self, file: Path) -> None:
        import nncf

        self._save(nncf.compress_weights(self._converted("text.onnx")), file)

    def _ir_text_4bit(self, file: Path) -> None:
        import nncf

        mode = nncf.CompressWeightsMode.INT4_SYM
        model = self._converted("text.onnx")
        self._save(nncf.compress_weights(model, mode=mode, group_size=32, all_layers=True), file)

    def _converted(self, name: str) -> Any:
        import openvino

        return openvino.convert_model(str(self(name)))

    @staticmethod
    def _save(model: Any, file: Path, **options: Any) -> None:
        import openvino

        openvino.save_model(model, file, **options)


Make = Callable[[str], Path]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' progress and warnings."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
