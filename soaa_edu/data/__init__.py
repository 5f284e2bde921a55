"""Data sets, in memory and ready to train on."""

from soaa_edu.data.dataset import Dataset
from soaa_edu.data.images import DataFileError, mnist

__all__ = ["DataFileError", "Dataset", "mnist"]
