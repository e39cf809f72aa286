"""What happens around the loop: files, histograms, progress."""

from ssl_weighting.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.callbacks.progress import progress_callback
from ssl_weighting.callbacks.run_files import RunFiles
from ssl_weighting.callbacks.tensorboard import TensorBoard
from ssl_weighting.callbacks.weight_histogram import WeightHistogram

__all__ = ["MetricsCsv", "RunFiles", "TensorBoard", "WeightHistogram", "progress_callback"]
