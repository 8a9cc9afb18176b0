"""Static int8 quantisation of ONNX graphs; needs the package `onnx`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)


def quantised(
    proto: onnx.ModelProto,
    reader: CalibrationDataReader | None,
    *,
    operators: Sequence[str],
    excluded: Sequence[str],
    method: CalibrationMethod = CalibrationMethod.MinMax,
    ranges: Path | None = None,
) -> onnx.ModelProto:
    """A graph whose `operators` run in int8 (QDQ, one scale per output channel), with the same metadata.

    Nodes with a name in `excluded` stay in float. The ranges of the activations are measured on what `reader`
    yields and kept in the file `ranges`, or read from it if it is there. Weights have 7 bits: with 8 bits,
    sums of U8 x S8 products saturate on processors with AVX2 and without VNNI, and a convolution silently
    returns a wrong value.
    """
    inferred = onnx.shape_inference.infer_shapes(proto)
    # The quantiser asks for its own preprocessing; shape inference is the part that it needs.
    onnx.helper.set_model_props(inferred, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "int8.onnx")
        quantize_static(
            inferred,
            built,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=list(excluded),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            calibration_cache_path=ranges,
        )
        result = onnx.load(built)
    onnx.helper.set_model_props(result, {prop.key: prop.value for prop in proto.metadata_props})
    onnx.checker.check_model(result)
    return result
