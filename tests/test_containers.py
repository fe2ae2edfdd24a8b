"""The Dockerfile and the Kubernetes examples say what the command line and the server take. Nothing is built here."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from pfberxit.cli import parser

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
SCRIPTS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
KUBERNETES = ROOT / "examples" / "kubernetes"
IMAGE = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines() if line]


def instructions(word: str) -> list[str]:
    """What stands behind an instruction of the Dockerfile, each time."""
    return [line.removeprefix(word).strip() for line in IMAGE if line.startswith(f"{word} ")]


def entry() -> list[str]:
    """The command that the image runs, without the program's name."""
    program, *words = yaml.safe_load(instructions("ENTRYPOINT")[0])
    assert program == "pfberxit"
    return words


def documents(name: str) -> dict[str, dict]:
    """The resources of an example by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8"))}


def test_the_image_installs_torch_first_runs_as_nobody_and_holds_no_secret():
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert "torch==" in installs[0] and "whl/cpu" in installs[0] and ".[${EXTRAS}]" in installs[1]
    assert instructions("USER") == ["10001:10001"]
    assert IMAGE.index("USER 10001:10001") > max(n for n, line in enumerate(IMAGE) if line.startswith("RUN"))
    for line in [*instructions("ENV"), *instructions("ARG"), *instructions("COPY")]:
        assert not re.search("token|secret|password|key", line, re.IGNORECASE)


def test_the_image_has_all_that_the_package_is_made_of_and_nothing_else():
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = set(re.findall(r'^    "(\w+)[\w.]*",$', project.partition("packages = [")[2].partition("]")[0], re.M))
    assert packages | {"configuration", "model_cards", "pyproject.toml", "README.md", "LICENSE"} == copied


def test_the_image_asks_its_own_port_whether_it_is_healthy():
    options = parser().parse_args(entry())
    assert (options.command, options.model, options.host) == ("serve", "/model", "0.0.0.0")
    assert f"http://127.0.0.1:{options.port}/health" in instructions("HEALTHCHECK")[0]
    assert instructions("EXPOSE") == [str(options.port)]


def test_pods_run_the_command_as_nobody_are_asked_for_their_health_and_have_time_to_drain():
    found = documents("serve.yaml")
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parser().parse_args([*entry(), *container["args"]])
    assert [port["containerPort"] for port in container["ports"]] == [options.port]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + options.drain
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert "persistentVolumeClaim" in volumes[mounts[options.model]]
    assert "secret" in volumes[mounts[str(Path(options.token_file).parent)]]


def test_pods_are_found_by_the_service_the_scaler_and_the_budget():
    found = documents("serve.yaml")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels == found["Service"]["spec"]["selector"]
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    assert "replicas" not in found["Deployment"]["spec"], "the scaler says how many"


def test_the_ray_service_deploys_what_the_application_takes():
    schema = pytest.importorskip("ray.serve.schema")
    from modeling_pfberxit.serving.ray import TOKEN, Settings, app

    spec = documents("ray-service.yaml")["RayService"]["spec"]
    (application,) = schema.ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    settings = Settings.model_validate(application.args)
    app(settings)
    for group in (spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert settings.model in {each["mountPath"] for each in container["volumeMounts"]}
        assert {each["name"] for each in container["env"] if "valueFrom" in each} == {TOKEN}
        assert pod["securityContext"]["runAsNonRoot"]
    assert spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}, "no replica on the head"


def test_linters_of_others_find_nothing():
    validate, lint = pytest.importorskip("kubernetes_validate"), shutil.which("hadolint", path=SCRIPTS)
    for each in documents("serve.yaml").values():
        validate.validate(each, validate.latest_version(), strict=True)
    if lint is None:
        pytest.skip("no hadolint")
    subprocess.run([lint, str(ROOT / "Dockerfile")], check=True)
