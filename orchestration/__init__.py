"""The graph of bert_pipeline in Dagster, its runs and models in MLflow.

Importing it imports neither torch nor mlflow: the web server and the daemon load it again and again.
"""

from bert_pipeline.settings import set_library_defaults

set_library_defaults()
