"""Writes ``chat_templates.json``: what transformers renders of small templates that use what real ones use.

Run it in an environment with transformers >= 5.23 and jinja2:

    python make_chat_reference.py

The templates are ours: each puts together constructs that templates of Qwen, Mistral, Gemma, Phi, Llama 3 and SmolLM3
are made of. A refused chat has ``null`` for its text.
"""

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": 'Looks up <a> & "b", naïvely – 中文',
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    },
}
CALL = {
    "type": "function",
    "id": "abc123456",
    "function": {"name": "find", "arguments": {"x": 1.5, "y": "ü<"}},
}
CHATS = {
    "one": [{"role": "user", "content": "  Hi <b>&amp; 你好  "}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ],
    "tools": [
        {"role": "user", "content": "find"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "find", "tool_call_id": "abc123456", "content": '{"z": 1}'},
    ],
    "twice the assistant": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
}
TEMPLATES = {
    "qwen": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" and message.content is string %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- elif message.content is iterable %}
        {%- set content = message.content | map(attribute='text') | join('+') %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') ~ '(' ~ thought ~ ')' %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- ns.last }}
{%- endif %}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message, loop_messages = messages[0]["content"], messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if message.role in ["user", "assistant"] and not message.tool_calls %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages if message.role != 'nobody' %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and loop.first %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{% else %}{{- "]" }}{% endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (system_message ~ "\\n\\n" if system_message is defined and loop.last else "") }}
        {{- (message["content"] if message["content"] is string else message["content"][0]["text"]) + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- '[TOOL_RESULTS] ' + message.content|string + '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = {'assistant': 'model'}.get(message['role'], message['role']) -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "llama and smollm": """\
{% macro header(role) %}<|{{ role }}|>{% endmacro %}
{% set date = strftime_now('%%') if strftime_now is defined else 'never' %}
{% if tools %}
{{ date }} {{ tools | tojson(indent=4) }}
{{ tools[0].function | tojson(separators=(',', ':'), sort_keys=true) }}
{% endif %}
{% for message in messages %}
    {% if loop.index0 > 1 %}{% break %}{% endif %}
{{ header(message.role) }}
    {% if message.role == 'assistant' %}
    {% generation %}{{ message.content | default('', true) | replace('b', 'B') }}{% endgeneration %}
    {% else %}
{% set texts = message.content | selectattr('type', 'equalto', 'text') | list if message.content is not string %}
{{ message.content if message.content is string else texts | length }}
    {% endif %}
{% endfor %}
{{ '<|assistant|>' if add_generation_prompt }}
""",
}


def render(template: str, chat: list, tools: list | None, **variables: object) -> str | None:
    try:
        (text,), _ = render_jinja_template(
            [chat], tools=tools, chat_template=template, bos_token="<s>", eos_token="</s>", **variables
        )
    except (jinja2.TemplateError, TypeError):
        return None
    return text


if __name__ == "__main__":
    entries = []
    for name, template in TEMPLATES.items():
        renderings = []
        for chat, messages in CHATS.items():
            for tools in (None, [TOOL, TOOL]) if chat in ("one", "tools") else (None,):
                for prompt in (True, False):
                    variables = {"enable_thinking": False} if prompt else {}
                    text = render(template, messages, tools, add_generation_prompt=prompt, **variables)
                    renderings.append(
                        {"chat": chat, "tools": tools is not None, "prompt": prompt, "text": text}
                    )
        entries.append({"name": name, "template": template, "renderings": renderings})
    data = {"tool": TOOL, "chats": CHATS, "templates": entries}
    (HERE / "chat_templates.json").write_text(
        json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
