"""A workflow as the editor saves it (UI format) -> the graph that ComfyUI's /prompt takes (API format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class WorkflowError(ValueError):
    """A workflow that this ComfyUI cannot run as it is; the message names the file or node."""


def load_workflow(path: str | Path) -> dict:
    """Read a workflow file. Raises WorkflowError when it is not a UI-format workflow."""
    try:
        workflow = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkflowError(f"cannot read the workflow {path}: {error}") from error
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise WorkflowError(f"{path} is not a workflow in ComfyUI's UI format (it has no list of nodes)")
    return workflow


def to_api(workflow: Mapping, object_info: Mapping) -> dict[str, dict]:
    """UI format -> API format, by the schemas that a running ComfyUI gives under /object_info.

    Returns:
        Node id -> {"class_type", "inputs", …}.

    Raises:
        WorkflowError: when a node type is missing from this ComfyUI, or a saved node does not fit its schema.
    """
    from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api

    try:
        graph = convert_ui_to_api(dict(workflow), dict(object_info))
    except WorkflowConversionError as error:
        raise WorkflowError(f"cannot convert the workflow: {error}") from error
    if missing := sorted({node["class_type"] for node in graph.values()} - set(object_info)):
        raise WorkflowError(f"this ComfyUI does not have the nodes {', '.join(missing)}")
    for node_id, node in graph.items():
        schema = object_info[node["class_type"]]["input"]
        known = {name for group in ("required", "optional") for name in schema.get(group, ())}
        # A dynamic input's parts are called "input.part".
        if unknown := sorted(name for name in node["inputs"] if name.split(".")[0] not in known):
            raise WorkflowError(
                f"{node['class_type']} (node {node_id}) has no inputs {', '.join(unknown)} in this ComfyUI: "
                "open the workflow in the editor and save it again"
            )
    return graph


def find_node(graph: Mapping[str, Mapping], class_type: str) -> str:
    """The id of the first node of a class in an API-format graph. Raises WorkflowError when there is none."""
    for node_id, node in graph.items():
        if node["class_type"] == class_type:
            return node_id
    raise WorkflowError(f"the workflow has no {class_type} node")
