"""Names by a classifier: what the classes of a pretrained trunk say of each mask, and what each name says of classes.

A trunk that was trained to tell a thousand classes apart knows more things than a small network has seen under their
names. Its classifier looks at each mask; a name that is asked for is read, letter by letter if need be, as a
distribution over the classes that things of that name are taken for. The two meet in a likelihood ratio: how much more
likely the classifier's answer is if the mask shows the name than if it shows anything. Shape letters: I images, N
decodes, Q queries, K conditions, M names, T tokens of a name, H and W rows and columns of the trunk's last map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsam_model.configuration_xsam import XSamNameHeadConfig

# Below this a name is as good as excluded; keeps logarithms finite.
_LEAST_RATIO = 1e-6


class XSamNameReader(nn.Module):
    """Reads a name's tokens as the logits of classes that things of this name are taken for."""

    def __init__(self, config: XSamNameHeadConfig, vocab_size: int) -> None:
        super().__init__()
        # Row 0 is padding, whose zeros tell the convolutions where a name begins and ends.
        self.tokens = nn.Embedding(vocab_size + 1, config.token_size, padding_idx=0)
        self.pairs = nn.Conv1d(config.token_size, config.hidden_size, 3, padding=1)
        self.longer = nn.Conv1d(config.hidden_size, config.hidden_size, 3, padding=1)
        self.classes = nn.Linear(config.hidden_size, config.num_classes)

    def forward(self, names: Tensor) -> Tensor:
        """(M, T) token ids plus 1, padded with 0 on the right -> (M, classes) logits."""
        real = (names > 0)[:, None]
        hidden = F.relu(self.pairs(self.tokens(names).transpose(1, 2))) * real
        hidden = hidden + F.relu(self.longer(hidden))
        # A condition without a token of its own, such as a region's, says nothing.
        return self.classes((hidden * real).amax(2))


class XSamNameHead(nn.Module):
    """The trunk's classifier, and the reader of names.

    Its weights are fitted by `xsam_model.training.names`, not by the stages of training, which leave them as they are.

    Args:
        config: its sizes.
        in_channels: channels of the trunk's maps together.
        vocab_size: tokens of the language model.
    """

    def __init__(self, config: XSamNameHeadConfig, in_channels: int, vocab_size: int) -> None:
        super().__init__()
        self.features = nn.Linear(in_channels, config.feature_size)
        self.classes = nn.Linear(config.feature_size, config.num_classes)
        self.reader = XSamNameReader(config, vocab_size)
        self.config = config

    def look(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of one size, (I, H, W, C_i) each -> features of the classifier, (I, H, W, features)."""
        return F.relu6(self.features(torch.cat(list(maps), dim=-1)))

    def evidence(self, looks: Tensor, mask_logits: Tensor, names: Tensor) -> Tensor:
        """Compare what the classifier sees in each mask with names.

        Args:
            looks: (N, H, W, features) from `look`.
            mask_logits: (N, Q, h, w).
            names: (N, K, classes) logits from the reader.

        Returns:
            (N, Q, K) float32, logarithms of likelihood ratios: 0 where the classifier says nothing for or against.
        """
        weights = F.adaptive_avg_pool2d(mask_logits.float().sigmoid(), (looks.shape[1], looks.shape[2])).flatten(2)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=_LEAST_RATIO)
        pooled = weights @ looks.float().flatten(1, 2)
        seen = F.linear(pooled, self.classes.weight.float(), self.classes.bias.float()).softmax(-1)
        ratios = seen @ names.float().softmax(-1).transpose(1, 2) * self.config.num_classes
        return ratios.clamp(min=_LEAST_RATIO).log()

    def weigh(self, class_logits: Tensor, evidence: Tensor, condition_mask: Tensor) -> Tensor:
        """Let the classifier's evidence decide which name a query has; whether it has any, the network has decided.

        Args:
            class_logits: (N, Q, K + 1), the background last.
            evidence: (N, Q, K) from `evidence`.
            condition_mask: (N, K + 1) bool, False for padding.

        Returns:
            (N, Q, K + 1) float32 logits, whose softmax are the new probabilities; of padding as they were.
        """
        config, real = self.config, condition_mask[:, None, :-1]
        found = class_logits.float().log_softmax(-1)
        own = class_logits[..., :-1].float().log_softmax(-1) + real.sum(-1, keepdim=True).log()
        named = config.network_weight * own + config.evidence_weight * evidence
        named = named.masked_fill(~real, -torch.inf)
        none = named.new_full((*named.shape[:2], 1), config.no_name_logit)
        shares = torch.cat([named, none], dim=-1).log_softmax(-1)
        # The probability of any name is divided anew; what goes to none of them is the background's.
        is_any = torch.log1p(-found[..., -1:].exp().clamp(max=1 - _LEAST_RATIO))
        background = torch.logaddexp(found[..., -1:], is_any + shares[..., -1:])
        weighed = torch.cat([is_any + shares[..., :-1], background], dim=-1)
        return torch.where(condition_mask[:, None], weighed, class_logits.float())


def gather_names(input_ids: Tensor, cond_ids: Tensor, left_out: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Collect the tokens of each condition's name.

    Args:
        input_ids, cond_ids: (B, L), as for `XSamForSegmentation.forward`.
        left_out: ids of tokens that belong to no name, such as `<p>`; nor do negative ids, of images and regions.

    Returns:
        The distinct names (M, T), ids plus 1 and padded with 0 on the right; and which of them each condition has,
        (B, K) int64. Conditions beyond those of a conversation have the empty name.
    """
    is_name = (cond_ids >= 0) & (input_ids >= 0) & ~torch.isin(input_ids, input_ids.new_tensor(left_out))
    batch, count = len(input_ids), int(cond_ids.amax()) + 1
    rows, places = is_name.nonzero(as_tuple=True)
    # Conditions are numbered in order, so tokens of one name stand together.
    groups = rows * count + cond_ids[rows, places]
    lengths = groups.bincount(minlength=batch * count)
    within = torch.arange(len(groups), device=groups.device) - (lengths.cumsum(0) - lengths)[groups]
    names = input_ids.new_zeros(batch * count, max(1, int(lengths.max())))
    names[groups, within] = input_ids[rows, places] + 1
    distinct, which = names.unique(dim=0, return_inverse=True)
    return distinct, which.view(batch, count)


__all__ = ["XSamNameHead", "XSamNameReader", "gather_names"]
