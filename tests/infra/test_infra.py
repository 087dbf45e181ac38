"""Validate and lint the files of infra/ and their security rules, without running them (see test_infra_servers.py)."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bert_pipeline.store.executors import executor
from bert_pipeline.training.launch.build import STOP_SECONDS
from bert_pipeline.training.pretrain import EXIT_RESUME

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose"
GRACE = STOP_SECONDS + 60  # plus the time that torchrun and Python need to exit
STYLE = {
    "extends": "default",
    "rules": {
        "line-length": {"max": 120},
        "document-start": "disable",
        "braces": {"max-spaces-inside": 0},
        "octal-values": "disable",
        "truthy": {"check-keys": False},
    },
}


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/usr/sbin")
    return found or pytest.skip(f"{name} is not installed")


def run(*command: object, **options) -> None:
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, **options)
    assert found.returncode == 0, found.stdout + found.stderr


def documents(*names: str) -> list[dict]:
    """Return the manifests in these files of k8s/; without names, in all files."""
    paths = [INFRA / "k8s" / name for name in names] or sorted((INFRA / "k8s").glob("*.yaml"))
    return [each for path in paths for each in yaml.safe_load_all(path.read_text())]


def services() -> dict[str, dict]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


def test_dockerfiles_by_hadolint():
    run(tool("hadolint"), *sorted((INFRA / "docker").glob("*.Dockerfile")))


def test_scripts_by_shellcheck():
    scripts = [*INFRA.rglob("*.sh"), *INFRA.rglob("*.sbatch")]
    assert len(scripts) >= 5
    run(tool("shellcheck"), *scripts)


def test_compose_files_by_their_schema():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *COMPOSE.glob("compose*.yaml"))


def test_manifests_by_the_schemas_of_kubernetes():
    manifests = [
        path for path in (INFRA / "k8s").glob("*.yaml") if path.name not in ("kustomization.yaml", "trainjob.yaml")
    ]
    run(tool("kubernetes-validate"), "--strict", "--kubernetes-version", "1.34", *sorted(manifests))


def test_the_trainjob_by_kubeflows_models():
    models = pytest.importorskip("kubeflow_trainer_api.models")

    def unknown(written, understood, path=""):
        if isinstance(written, dict):
            for key, value in written.items():
                if key not in (understood or {}):
                    yield f"{path}/{key}"  # the models drop unknown keys
                else:
                    yield from unknown(value, understood[key], f"{path}/{key}")
        elif isinstance(written, list):
            for n, value in enumerate(written):
                yield from unknown(value, understood[n], f"{path}/{n}")

    for each in documents("trainjob.yaml"):
        understood = getattr(models, f"TrainerV1alpha1{each['kind']}").from_dict(each).to_dict()
        assert not [*unknown(each, understood)]


def test_yaml_by_yamllint():
    run(tool("yamllint"), "--strict", "-d", json.dumps(STYLE), INFRA)


def test_the_proxy_by_nginx(tmp_path):
    users = tmp_path / "users"
    users.touch()
    text = (INFRA / "proxy" / "nginx.conf").read_text().replace(" /tmp/", f" {tmp_path}/")
    text = re.sub(r"server (webserver|mlflow):", "server 127.0.0.1:", text).replace(
        "/run/secrets/proxy_users", str(users)
    )
    (tmp_path / "nginx.conf").write_text(text)
    run(tool("nginx"), "-t", "-c", tmp_path / "nginx.conf")


@pytest.mark.parametrize("folder", ["dagster", "dagster/production"])
def test_dagsters_instance_by_dagster(folder, monkeypatch, tmp_path):
    pytest.importorskip("dagster_postgres")
    from dagster._core.instance.config import dagster_instance_config
    from dagster._core.instance.ref import InstanceRef

    for name in ("HOST", "USERNAME", "PASSWORD", "DB"):
        monkeypatch.setenv(f"DAGSTER_PG_{name}", "x")
    monkeypatch.setenv("DAGSTER_LOGS", str(tmp_path))
    told, _ = dagster_instance_config(str(INFRA / folder), "dagster.yaml")
    assert told["telemetry"] == {"enabled": False}
    assert told["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    assert told["run_monitoring"]["free_slots_after_run_end_seconds"] <= 300
    assert told["run_monitoring"]["cancel_timeout_seconds"] > STOP_SECONDS
    ref = InstanceRef.from_dir(str(INFRA / folder))
    assert ref.run_launcher and ref.compute_log_manager
    if folder.endswith("production"):
        assert ref.storage_data.class_name == "DagsterPostgresStorage"
        assert told["run_retries"]["retry_on_asset_or_op_failure"] is False


def test_the_chart_configures_the_same_instance(tmp_path):
    from dagster._core.instance.config import dagster_instance_config

    values = yaml.safe_load((INFRA / "helm" / "dagster.values.yaml").read_text())
    production = yaml.safe_load((INFRA / "dagster" / "production" / "dagster.yaml").read_text())
    more = values["additionalInstanceConfig"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(more))
    dagster_instance_config(str(tmp_path), "dagster.yaml")  # raises if it is invalid
    assert more["run_retries"] == production["run_retries"]
    assert more["concurrency"]["pools"] == production["concurrency"]["pools"]
    told = values["dagsterDaemon"]["runMonitoring"]
    snake = {re.sub("(?=[A-Z])", "_", name).lower(): value for name, value in told.items()}
    assert snake == production["run_monitoring"]
    assert not values["dagsterDaemon"]["runRetries"]["enabled"], "otherwise the file contains run_retries twice"
    assert (
        not values["telemetry"]["enabled"] and not values["postgresql"]["enabled"] and not values["ingress"]["enabled"]
    )
    parts = [values["dagsterWebserver"], values["dagsterDaemon"], *values["dagster-user-deployments"]["deployments"]]
    run_pod = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    assert run_pod["podSpecConfig"]["terminationGracePeriodSeconds"] >= GRACE
    for part in parts:
        assert_restricted(part["podSecurityContext"], part["securityContext"])
        assert part["image"]["tag"] not in ("", "latest") and "memory" in part["resources"]["limits"]
    assert_restricted(run_pod["podSpecConfig"]["securityContext"], run_pod["containerConfig"]["securityContext"])


def assert_restricted(pod: dict, container: dict) -> None:
    """Check the profile `restricted` of Kubernetes' Pod Security Standards and a read-only root file system."""
    assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False and container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}


PODS = ["dask-scheduler", "dask-worker", "download-pubmed", "mlflow", "proxy", "bert-pretrain", "trainjob"]


def pods() -> dict[str, dict]:
    """Return every pod template of k8s/ by the name of its manifest."""
    found = {}
    for each in documents():
        spec = each.get("spec", {})
        if each["kind"] in ("Deployment", "Job"):
            found[each["metadata"]["name"]] = spec["template"]
        if each["kind"] == "CronJob":
            found[each["metadata"]["name"]] = spec["jobTemplate"]["spec"]["template"]
        if each["kind"] == "TrainingRuntime":
            found["trainjob"] = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    return found


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_minimal_privileges(name):
    pod = pods()[name]
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all(
        {"persistentVolumeClaim", "emptyDir", "configMap", "secret"} & volume.keys() for volume in spec["volumes"]
    )
    for container in spec["containers"]:
        assert_restricted(spec["securityContext"], container["securityContext"])
        assert_pinned(container["image"])
        if name != "trainjob":  # its limits are in the TrainJob
            assert "memory" in container["resources"]["limits"]
    policies = {each["metadata"]["name"]: each["spec"] for each in documents("network.yaml")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    roles = [each["podSelector"].get("matchLabels", {}).get("role") for each in policies.values()]
    assert pod["metadata"]["labels"]["role"] in roles


def test_only_a_separate_service_downloads_pubmed():
    """With Compose and on Kubernetes, it sees only the text folder; Dagster's runs cannot reach the internet."""
    [cron] = documents("download-pubmed.yaml")
    assert cron["spec"]["suspend"] is True
    [container] = pods()["download-pubmed"]["spec"]["containers"]
    service = services()["download-pubmed"]
    assert container["args"] == service["command"]
    assert [mount for mount in container["volumeMounts"] if mount["name"] != "tmp"] == [
        {"name": "data", "mountPath": "/data"}
    ]
    outside = [each["metadata"]["name"] for each in documents("network.yaml") if "ipBlock" in json.dumps(each)]
    assert outside == ["download"] and service["networks"] == ["edge"]


def test_the_kustomization_lists_every_manifest():
    told = yaml.safe_load((INFRA / "k8s" / "kustomization.yaml").read_text())
    trainings = {"training-job.yaml", "trainjob.yaml"}  # applied by hand, one at a time
    assert {*told["resources"]} | trainings | {"kustomization.yaml"} == {
        path.name for path in (INFRA / "k8s").iterdir()
    }
    [generated] = told["configMapGenerator"]
    assert all((INFRA / "k8s" / name).is_file() for name in generated["files"])
    volumes = [volume for pod in pods().values() for volume in pod["spec"]["volumes"]]
    named = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    assert named == {generated["name"]}


def test_all_pods_are_checked():
    assert [*pods()] == PODS
    labels = documents("namespace.yaml")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_training_has_time_to_save_its_checkpoint():
    for name in ("bert-pretrain", "trainjob"):
        assert pods()[name]["spec"]["terminationGracePeriodSeconds"] >= GRACE
    code = services()["code"]
    assert code["init"] is True and code["environment"]["TINI_KILL_PROCESS_GROUP"] == "1", "a stop must reach the runs"
    minutes = re.fullmatch(r"(\d+)m", code["stop_grace_period"])
    assert minutes and int(minutes[1]) * 60 >= GRACE
    script = (INFRA / "slurm" / "train.sbatch").read_text()
    assert int(re.search(r"--signal=B:USR1@(\d+)", script)[1]) >= GRACE
    assert int(re.search(r"--wait=(\d+)", script)[1]) > STOP_SECONDS
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={STOP_SECONDS:.0f}" in (INFRA / "train-node.sh").read_text()


def test_every_launcher_knows_the_exit_codes():
    rules = next(each for each in documents("training-job.yaml") if each["kind"] == "Job")["spec"]["podFailurePolicy"]
    actions = {
        code: rule["action"] for rule in rules["rules"] for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {EXIT_RESUME: "Ignore", 78: "FailJob"}
    assert f'"$code" = {EXIT_RESUME} ]' in (INFRA / "slurm" / "train.sbatch").read_text()
    assert f"code={EXIT_RESUME}" in (INFRA / "train-node.sh").read_text()


def assert_pinned(image: str) -> None:
    """Third-party images are pinned by digest, images built here by version."""
    own = re.fullmatch(r"(registry\.example\.org/)?bert-pipeline[a-z0-9-]*:(\d[\w.-]*|\$\{VERSION\}(-cuda)?)", image)
    assert own or re.fullmatch(r".+:\d[\w.-]*@sha256:[0-9a-f]{64}", image), image


def test_images_are_pinned():
    for each in services().values():
        assert_pinned(each["image"])
    for path in (INFRA / "docker").glob("*.Dockerfile"):
        text = path.read_text()
        for image in re.findall(r"^(?:FROM|ARG PYTHON=) ?([a-z][^\s$]*[:/][^\s$]*)", text, re.M):
            assert_pinned(image)
        assert re.findall(r"^USER (.*)", text, re.M) == ["10001:10001"]
        assert not re.search(r"(?i)password|secret_key=|token", text)


def pinned(text: str) -> dict[str, str]:
    """Return the version of each package in a constraints or lock file."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in found}


def test_images_install_the_tested_versions_by_checksum():
    tested = pinned((ROOT / "constraints.txt").read_text())
    locks = {path.name: path.read_text() for path in (INFRA / "docker").glob("*.lock")}
    assert locks.keys() == {"mlflow.lock", "pipeline.lock", "torch.lock"}
    for name, text in locks.items():
        for requirement in re.split(r"\n(?=\S)", text.partition("lock.sh\n")[2].strip()):
            assert re.match(r"[\w.-]+==\S+( ;.*)? \\\n    --hash=sha256:[0-9a-f]{64}", requirement), (name, requirement)
        assert {package: tested.get(package, version) for package, version in pinned(text).items()} == pinned(text)
    installed = pinned(locks["pipeline.lock"]).keys() | pinned(locks["mlflow.lock"]).keys()
    assert installed - tested.keys() <= {"setuptools"}, "remedy: run infra/docker/lock.sh"
    assert "torch" not in pinned(locks["pipeline.lock"]), "the CPU and CUDA wheels are different files"
    for path in (INFRA / "docker").glob("*.Dockerfile"):
        for command in re.findall(r"pip install .*", path.read_text()):
            checked = "--require-hashes" in command or "--no-deps --no-build-isolation ." in command
            assert checked or "download.pytorch.org/whl/cpu" in command, command


@pytest.mark.parametrize("name", services())
def test_a_service_has_minimal_privileges(name):
    service = services()[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("", "root") and not service["user"].startswith("0")
    assert "mem_limit" in service and "pids_limit" in service
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()
    assert "docker.sock" not in json.dumps(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert name in ("proxy",) or "ports" not in service, "only the proxy publishes ports"
    lasting = service.get("restart") == "unless-stopped" and name != "dask-worker"
    assert "healthcheck" in service or not lasting


def test_only_the_proxy_and_the_download_reach_outside():
    told = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    outside = {name for name, network in told["networks"].items() if not network.get("internal")}
    assert outside == {"edge"}
    assert {name for name, each in told["services"].items() if outside & {*each["networks"]}} == {
        "proxy",
        "download-pubmed",
    }
    assert {name for name, each in told["services"].items() if "store" in each["networks"]} == {
        "s3",
        "mlflow",
        "code",
        "first-start",
    }
    assert {name for name, each in told["services"].items() if "compute" in each["networks"]} == {
        "code",
        "dask-scheduler",
        "dask-worker",
    }


def test_secrets_are_in_files_and_settings_contain_none(tmp_path):
    tool("openssl")
    shutil.copytree(COMPOSE, tmp_path / "compose", ignore=shutil.ignore_patterns("secrets", ".env"))
    make = tmp_path / "compose" / "make-secrets.sh"
    told = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    run(make)
    made = {path.name: path for path in (tmp_path / "compose" / "secrets").iterdir()}
    assert {each["file"].removeprefix("secrets/") for each in told["secrets"].values()} <= made.keys()
    assert (tmp_path / "compose" / "secrets").stat().st_mode & 0o777 == 0o700
    plain = [path.read_text().strip() for name, path in made.items() if name not in ("s3.json", "proxy_users")]
    assert len({*plain}) == len(plain) and all(len(each) == 48 for each in plain)
    assert json.loads(made["s3.json"].read_text())["identities"][0]["name"] == "admin"
    before = {name: path.read_text() for name, path in made.items() if name != "proxy_users"}
    run(make)
    assert {name: made[name].read_text() for name in before} == before, "existing secrets are kept"
    for name, service in told["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY$", variable):
                assert variable.endswith("_FILE"), (name, variable)
                assert value.removeprefix("/run/secrets/") in service["secrets"], (name, variable)
    named = {
        *re.findall(r"\$\{(\w+)", (COMPOSE / "compose.yaml").read_text() + (COMPOSE / "compose.gpu.yaml").read_text())
    }
    settings = {*re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text(), re.M)}
    assert named == settings
    assert {*(COMPOSE / ".gitignore").read_text().split()} == {".env", "secrets/"}


@pytest.mark.parametrize("secret", ["", "\n", "password", "password1234", "admin", "change-me", None])
def test_nothing_starts_with_an_empty_or_a_default_secret(secret, tmp_path):
    if secret is not None:
        (tmp_path / "it").write_text(secret)
    told = {"SECRETS": str(tmp_path), "IT_FILE": f"{tmp_path}/it", "PATH": "/usr/bin:/bin"}
    found = subprocess.run(
        [INFRA / "docker" / "with-secrets.sh", "echo", "started"], env=told, capture_output=True, text=True
    )
    assert found.returncode == 78 and found.stdout == ""
    assert f"{tmp_path}/it" in found.stderr and "remedy" in found.stderr


def test_a_secret_reaches_the_command_unchanged(tmp_path):
    (tmp_path / "it").write_text("a b'$(exit 1)\"\\")
    told = {
        "SECRETS": str(tmp_path),
        "IT_FILE": f"{tmp_path}/it",
        "OTHER_FILE": "/etc/hostname",
        "PATH": "/usr/bin:/bin",
    }
    found = subprocess.run([INFRA / "docker" / "with-secrets.sh", "env"], env=told, capture_output=True, text=True)
    assert "IT=a b'$(exit 1)\"\\\n" in found.stdout
    assert "\nOTHER=" not in found.stdout, "only files in the secrets folder"


def test_the_executor_of_the_compose_file_is_valid(monkeypatch):
    settings = dict(re.findall(r"^(\w+)=(.*)", (COMPOSE / ".env.example").read_text(), re.M))
    monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", settings["BERT_PIPELINE_EXECUTOR"])
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    with executor() as (_, width):
        assert width == 1
    command = services()["dask-scheduler"]["command"]
    assert f"dask://dask-scheduler:{command[command.index('--port') + 1]}" in (COMPOSE / ".env.example").read_text()
    assert {*services()["dask-worker"]["volumes"]} <= {*services()["code"]["volumes"]}, (
        "the same files at the same paths"
    )
