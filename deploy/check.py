"""Checks the files of deploy/ and spin.toml with the tools that would read them: Helm renders the chart, the schemas of Kubernetes validate
what it renders, hadolint reads the Containerfiles, and systemd-analyze the unit. `cargo xtask deploy` installs the tools and runs this.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import cyclonedx
import helm_python
import jsonschema
import kubernetes_validate
import referencing
import yaml
from helm_python.chart import Chart, lint

DEPLOY = Path(__file__).resolve().parent
OPENAPI = DEPLOY.parent / "components" / "gateway" / "openapi.json"
CHART = DEPLOY / "helm" / "weir"
RENDERED = DEPLOY / "kubernetes" / "weir.yaml"
# The oldest version that the chart allows, and the newest whose schemas are installed.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]
RENDERED_HEAD = (
    "# The chart deploy/helm/weir with its default values, for `kubectl apply -f`; made by `cargo xtask deploy --update`.\n"
)
# Every branch of the templates.
VALUES = {
    "default": {},
    "everything": {
        "image": {"repository": "registry.example/weir", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "authSecret": "weir-keys",
        "autoscaling": {"enabled": True},
        "service": {"type": "LoadBalancer"},
        "networkPolicy": {
            "from": [{"namespaceSelector": {}}],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "redis"}}}], "ports": [{"port": 6379}]}],
        },
        "podAnnotations": {"prometheus.io/scrape": "true"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
    "least": {"disruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}, "replicas": 1},
}
WRONG_VALUES = {
    "misspelled": {"replica": 3},
    "tag as a digest": {"image": {"repository": "weir", "digest": "0.1.0"}},
    "no pods": {"replicas": 0},
    "endless drain": {"drainSeconds": 100_000},
}
TOOL_SECONDS_MAX = 60


def fail(message: str) -> None:
    sys.exit(f"deploy: {message}")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=TOOL_SECONDS_MAX)
    output = (done.stdout + done.stderr).strip()
    # systemd-analyze reports what it ignores without a status.
    if done.returncode != 0 or output:
        fail(f"`{' '.join(map(str, command))}` answers {done.returncode}:\n{output}")


def resources(text: str) -> list[dict]:
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(values: dict) -> dict[str, str]:
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="weir", namespace="default", is_install=True)
    return {name.removeprefix("weir/"): text for name, text in sorted(files.items()) if name.endswith(".yaml") and text.strip()}


def check_chart() -> None:
    report = lint(CHART, strict=True)
    problems = [message for message in report["messages"] if message["severity"] >= 2]
    if problems or report["errors"]:
        fail(f"helm lint: {problems} {report['errors']}")
    for name, values in VALUES.items():
        kinds = []
        for file, text in rendered(values).items():
            for resource in resources(text):
                kinds.append(resource["kind"])
                for version in KUBERNETES:
                    try:
                        kubernetes_validate.validate(resource, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        fail(f"{file} with the values `{name}` for Kubernetes {version}: {error.message}")
        print(f"ok  helm, values `{name}`: {', '.join(kinds)}")
    for name, values in WRONG_VALUES.items():
        try:
            rendered(values)
        except helm_python.HelmError:
            continue
        fail(f"the chart takes wrong values: {name}")
    print(f"ok  helm, wrong values are refused: {', '.join(WRONG_VALUES)}")


def check_pods() -> None:
    """What a restricted namespace demands, and that SIGTERM has the time that the server needs."""
    for values in VALUES.values():
        files = rendered(values)
        (deployment,) = resources(files["templates/deployment.yaml"])
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        security = pod["securityContext"] | container["securityContext"]
        wanted = {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
        if not wanted.items() <= security.items() or security["capabilities"] != {"drop": ["ALL"]}:
            fail(f"the pod is not restricted: {security}")
        drain = next(int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("http.drain_timeout_ms="))
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        if pod["terminationGracePeriodSeconds"] * 1000 <= drain + sleep * 1000:
            fail("the pod is killed before it has drained")
        selector = deployment["spec"]["selector"]["matchLabels"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for file, text in files.items():
            for resource in resources(text):
                spec = resource.get("spec", {})
                chosen = spec.get("selector") or spec.get("podSelector") or {}
                chosen = chosen.get("matchLabels", chosen)
                if chosen and not (chosen.items() <= labels.items() and chosen == selector):
                    fail(f"{file} selects {chosen}, and the pods have {labels}")
        if ("replicas" in deployment["spec"]) == ("templates/horizontalpodautoscaler.yaml" in files):
            fail("either the deployment or the autoscaler sets the number of pods")
    print("ok  pods: restricted, drained before they are killed, selected by each resource")


def probe_paths(value: object) -> list[str]:
    """The paths of all HTTP probes in a resource."""
    if isinstance(value, list):
        return [path for part in value for path in probe_paths(part)]
    if not isinstance(value, dict):
        return []
    own = [value["httpGet"]["path"]] if "httpGet" in value else []
    return own + [path for part in value.values() for path in probe_paths(part)]


def check_probes() -> None:
    """The server has every path that a probe asks for."""
    known = json.loads(OPENAPI.read_text())["paths"]
    files = {f"helm, {name}": text for values in VALUES.values() for name, text in rendered(values).items()}
    for path in [RENDERED, DEPLOY / "spin" / "spinapp.yaml"]:
        files[str(path.relative_to(DEPLOY.parent))] = path.read_text()
    probed = {(file, path) for file, text in files.items() for path in probe_paths(resources(text))}
    for file, path in sorted(probed):
        if "get" not in known.get(path, {}):
            fail(f"{file} probes {path}, which is not in {OPENAPI.name}")
    paths = sorted({path for _, path in probed})
    if paths != ["/livez", "/readyz"]:
        fail(f"the probes ask for {paths}, and should for /livez and /readyz")
    print(f"ok  probes: {', '.join(paths)} are in {OPENAPI.name}")


def check_rendered(update: bool) -> None:
    text = RENDERED_HEAD + "".join(f"---\n{manifest.strip()}\n" for manifest in rendered({}).values())
    if update:
        RENDERED.write_text(text)
    elif not RENDERED.exists() or RENDERED.read_text() != text:
        fail("deploy/kubernetes/weir.yaml is not what the chart renders: `cargo xtask deploy --update`")
    print("ok  deploy/kubernetes/weir.yaml is the chart with its default values")


def check_containers(hadolint: Path) -> None:
    for name in ["Containerfile", "Containerfile.build"]:
        run(hadolint, "--failure-threshold", "style", DEPLOY / "container" / name)
    print("ok  hadolint: Containerfile, Containerfile.build")


def check_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        print("--  systemd-analyze is not here: the unit is not checked")
        return
    unit = (DEPLOY / "systemd" / "weir.service").read_text()
    with tempfile.TemporaryDirectory() as folder:
        # The program is not installed here, and a missing one is an error.
        copy = Path(folder) / "weir.service"
        copy.write_text(unit.replace("ExecStart=/opt/weir/weir ", "ExecStart=/bin/true "))
        run("systemd-analyze", "verify", "--man=no", copy)
    print("ok  systemd-analyze verify: weir.service")


def check_manifests(schemas: Path | None) -> None:
    """The manifests of Spin, SpinKube and wasmCloud; against the schemas of these projects where a folder has them."""
    tomls = {path: tomllib.loads(path.read_text()) for path in [DEPLOY.parent / "spin.toml", DEPLOY / "spin" / "thin.toml"]}
    custom = {path: resources(path.read_text())[0] for path in [DEPLOY / "spin/spinapp.yaml", DEPLOY / "wasmcloud/workload.yaml"]}
    if schemas is None:
        print("--  without --schemas the manifests of Spin, SpinKube and wasmCloud are only parsed")
        return
    spin = json.loads((schemas / "spin-manifest-v2.json").read_text())
    for path, manifest in tomls.items():
        jsonschema.Draft7Validator(spin).validate(manifest)
        print(f"ok  {path.relative_to(DEPLOY.parent)}: the JSON schema of Spin's manifests")
    for path, resource in custom.items():
        group, version = resource["apiVersion"].split("/")
        plural = resource["kind"].lower() + "s"
        definition = yaml.safe_load((schemas / f"{group}_{plural}.yaml").read_text())
        (schema,) = [it["schema"]["openAPIV3Schema"] for it in definition["spec"]["versions"] if it["name"] == version]
        jsonschema.Draft202012Validator(closed(schema)).validate(resource)
        print(f"ok  {path.relative_to(DEPLOY.parent)}: the resource definition of {resource['kind']}")


def check_bill(bill: Path) -> None:
    """The bill of materials of an archive, against the schema of CycloneDX."""
    document = json.loads(bill.read_text())
    folder = Path(cyclonedx.__file__).parent / "schema" / "_res"
    registry = referencing.Registry()
    # The schema refers to those of SPDX and JSF by their names.
    for name in ["spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json"]:
        schema = json.loads((folder / name).read_text())
        resource = referencing.Resource.from_contents(schema)
        registry = registry.with_resources([(schema["$id"], resource), (f"http://cyclonedx.org/schema/{name}", resource)])
    schema = json.loads((folder / f"bom-{document['specVersion']}.SNAPSHOT.schema.json").read_text())
    jsonschema.Draft7Validator(schema, registry=registry).validate(document)
    print(f"ok  {bill.name}: CycloneDX {document['specVersion']}, {len(document['components'])} components")


def closed(schema: object) -> object:
    """A resource definition prunes unknown fields; here each is an error."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    is_open = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_open and "additionalProperties" not in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        schema["additionalProperties"] = False
    return schema


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true", help="write deploy/kubernetes/weir.yaml")
    parser.add_argument("--schemas", type=Path, help="folder with the schemas of Spin, SpinKube and wasmCloud")
    parser.add_argument("--bill", type=Path, help="check the bill of materials of an archive, and nothing else")
    arguments = parser.parse_args()
    if arguments.bill is not None:
        check_bill(arguments.bill)
        return
    check_chart()
    check_pods()
    check_probes()
    check_rendered(arguments.update)
    check_containers(Path(sys.executable).parent / "hadolint")
    check_unit()
    check_manifests(arguments.schemas)


main()
