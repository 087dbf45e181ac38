"""Create the buckets and the MLflow user of the pipeline. A stack needs both before its first run.

Safe to repeat: existing buckets are kept, and the user gets the current password (rotation).
"""

import base64
import json
import os
import urllib.error
import urllib.request

import boto3

BUCKETS = ("mlflow", "artifacts")
USER = "pipeline"


def make_buckets() -> None:
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], region_name="us-east-1")
    existing = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in sorted({*BUCKETS} - existing):
        store.create_bucket(Bucket=name)


def make_user() -> None:
    account = {"username": USER, "password": os.environ["MLFLOW_PIPELINE_PASSWORD"]}
    try:
        ask("POST", "users/create", account)
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" not in error.read():
            raise
        ask("PATCH", "users/update-password", account)


def ask(method: str, path: str, content: dict[str, str]) -> None:
    user = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    request = urllib.request.Request(
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}",
        data=json.dumps(content).encode(),
        method=method,
        headers={
            "Authorization": "Basic " + base64.b64encode(user.encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    urllib.request.urlopen(request, timeout=30).read()


if __name__ == "__main__":
    make_buckets()
    make_user()
