"""`paceline models` lists what is registered, with parameters and whether sub-models can be cut."""

import json

from paceline import registry
from tests.metrics.test_listing import call


def test_all_are_listed_with_samples_parameters_and_options():
    rows = {row["name"]: row for row in json.loads(call("models", "--json"))}
    assert list(rows) == registry.names("model")
    assert all(row["about"] and row["takes"] and row["parameters"] for row in rows.values())
    assert (rows["resnet18"]["parameters"], rows["resnet18"]["example"]["shape"]) == (11_173_962, [3, 32, 32])
    assert {"name": "norm", "default": "group"} in rows["resnet18"]["options"]
    assert [name for name, row in rows.items() if not row["submodels"]] == ["vit", "char_model", "text_encoder"]
    assert "unflatten" in rows["text_encoder"]["why_whole"]
    assert (rows["unet"]["scores"], rows["mobilenet_v2"]["weights"]) == ("pixel", "mobilenet-v2")
    text = call("models")
    assert all(name in text for name in rows)
