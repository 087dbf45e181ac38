"""The graph of bert_pipeline in Dagster, its runs and models in MLflow.

Importing it imports neither torch nor mlflow: the web server and the daemon load it again and again.
"""

import os

# Read by libraries when they are imported, which happens late and inside functions.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded at run time
# With MLflow's own 7 retries a call to a server that is down blocks for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
