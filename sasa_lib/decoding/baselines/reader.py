"""A model that reads along while another one writes."""

from __future__ import annotations

import inspect

import torch
from transformers import DynamicCache, PreTrainedModel

from sasa_lib.engine.models import text_config


class Reader:
    """Reads tokens once each, and says what it expects next.

    Parameters
    ----------
    model : PreTrainedModel
    mask : torch.Tensor, shape [rows, length]
        Attention mask of the first tokens; those that follow are all seen.
    """

    def __init__(self, model: PreTrainedModel, mask: torch.Tensor) -> None:
        self.model = model
        self.mask = mask.to(model.device)
        self.cache = DynamicCache(config=text_config(model))
        self.has_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def known(self) -> int:
        """Tokens of each row that were read."""
        return self.cache.get_seq_length()

    def next(self, ids: torch.Tensor) -> torch.Tensor:
        """Read further tokens [rows, n]; logits of the one behind them, [rows, vocabulary]."""
        more = self.known + ids.shape[1] - self.mask.shape[1]
        if more > 0:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), more)], dim=1)
        inputs = {"attention_mask": self.mask, "cache": self.cache, "use_cache": True}
        if self.has_positions:
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        ids = ids.to(self.model.device)
        return self.model(input_ids=ids, **inputs, logits_to_keep=1).logits[:, -1]
