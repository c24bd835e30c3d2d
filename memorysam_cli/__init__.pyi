from memorysam_cli.engine.predict.predictor import Predictor as Predictor
from memorysam_cli.engine.predict.predictor import Result as Result
from memorysam_cli.engine.predict.predictor import UnlikeTraining as UnlikeTraining
from memorysam_cli.errors import DataError as DataError
from memorysam_cli.errors import MemorySamError as MemorySamError

__version__: str
__all__ = ["DataError", "MemorySamError", "Predictor", "Result", "UnlikeTraining", "__version__"]
