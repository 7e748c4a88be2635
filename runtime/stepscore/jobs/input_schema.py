"""JSON Schema of an input line, which no struct describes: texts by any accepted name, or token ids."""

from __future__ import annotations

from typing import Any

from stepscore.records import IDS_NAMES, MESSAGES, OTHER_TEXTS, PROBLEM_NAMES, STEPS_NAMES

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_NO_LIST: Schema = {"not": {"type": "array"}}
_STEPS: Schema = {"type": "array", "items": _STRING, "minItems": 1}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def input_schema(max_id_chars: int) -> Schema:
    """Return the schema of what `records.Reading` accepts by its default names."""
    return {
        "title": "InputLine",
        "description": "One solution to score: texts or token ids, not both. Fields that are names of the "
        "same thing must be equal; every other field passes through unchanged.",
        "type": "object",
        "properties": {
            "id": {
                "description": "unique in the file; default: the 0-based index of the line",
                "anyOf": [
                    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
                    {"type": "string", "maxLength": max_id_chars},
                    _NULL,
                ],
            },
            **_described_texts(),
            "prompt_token_ids": {
                "description": "token ids of the prompt, scored as they are; none is added",
                "anyOf": [_IDS, _NULL],
            },
            "response_token_ids": {"description": "token ids of the response", "anyOf": [_IDS, _NULL]},
            "step_ends": {
                "description": "beside token ids: indices into the response, the last token of each step; "
                "default: the tokens that complete a blank line, and the last one"
            },
        },
        "anyOf": [_texts(), _token_ids()],
    }


def _described_texts() -> dict[str, Schema]:
    properties: dict[str, Schema] = {}
    for name in PROBLEM_NAMES:
        alias = "" if name == PROBLEM_NAMES[0] else f"; another name of `{PROBLEM_NAMES[0]}`"
        properties[name] = {"description": f"text of the problem{alias}", "anyOf": [_STRING, _NULL]}
    for name in STEPS_NAMES:
        alias = "" if name == STEPS_NAMES[0] else f"; another name of `{STEPS_NAMES[0]}`"
        properties[name] = {"description": f"steps of the solution, in order{alias}"}
        if name not in OTHER_TEXTS:
            properties[name] |= {"anyOf": [_STEPS, _NULL]}
    properties["solution"]["description"] += "; beside another name of them, anything else is a gold solution"
    properties["answer"]["description"] += "; beside another name of them, anything else is the final answer"
    properties[MESSAGES] = {
        "description": "one user and one assistant message: problem and solution, which is split at blank "
        "lines; read for what no other field gives"
    }
    return properties


def _texts() -> Schema:
    turn = {
        "type": "object",
        "properties": {"role": _STRING, "content": _STRING},
        "required": ["role", "content"],
    }
    conversation = {"type": "array", "items": turn, "minItems": 2}
    of_messages = {"required": [MESSAGES], "properties": {MESSAGES: conversation}}
    return {
        "properties": {
            **dict.fromkeys(PROBLEM_NAMES, _STRING),
            **{name: _STEPS for name in STEPS_NAMES if name not in OTHER_TEXTS},
            **dict.fromkeys(IDS_NAMES, _NULL),
        },
        "allOf": [
            {"anyOf": [*({"required": [name]} for name in PROBLEM_NAMES), of_messages]},
            {
                "anyOf": [
                    *({"required": [name], "properties": {name: _STEPS}} for name in STEPS_NAMES),
                    of_messages,
                ]
            },
        ],
    }


def _token_ids() -> Schema:
    texts = [name for name in (*PROBLEM_NAMES, *STEPS_NAMES, MESSAGES) if name not in OTHER_TEXTS]
    return {
        "required": [*IDS_NAMES],
        "properties": {
            **dict.fromkeys(texts, _NULL),
            **dict.fromkeys(OTHER_TEXTS, _NO_LIST),
            **dict.fromkeys(IDS_NAMES, _IDS),
            "step_ends": {"anyOf": [_IDS, _NULL]},
        },
    }
