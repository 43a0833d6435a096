"""Ensembles: several captioners as one."""

import pytest
import torch
from support.decoders import captions_of, random_decoder, random_images

from pipeline.config.generation import GenerationConfig
from pipeline.generation.beam import beam_search
from pipeline.generation.constraints import Constraints
from pipeline.generation.ensemble import EncodedByAll, EnsembleDecoder
from pipeline.generation.sampling import greedy
from shards.tokenizer import BOS, EOS, PAD

VOCAB = 12
BEAM = GenerationConfig("beam", beam=3, num_captions=3)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_model_with_itself_is_the_model(members: int) -> None:
    decoder, images = random_decoder(1, VOCAB), random_images(1, 5)
    ensemble = EnsembleDecoder([decoder] * members)
    encoded = EncodedByAll([images] * members)
    alone = beam_search(decoder, images, Constraints(7), BEAM)
    together = beam_search(ensemble, encoded, Constraints(7), BEAM)
    assert torch.equal(together.tokens, alone.tokens)
    torch.testing.assert_close(together.log_probs, alone.log_probs)


@torch.no_grad()
def test_the_probabilities_of_the_members_are_averaged() -> None:
    decoders = [random_decoder(2, VOCAB), random_decoder(3, VOCAB, "gru")]
    encoded = EncodedByAll([random_images(2, 1), random_images(3, 1)])
    found = greedy(EnsembleDecoder(decoders), encoded, Constraints(7))
    states = [d.start(e) for d, e in zip(decoders, encoded, strict=True)]
    last, caption, total = BOS, [], 0.0
    while last != EOS and len(caption) < 7:
        probs = torch.zeros(VOCAB)
        for number, decoder in enumerate(decoders):
            output, states[number] = decoder.step(torch.tensor([last]), states[number])
            scores = decoder.to_words(output)[0]
            scores[[PAD, BOS]] = -torch.inf
            probs += scores.softmax(dim=0) / len(decoders)
        last = int(probs.argmax())
        caption.append(last)
        total += float(probs[last].log())
    assert captions_of(found, 0) == [tuple(caption)]
    torch.testing.assert_close(found.scores, torch.tensor([[total]]))
