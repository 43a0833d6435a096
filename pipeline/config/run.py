"""All settings of a training run: one dataclass that holds the sections."""

from dataclasses import dataclass, field

from pipeline.config.data import DataConfig
from pipeline.config.generation import GenerationConfig
from pipeline.config.model import ModelConfig
from pipeline.config.monitoring import MonitorConfig
from pipeline.config.training import OptimConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        run_dir: run folder, for the configuration, the TensorBoard logs and the checkpoints.
        seed: seed of the initial weights, the sample order, the crops and the dropout.
    """

    run_dir: str = "runs/capstream"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
