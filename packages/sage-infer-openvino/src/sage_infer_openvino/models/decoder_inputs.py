"""A decoder's inputs, and the nodes derived from positions: rotary embeddings and masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sage_infer_openvino.models.decoder_weights import DecoderConfig
from sage_infer_openvino.models.graph_nodes import dimension, f32, i64, parameter, scaled
from sage_infer_openvino.ov_runtime import ops, ov

__all__ = ["DecoderInputs"]


class DecoderInputs:
    """The ``parameters`` of the stateful form (see ``decoder_graph``), and ``masks`` by window size, 0 for none."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.ids = parameter("input_ids", [-1, -1], ov.Type.i64)
        self.mask = parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beam = parameter("beam_idx", [-1], ov.Type.i32)
        self.parameters = [self.ids, self.mask, self.positions, self.beam]
        self.batch = dimension(self.ids, 0)
        self.masks = {window: self._causal_mask(window) for window in set(config.windows or (0,))}
        kinds = {self._is_local(layer) for layer in range(config.num_layers)}
        self._tables = {local: self._rotary_tables(local) for local in kinds}

    def rotate(self, x: Any, layer: int) -> Any:
        """Apply the layer's rotary embedding to ``[batch, heads, tokens, head_dim]``, with rotated halves (Hugging
        Face's order).
        """
        config = self.config
        if layer in config.unrotated_layers:
            return x
        cos, sin = self._tables[self._is_local(layer)]
        width = config.rotary_dim or config.head_dim
        rest: list[Any] = []
        if width < config.head_dim:
            x, *rest = ops.variadic_split(x, i64(3), i64([width, config.head_dim - width])).outputs()
        first, second = ops.variadic_split(x, i64(3), i64([width // 2, width // 2])).outputs()
        turned = ops.concat([ops.multiply(second, f32(-1)), first], -1)
        rotated = ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))
        return ops.concat([rotated, *rest], -1) if rest else rotated

    def _is_local(self, layer: int) -> bool:
        return self.config.local_rope_theta is not None and self.config.window(layer) > 0

    def _rotary_tables(self, local: bool) -> tuple[Any, Any]:
        """Cosine and sine of all angles, ``[batch, 1, tokens, rotary_dim]``."""
        frequencies = ops.constant(self.config.inverse_frequencies(local).reshape(1, 1, -1))
        position = ops.convert(ops.unsqueeze(self.positions, i64(2)), "f32")
        angles = ops.multiply(position, frequencies)
        both = ops.concat([angles, angles], -1)
        scale = 1.0 if local else self.config.rope_scale
        cos, sin = (scaled(table, scale) for table in (ops.cos(both), ops.sin(both)))
        return ops.unsqueeze(cos, i64(1)), ops.unsqueeze(sin, i64(1))

    def _causal_mask(self, window: int) -> Any:
        """Causal attention mask, boolean ``[batch, 1, tokens, past + tokens]``; removed by paged attention."""
        total, current = dimension(self.mask, 1), dimension(self.ids, 1)
        scalar = i64(np.zeros(0, np.int64))
        end, count = ops.reshape(total, scalar, False), ops.reshape(current, scalar, False)
        keys = ops.unsqueeze(ops.range(i64(0), end, i64(1), "i64"), i64(0))
        queries = ops.unsqueeze(ops.range(ops.subtract(end, count), end, i64(1), "i64"), i64(1))
        seen = ops.less_equal(keys, queries)
        if window:
            seen = ops.logical_and(seen, ops.greater(keys, ops.subtract(queries, i64(window))))
        present = ops.unsqueeze(ops.convert(self.mask, "boolean"), i64([1, 2]))
        return ops.logical_and(ops.unsqueeze(seen, i64([0, 1])), present)
