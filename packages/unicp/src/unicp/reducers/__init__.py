"""Attention at less cost."""

from unicp.reducers import pca_slices as pca_slices
from unicp.reducers.base import AttentionReducer as AttentionReducer
from unicp.reducers.base import reducers as reducers
