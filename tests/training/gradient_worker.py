"""One process of test_step: takes one step in float64 and writes the gradient it stepped along.

Arguments: shard folder, output file, accumulation steps. It does so for each kind of decoder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.config.data import DataConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.data.dataset import TrainDataset
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import Order
from pipeline.distributed.process_group import join_processes
from pipeline.model.captioner import Captioner
from pipeline.model.decoders import DECODERS
from pipeline.objectives.cross_entropy import CrossEntropy
from pipeline.runtime.world import read_world
from pipeline.training.step import TrainStep

shards, out, steps = ShardFolder(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
accelerator = join_processes(read_world())
order = Order.of(shards.manifest, seed=0, shuffle_block=4)
sampler = MicroBatchSampler(
    order, 9, 9, 0, accelerator.process_index, accelerator.num_processes, steps
)
# Six captions wanted and five there: weights of zero take part. Nine images do not divide by four.
dataset = TrainDataset(shards, DataConfig(image_size=64, captions_per_image=6), seed=0)
batches = [dataset[slots] for slots in sampler]


def gradients(kind: str) -> dict[str, torch.Tensor]:
    """Of all weights, with the loss."""
    torch.manual_seed(0)
    decoder = DecoderConfig(kind, 16, dropout=0.0, attention_dim=8, layers=2, heads=2)  # type: ignore[arg-type]
    encoder = EncoderConfig("shufflenet_v2_x0_5", batch_norm="frozen", hidden_dim=16, dropout=0.0)
    vocab_size = shards.tokenizer.get_vocab_size()
    model = Captioner(ModelConfig(16, encoder, decoder), vocab_size).double()
    # Plain descent at rate 1: afterwards the weights have moved by minus the gradient.
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = CrossEntropy(model, label_smoothing=0.1).train()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapped, optimizer = accelerator.prepare(objective, sgd)
    result = TrainStep(accelerator, wrapped, optimizer, clip=0.0).take(batches, learning_rate=1.0)
    assert wrapped.training
    backbone = model.encoder.backbone.network
    assert not any(part.training for part in backbone.modules() if "Norm" in type(part).__name__)
    found = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    return {**found, "loss": torch.tensor([result.loss], dtype=torch.float64)}


found = {f"{kind}/{name}": values for kind in DECODERS for name, values in gradients(kind).items()}
if accelerator.is_main_process:
    save_file(found, out)
accelerator.end_training()
