"""The chart as tests use it: value sets, rendering, and what a rendered pod would be given by the cluster.

    objects = rendered(VALUE_SETS["default"])
    one(objects, "StatefulSet", "fleet-cloudhub")

The value sets are the files of helm/examples and the chart's defaults.
"""

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "cloudhub"
RELEASE, NAMESPACE = "fleet", "edge"
FULL = "fleet-cloudhub"
Object = dict[str, Any]

VALUE_SETS: dict[str, Object] = {"default": {}} | {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "helm/examples").glob("*.yaml"))
}


class _UniqueKeys(yaml.CSafeLoader):
    """Refuses a key that comes twice, of which YAML readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{twice} twice{node.start_mark}"
        return super().construct_mapping(node, deep)


def documents(text: str) -> Iterator[Object]:
    return (document for document in yaml.load_all(text, _UniqueKeys) if document)


def manifests(
    values: Mapping[str, Any], *, name: str = RELEASE, namespace: str = NAMESPACE
) -> dict[str, str]:
    """The rendered text by template. Raises helm_python.HelmError."""
    return _render(json.dumps(values, sort_keys=True), name, namespace)


@functools.cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


@functools.lru_cache(maxsize=64)
def _render(values: str, name: str, namespace: str) -> dict[str, str]:
    return _chart().render(json.loads(values), name=name, namespace=namespace)


def rendered(values: Mapping[str, Any], *, name: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """All objects."""
    return [
        document
        for path, text in manifests(values, name=name, namespace=namespace).items()
        if path.endswith(".yaml")
        for document in documents(text)
    ]


def notes(values: Mapping[str, Any]) -> str:
    return next(text for path, text in manifests(values).items() if path.endswith("NOTES.txt"))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [o for o in objects if o["kind"] == kind]


def one(objects: list[Object], kind: str, name: str) -> Object:
    found = [o for o in of_kind(objects, kind) if o["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {[o['metadata']['name'] for o in of_kind(objects, kind)]}"
    return found[0]


def pod_spec(objects: list[Object], name: str = FULL) -> Object:
    spec: Object = one(objects, "StatefulSet", name)["spec"]["template"]["spec"]
    return spec


def config_files(objects: list[Object], name: str = FULL) -> dict[str, Any]:
    """The hub's config files, decoded."""
    data = one(objects, "ConfigMap", name)["data"]
    return {file: yaml.safe_load(text) for file, text in data.items() if file.endswith(".yaml")}


def merged(*layers: Mapping[str, Any]) -> Object:
    """Values over values, as Helm lays them."""
    out: Object = {}
    for layer in layers:
        for key, value in layer.items():
            held = out.get(key)
            if isinstance(value, Mapping) and isinstance(held, Mapping):
                out[key] = merged(held, value)
            else:
                out[key] = copy.deepcopy(value)
    return out


def at(path: str, value: Any) -> Object:
    """Values with one key: at("a.b", 1) is {"a": {"b": 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def find(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values
