"""Check that MLflow is ready by listing experiments: /health succeeds even while the database is down."""

import base64
import os
import urllib.request

user = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}"
request = urllib.request.Request(
    f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}/api/2.0/mlflow/experiments/search?max_results=1",
    headers={"Authorization": "Basic " + base64.b64encode(user.encode()).decode()},
)
urllib.request.urlopen(request, timeout=10).read()
