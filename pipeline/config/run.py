"""A whole training run: one dataclass of all sections."""

from dataclasses import dataclass, field

from pipeline.config.data import DataConfig
from pipeline.config.model import ModelConfig
from pipeline.config.monitoring import MonitorConfig
from pipeline.config.training import OptimConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        run_dir: folder of the run: its configuration, TensorBoard logs and checkpoints.
        seed: of the weights, the sample order, the crops and the dropout.
    """

    run_dir: str = "runs/capstream"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
