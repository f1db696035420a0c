"""GPT-2's architecture at any size: learned positions, pre-norm blocks, tied embeddings."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.tasks.language.recipe import GptSize

INITIAL_STD = 0.02
"""Of every matrix and embedding, as GPT-2 has it."""


class Attention(nn.Module):
    """Causal self-attention: (batch, time, width) -> (batch, time, width)."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.inputs = nn.Linear(size.width, 3 * size.width)
        self.output = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every position with those before it."""
        batch, time, width = x.shape
        heads = self.inputs(x).view(batch, time, 3, self.heads, width // self.heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, time, width))
        return output


class Block(nn.Module):
    """Attention and a feed-forward network, each added to what it reads after a LayerNorm."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.width)
        self.attention = Attention(size)
        self.feed_forward_norm = nn.LayerNorm(size.width)
        self.expand = nn.Linear(size.width, 4 * size.width)
        self.contract = nn.Linear(4 * size.width, size.width)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> (batch, time, width)."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        hidden = F.gelu(self.expand(self.feed_forward_norm(x)), approximate="tanh")
        output: Tensor = x + self.dropout(self.contract(hidden))
        return output


class Gpt(nn.Module):
    """A decoder-only Transformer: tokens (batch, time) int64 -> logits (batch, time, vocabulary).

    The output layer is the transposed embedding (``F.linear`` with its weight), so there is one
    such parameter, not two of one memory.
    """

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.dropout = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self._initialise(size.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position, of the tokens up to there alone."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)

    def _initialise(self, layers: int) -> None:
        """As GPT-2: what is added to the residual stream, twice a layer, starts the smaller."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("output.weight", "contract.weight"))
                std = INITIAL_STD / math.sqrt(2 * layers) if residual else INITIAL_STD
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
