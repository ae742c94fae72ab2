"""What an operator deploys with: the bento's image, the manifests, the unit; no container engine is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from prometheus_client.parser import text_string_to_metric_families

from services import metrics
from services.bento import bento_image
from services.settings import Settings
from shared.errors import InvalidInput

DEPLOY = Path(__file__).parents[1] / "services" / "deploy"
USER = 1034  # of the images that BentoML makes


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict]:
    return {document["kind"]: document for document in documents("kubernetes/lienzo.yaml")}


def settings_named(environment: dict[str, str]) -> set[str]:
    return {name for name in environment if name.startswith("LIENZO_")}


def known_settings() -> set[str]:
    return {f"LIENZO_{name.upper()}" for name in Settings.model_fields} | {"LIENZO_CACHE", "LIENZO_WEIGHTS"}


def test_the_manifests_are_what_kubernetes_takes(manifests):
    assert set(manifests) == {
        "StatefulSet", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"
    }  # fmt: skip
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    broken = dict(manifests["StatefulSet"], spec=manifests["StatefulSet"]["spec"] | {"replica": 2})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_gpu_patch_gives_a_pod_that_kubernetes_takes(manifests):
    (patch,) = documents("kubernetes/gpu.yaml")
    (change,) = patch["spec"]["template"]["spec"]["containers"]
    (container,) = manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert change["name"] == container["name"]  # by which a patch finds what it changes
    kubernetes_validate.validate(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "lienzo"},
            "spec": {"containers": [container | change]},
        },
        kubernetes_validate.latest_version(),
        strict=True,
    )
    assert settings_named({entry["name"]: entry["value"] for entry in change["env"]}) <= known_settings()


def test_the_pod_is_not_root_and_may_write_only_where_it_must(manifests):
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == USER
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert settings_named(environment) <= known_settings()
    assert environment["LIENZO_METRICS"] == "on", "the scraper and the autoscaler are not in the pod"
    written = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    for name in ("LIENZO_CACHE", "LIENZO_STATE", "BENTOML_HOME"):
        assert any(Path(environment[name]).is_relative_to(place) for place in written), name
    claimed = {claim["metadata"]["name"] for claim in manifests["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert {m["name"] for m in container["volumeMounts"]} == claimed | {v["name"] for v in pod["volumes"]}
    # What a rollout may not lose lies on the volume that the next pod takes over.
    kept = [Path(m["mountPath"]) for m in container["volumeMounts"] if m["name"] in claimed]
    assert any(Path(environment["LIENZO_STATE"]).is_relative_to(place) for place in kept)


def test_everything_selects_the_pods_that_are_deployed(manifests):
    labels = manifests["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"] == {
        "apiVersion": manifests["StatefulSet"]["apiVersion"], "kind": "StatefulSet", "name": "lienzo"
    }  # fmt: skip
    assert manifests["StatefulSet"]["spec"]["serviceName"] == manifests["Service"]["metadata"]["name"]
    assert (
        manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
        > manifests["PodDisruptionBudget"]["spec"]["minAvailable"]
    )


def test_compose_runs_the_service_without_privileges_and_mounts_files_that_there_are():
    (compose,) = documents("compose.yaml")
    lienzo = compose["services"]["lienzo"]
    assert lienzo["user"] == f"{USER}:{USER}" and lienzo["read_only"] and lienzo["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service["ports"])
    assert settings_named(lienzo["environment"]) <= known_settings()
    assert lienzo["environment"]["LIENZO_METRICS"] == "on", "Prometheus is not on the service's own machine"
    (gpu,) = documents("compose.gpu.yaml")
    assert settings_named(gpu["services"]["lienzo"]["environment"]) <= known_settings()
    for volume in compose["services"]["prometheus"]["volumes"]:
        source = volume.split(":")[0]
        assert source in compose["volumes"] or (DEPLOY / source).is_file(), volume
    (prometheus,) = documents("prometheus/prometheus.yml")
    for file in prometheus["rule_files"]:
        assert (DEPLOY / "prometheus" / file).is_file()
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["lienzo:3000"]


def test_alerts_and_the_autoscaler_ask_for_metrics_that_there_are():
    text = "".join((DEPLOY / name).read_text() for name in ("prometheus/alerts.yml", "kubernetes/lienzo.yaml"))
    families = text_string_to_metric_families(metrics.joined({"test": metrics.exposition()}).decode())
    known = {family.name.removesuffix("_total") for family in families}
    (rules,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    asked = set()
    for rule in rules["rules"]:
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("page", "ticket")
        asked |= set(re.findall(r"lienzo_\w+", rule["expr"]))
    asked |= set(re.findall(r"scraped (lienzo_\w+)\{", text))
    assert len(asked) >= 6
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= known


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_takes(tmp_path):
    unit = (DEPLOY / "lienzo.service").read_text()
    (tmp_path / "lienzo.service").write_text(unit.replace("/opt/lienzo/bin/lienzo", shutil.which("true")))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", tmp_path / "lienzo.service"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "lienzo.service" not in checked.stderr, checked.stderr


def test_the_gpu_recipe_installs_what_the_project_declares(monkeypatch):
    monkeypatch.delenv("LIENZO_BENTO", raising=False)
    requirements = bento_image().python_requirements.splitlines()
    assert any(line.startswith("onnxruntime-gpu") for line in requirements) and "torch" in names(requirements)


def test_the_cpu_recipe_brings_no_cuda(monkeypatch):
    monkeypatch.setenv("LIENZO_BENTO", "cpu")
    image = bento_image()
    (command,) = image.post_commands
    assert "'torch>=" in command and "'torchvision>=" in command and "whl/cpu" in command
    packages = names(image.python_requirements.splitlines())
    assert "onnxruntime" in packages and not packages & {"torch", "torchvision", "onnxruntime-gpu"}
    monkeypatch.setenv("LIENZO_BENTO", "gpu")
    # Nothing else is lost on the way.
    assert names(bento_image().python_requirements.splitlines()) - packages == {
        "torch", "torchvision", "onnxruntime-gpu"
    }  # fmt: skip


def test_an_unknown_recipe_is_refused(monkeypatch):
    monkeypatch.setenv("LIENZO_BENTO", "tpu")
    with pytest.raises(InvalidInput, match="LIENZO_BENTO is 'tpu', expected gpu or cpu"):
        bento_image()


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}
