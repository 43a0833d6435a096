"""The cross-entropy objective."""

import torch

from pipeline.objectives.cross_entropy import caption_loss, count_tokens
from shards.tokenizer import EOS, PAD

VOCAB = 11


def test_the_loss_is_a_sum_over_valid_tokens() -> None:
    scores = torch.randn(3, 4, VOCAB, dtype=torch.float64)
    targets = torch.tensor([[5, 6, EOS, PAD], [7, EOS, PAD, PAD], [5, 5, 5, EOS]])
    weights = torch.tensor([1.0, 1.0, 0.0])
    logp = scores.log_softmax(-1)
    by_hand = -sum(logp[n, t, targets[n, t]] for n, t in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    assert float(count_tokens(targets, weights)) == 5
    torch.testing.assert_close(caption_loss(scores, targets, weights), by_hand)
