"""Files beside a ranker checkpoint with which other tools load it and give the same scores.

sentence-transformers >= 5.6: `CrossEncoder(DIR).predict([(query, job_text)])` is P("yes"); it reads
`modules.json`, and renders the pair by `chat_template.jinja`. vLLM and SGLang load the directory as
the plain causal model that it is: send the rendered prompt, ask for one token with the log
probabilities of the two label ids of `ranker.json`, and take the sigmoid of their difference.

That holds where the whole prompt, tokenised at once, has the ids of its parts. With Qwen's
tokenizer and a wording whose question begins on a new line it has not: a mark and the line end
behind it are one token there. Then these files are not written: other tools must be sent ids.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.labels import Labels
from slmrank.prompt.template import PromptTemplate

TEMPLATE_FILE = "chat_template.jinja"
# A text may begin and end with any of them, and a wording that touches it join them in a token.
MARKS = ".,:;!?()[]{}<>\"'`-*#@&/+=_%$|~^\\\u2013"
PROBES = (
    *(("nurse", "Care for patients"), ("payroll?", "Care for patients."), ("C++", "(a)")),
    *((f"{mark}nurse{mark}", f"{mark}Care{mark}") for mark in MARKS),
)


def exported_files(template: PromptTemplate, labels: Labels) -> dict[str, str]:
    """File name -> content."""
    modules = "sentence_transformers"
    chain = [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": f"{modules}.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": f"{modules}.cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    forward = {"method": "forward", "method_output_name": "logits"}
    transformer = {
        "transformer_task": "text-generation",
        "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
        "module_output_name": "causal_logits",
    }
    scored = {
        "true_token_id": labels.yes,
        "false_token_id": labels.no,
        "module_input_name": "causal_logits",
    }
    encoder: dict[str, object] = {
        "model_type": "CrossEncoder",
        "activation_fn": "torch.nn.modules.activation.Sigmoid",
        "default_prompt_name": None,
        "prompts": {},
    }
    return {
        "modules.json": _json(chain),
        "sentence_bert_config.json": _json(transformer),
        "config_sentence_transformers.json": _json(encoder),
        "1_LogitScore/config.json": _json(scored),
        TEMPLATE_FILE: chat_template(template),
    }


def text_is_enough(encoder: PromptEncoder, tokenizer: Tokenizer) -> bool:
    """Whether prompts tokenised at once have the ids of the encoder, by texts that end in marks."""
    template = encoder.template
    tokenizer.encode_special_tokens = False
    for query, text in PROBES:
        rendered = template.prefix.replace("{query}", query) + text + template.closing
        at_once = tokenizer.encode(rendered, add_special_tokens=False).ids
        apart = [*encoder.prefix(query), *encoder.item(encoder.body(text)).ids]
        if at_once != apart:
            return False
    return True


def chat_template(template: PromptTemplate) -> str:
    """The prompt of a pair of messages with the roles `query` and `document`, as Jinja."""
    before, _, after = template.prefix.partition("{query}")
    role = "(messages | selectattr('role', 'equalto', '{}') | map(attribute='content') | first)"
    parts = [
        json.dumps(before, ensure_ascii=False),
        f"{role.format('query')}.split() | join(' ')",
        json.dumps(after, ensure_ascii=False),
        f"{role.format('document')}.strip()",
        json.dumps(template.closing, ensure_ascii=False),
    ]
    return "".join(f"{{{{ {one} }}}}" for one in parts)


def with_old_rope(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with the rotary base and scaling in the words of transformers 4 as
    well: it reads no `rope_parameters`, and takes a base of 10,000 without a word."""
    nested = dict(config.get("rope_parameters") or {})
    base = nested.pop("rope_theta", None)
    if base is None:
        return config
    plain = nested.get("rope_type", "default") == "default"
    return {**config, "rope_theta": base, "rope_scaling": None if plain else nested}


def with_room(tokenizer_config: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A tokenizer's configuration whose limit takes prompts of so many tokens: others cut what is
    longer, and with it the closing question."""
    limit = tokenizer_config.get("model_max_length")
    if isinstance(limit, int | float) and limit < tokens:
        return {**tokenizer_config, "model_max_length": tokens}
    return tokenizer_config


def with_pad_token(tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration with a token to pad by, which other tools ask for when they score
    more than one pair; nothing of ours reads it."""
    if tokenizer_config.get("pad_token"):
        return tokenizer_config
    for name in ("eos_token", "unk_token", "bos_token"):
        if tokenizer_config.get(name):
            return {**tokenizer_config, "pad_token": tokenizer_config[name]}
    return tokenizer_config


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
