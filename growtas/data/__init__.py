"""Images: opening data sets, cutting the search split, preprocessing, and feeding the training."""

from growtas.data.evaluation import EvaluationSet, count_correct, search_set, test_set
from growtas.data.preprocess import evaluation_transform, preprocess_record
from growtas.data.sources import Data, open_data

__all__ = [
    "Data",
    "EvaluationSet",
    "count_correct",
    "evaluation_transform",
    "open_data",
    "preprocess_record",
    "search_set",
    "test_set",
]
