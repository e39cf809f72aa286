"""What happens around the loop: files, histograms, progress."""

from ssl_weighting.app.callbacks.decision_boundary import DecisionBoundary
from ssl_weighting.app.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.app.callbacks.pool_quality import PoolQuality
from ssl_weighting.app.callbacks.progress import progress_callback
from ssl_weighting.app.callbacks.run_files import RunFiles
from ssl_weighting.app.callbacks.tensorboard import TensorBoard
from ssl_weighting.app.callbacks.timing import Timing
from ssl_weighting.app.callbacks.wandb_dashboard import WandbDashboard
from ssl_weighting.app.callbacks.weight_histogram import WeightHistogram

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
