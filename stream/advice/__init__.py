"""What a stretch of a topic says about features: how often they repeat, which belong together, whether slices pay."""

from stream.advice.observe import FeatureCounts, Observed, Observer, with_session_start
from stream.advice.report import Advice, FeatureAdvice, GroupAdvice, advise

__all__ = [
    "Advice",
    "FeatureAdvice",
    "FeatureCounts",
    "GroupAdvice",
    "Observed",
    "Observer",
    "advise",
    "with_session_start",
]
