"""The manifests: what the schemas of Kubernetes say of them, that they fit each other, and what the pod does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from qgstream.metrics import Metrics
from qgstream.process.config import load
from tests.deploy.programs import DEPLOY, Program, free_port
from tests.deploy.test_docker import image_environment, last

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
# Of the operator and of kubectl, not of Kubernetes.
FOREIGN = {"PodMonitor", "Kustomization"}


def documents() -> list[dict[str, Any]]:
    return [
        document for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
    ]  # fmt: skip


def the(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


POD = the("Deployment")["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
LABELS = POD["metadata"]["labels"]


@pytest.mark.parametrize(
    "document", [each for each in documents() if each["kind"] not in FOREIGN], ids=lambda document: document["kind"]
)
def test_the_schema_of_kubernetes_takes_it(document: dict[str, Any]) -> None:
    # Strict: a key that does not exist is an error, as it is for `kubectl apply --validate=strict`.
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_would_see_a_wrong_key() -> None:
    wrong = the("Service")
    wrong["spec"]["port"] = 80
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_every_file_is_in_the_kustomization() -> None:
    named = {
        *KUSTOMIZATION["resources"],
        *(file for each in KUSTOMIZATION["configMapGenerator"] for file in each["files"]),
    }
    assert named == {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert [each["name"] for each in KUSTOMIZATION["images"]] == [CONTAINER["image"]]


def test_everything_that_selects_the_pods_selects_them() -> None:
    selectors = [
        the(kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")
    ]
    selectors += [the("Service")["spec"]["selector"], the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    selectors += [each["labelSelector"]["matchLabels"] for each in POD["spec"]["topologySpreadConstraints"]]
    assert all(selector.items() <= LABELS.items() for selector in selectors)


def test_every_port_that_is_named_is_one_of_the_pod() -> None:
    ports = {port["name"] for port in CONTAINER["ports"]}
    named = {port["targetPort"] for port in the("Service")["spec"]["ports"]}
    named |= {port["port"] for rule in the("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    named |= {endpoint["port"] for endpoint in the("PodMonitor")["spec"]["podMetricsEndpoints"]}
    named |= {CONTAINER[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert named == ports


def test_the_pod_is_confined() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == last("USER")
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert container == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip


def test_it_scales_on_a_metric_that_exists_below_the_limit() -> None:
    spec = the("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == the("Deployment")["metadata"]["name"]
    assert "replicas" not in the("Deployment")["spec"], "each apply would undo what the autoscaler did"
    (metric,) = [each["pods"] for each in spec["metrics"]]
    assert metric["metric"]["name"] in {family.name for family in Metrics().registry.collect()}
    limit = load(FOLDER / "qgstream.toml").config.limits.max_connections
    assert int(metric["target"]["averageValue"]) == 0.7 * limit


def test_the_job_is_the_one_that_alerts_look_for() -> None:
    monitor = the("PodMonitor")["spec"]
    assert LABELS[monitor["jobLabel"]] == "qgstream"
    assert 'job="qgstream"' in (DEPLOY / "prometheus" / "qgstream.rules.yml").read_text()


def test_the_configuration_is_for_pods() -> None:
    config = load(FOLDER / "qgstream.toml").config
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": config.server.port, "admin": config.admin.port}
    assert (config.server.host, config.admin.host) == ("0.0.0.0", "0.0.0.0")
    assert not config.broker.url.startswith(("memory:", "sqlite:")), "more than one pod, and no log that they share"
    assert config.server.trusted_proxies
    assert (config.auth.publish_keys, config.auth.admin_keys) == ({}, {}), "keys are in the secret"


def test_the_pod_starts_answers_its_probes_and_leaves(tmp_path: Path) -> None:
    ports = {"http": free_port(), "admin": free_port()}
    arguments = [word.replace("/etc/qgstream", str(FOLDER)) for word in CONTAINER["args"]]
    assert Path(arguments[-1]).exists()
    keys = {each["name"]: json.dumps({"somebody": f"{each['name']}-secret"}) for each in CONTAINER["env"]}
    here = {
        "QGSTREAM_SERVER__PORT": str(ports["http"]), "QGSTREAM_ADMIN__PORT": str(ports["admin"]),
        "QGSTREAM_BROKER__URL": "memory://", "QGSTREAM_DRAIN__SECONDS": "0",
    }  # fmt: skip
    image = {name: value for name, value in image_environment().items() if name not in ("PATH", "QGSTREAM_CONFIG")}
    command = [sys.executable, "-m", *json.loads(last("ENTRYPOINT")), *arguments]

    def status(path: str, port: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{ports[port]}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    with Program(command, tmp_path / "log", environment=image | keys | here) as pod:
        for port in ports.values():
            pod.wait_for_port(port)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = CONTAINER[probe]["httpGet"]
            assert status(asked["path"], asked["port"]) == 200, probe
        (endpoint,) = the("PodMonitor")["spec"]["podMetricsEndpoints"]
        assert status(endpoint["path"], endpoint["port"]) == 200
        # The keys of the secret are in force, and the operator's paths are not public.
        assert status("/admin/limits", "admin", Authorization="Bearer QGSTREAM_AUTH__ADMIN_KEYS-secret") == 200
        assert status("/admin/limits", "admin") == 401
        assert status("/metrics", "http") == 404
        assert "config.warning" not in pod.log
        pod.process.terminate()
        assert pod.process.wait(60) == 0, pod.log


def test_the_hook_before_the_end_waits(tmp_path: Path) -> None:
    name, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    # The same program, for less long.
    done = subprocess.run([name, str(float(seconds) / 1000)], timeout=60, check=False, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0
