"""What happens around the loop: files, histograms, progress."""

from ssl_weighting.callbacks.decision_boundary import DecisionBoundary
from ssl_weighting.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.callbacks.pool_quality import PoolQuality
from ssl_weighting.callbacks.progress import progress_callback
from ssl_weighting.callbacks.run_files import RunFiles
from ssl_weighting.callbacks.tensorboard import TensorBoard
from ssl_weighting.callbacks.timing import Timing
from ssl_weighting.callbacks.wandb_dashboard import WandbDashboard
from ssl_weighting.callbacks.weight_histogram import WeightHistogram

__all__ = [
    "DecisionBoundary",
    "MetricsCsv",
    "PoolQuality",
    "RunFiles",
    "TensorBoard",
    "Timing",
    "WandbDashboard",
    "WeightHistogram",
    "progress_callback",
]
