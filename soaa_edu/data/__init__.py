"""Data sets, in memory and ready to train on."""

from soaa_edu.data import text
from soaa_edu.data.dataset import Dataset, count_rows
from soaa_edu.data.files import DataFileError
from soaa_edu.data.images import mnist

__all__ = ["DataFileError", "Dataset", "count_rows", "mnist", "text"]
