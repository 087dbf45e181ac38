"""bert_pipeline as a Dagster graph, with runs and models in MLflow.

Importing it must not import torch or mlflow: the web server and the daemon load it repeatedly.
"""

from bert_pipeline.settings import set_library_defaults

set_library_defaults()
