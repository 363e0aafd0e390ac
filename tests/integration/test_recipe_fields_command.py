from __future__ import annotations

import json

from growtas import api


def test_the_fields_of_a_recipe_as_json_are_those_of_the_api(growtas):
    code, out, _ = growtas("recipes", "--fields", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads(json.dumps(api.recipe_fields().to_dict()))
    (epochs,) = [field for field in printed["fields"] if field["name"] == "epochs"]
    assert (epochs["type"], epochs["default"]) == ("whole number", 30)
    assert {option["name"] for option in printed["method_options"]["sandwich"]} == {"random", "students"}


def test_the_fields_of_a_recipe_as_a_table(growtas):
    code, out, _ = growtas("recipes", "--fields")
    assert code == 0
    described = api.recipe_fields()
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    for field in described.fields:
        assert field.meaning in rows[field.name]
        assert field.legal in rows[field.name]


def test_fields_are_not_of_one_recipe(growtas):
    code, out, err = growtas("recipes", "growtas-t", "--fields")
    assert (code, out) == (2, "")
    assert "leave out growtas-t" in err
    assert "Traceback" not in err
