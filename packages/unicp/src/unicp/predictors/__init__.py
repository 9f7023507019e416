"""What fills in for a skipped step."""

from unicp.predictors import linear as linear
from unicp.predictors.base import Predictor as Predictor
from unicp.predictors.base import predictors as predictors
